"""EchoStream under the simulstream package: its message processor, inference and server."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

pytest.importorskip("simulstream", reason="the extra 'simulstream' is not installed")

from simulstream.config import yaml_config
from simulstream.server.message_processor import MessageProcessor
from simulstream.server.speech_processors import build_speech_processor
from simulstream.server.websocket_server import SpeechProcessorPool, connection_handler_factory
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from echostream.translator.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "eval_configs/simulstream/echo_mini.yaml"
CLIPS = [ROOT / f"data/echo_mini/test_audio/test_000{index}1.flac" for index in (4, 5)]


@pytest.fixture(scope="module")
def processor():
    return build_speech_processor(yaml_config(str(CONFIG)))


def read(path):
    """Samples as simulstream sends them."""
    samples, _ = soundfile.read(path, dtype="int16")
    return samples


def expected(processor, samples):
    pipeline = Pipeline(processor.pipeline.system, chunk_ms=320, task="s2tt")
    outputs, _ = pipeline.step(samples, 16000, pipeline.init_state(), final=True)
    return " ".join(word for output in outputs for word in output.translation)


def test_message_processor_gives_the_pipelines_words(processor):
    for path in CLIPS:  # one after the other on the same processor
        samples = read(path)
        messages = MessageProcessor(0, processor)
        messages.process_metadata({"sample_rate": 16000, "target_lang": "en", "source_lang": "es"})
        said = ""
        for start in range(0, len(samples), 1000):
            output = messages.process_speech(samples[start : start + 1000].tobytes())
            said += output.new_string if output else ""
        last = messages.end_of_stream()
        said = (said + last.new_string).lstrip(" ")
        assert said == expected(processor, samples) and said


def test_websocket_server_serves_two_clients(processor):
    pool = SpeechProcessorPool(yaml_config(str(CONFIG)), size=2, acquire_timeout=5)

    async def client(port, samples):
        said = []
        async with connect(f"ws://127.0.0.1:{port}") as link:
            await link.send(json.dumps({"sample_rate": 16000}))
            for start in range(0, len(samples), 5120):
                await link.send(samples[start : start + 5120].tobytes())
            await link.send(json.dumps({"end_of_stream": True}))
            async for message in link:
                fields = json.loads(message)
                if "end_of_processing" in fields:
                    return " ".join(" ".join(said).split())
                said.append(fields["new"])

    async def scenario():
        async with serve(connection_handler_factory(pool), "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await asyncio.gather(*(client(port, read(path)) for path in CLIPS))

    said = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert said == [expected(processor, read(path)) for path in CLIPS]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 1}, "unknown key 'chunk'"),
        ({"speech_chunk_size": "0.3"}, "speech_chunk_size must be"),
        ({"task": "s2st"}, "task must be s2tt or asr"),
    ],
)
def test_mistakes_in_the_file_are_named(change, message):
    config = SimpleNamespace(**{**vars(yaml_config(str(CONFIG))), **change})
    with pytest.raises(ValueError, match=message):
        build_speech_processor(config)


def test_weights_are_shared(processor):
    other = build_speech_processor(yaml_config(str(CONFIG)))
    assert other.pipeline.system is processor.pipeline.system
    output = other.process_chunk(np.zeros(5120, np.float32))
    assert output.new_tokens == [] and output.deleted_string == ""
