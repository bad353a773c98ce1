"""The WebSocket protocol over real connections, equal to the pipeline."""

import asyncio
import http.client
import json
import socket
import urllib.request

import numpy as np
import pytest
import soxr

from echostream import assets
from echostream.live.catalog import Catalog, served
from echostream.live.client import LiveClient
from echostream.live.protocol import encode_speech
from echostream.live.server import bind
from echostream.streamspeech.recompute import StreamSpeechPipeline
from echostream.translator.pipeline import Pipeline
from tests.live.conftest import read_clip, run, running

CLIP = "test_00051.flac"
TALK = ("test_00051.flac", "test_00041.flac", "test_00011.flac")


async def translate(address, samples, rate, **options):
    async with LiveClient(f"ws://{address}") as client:
        ready = await client.start(rate, **options)
        assert ready["type"] == "ready", ready
        return await client.translate(samples, rate, speed=0), ready


def test_session_equals_pipeline(address, expected):
    samples, rate = read_clip(CLIP)
    heard, ready = run(translate(address, samples, rate))
    transcript, translation, speech = expected(samples, rate)
    assert heard.words("transcript") == transcript and heard.words("translation") == translation
    assert bytes(heard.speech) == speech and len(speech) > 16000
    assert ready["sample_rate"] == 16000 and ready["chunk_ms"] == 320
    done = heard.messages[-1]
    assert done["type"] == "done"
    assert done["received"] == len(samples) and done["spoken"] == len(speech) // 2
    spoken = heard.of_type("speech")
    assert sum(message["samples"] for message in spoken) == done["spoken"]
    assert all(message["backlog_ms"] > 0 for message in spoken)
    times = [message["source_ms"] for message in heard.messages if "source_ms" in message]
    assert times == sorted(times)
    status = heard.of_type("status")[-1]
    assert status["compute_ms"] > 0 and status["lag_ms"] >= status["compute_ms"]
    numbers = [message["seq"] for message in heard.messages]
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("block", [1, 997, 40000])
def test_block_sizes_and_formats_change_nothing(address, expected, block):
    samples, rate = read_clip("test_00031.flac")
    samples = samples[: 9000 if block == 1 else None]
    integers = (samples * 32768).astype("<i2")
    wanted = expected(integers, rate)

    async def scenario():
        async with LiveClient(f"ws://{address}") as client:
            await client.start(rate, format="s16le")
            for start in range(0, len(integers), block):
                await client.send(integers[start : start + block])
            await client.end()
            return await client.finish()

    heard = run(scenario())
    assert (heard.words("transcript"), heard.words("translation")) == wanted[:2]
    assert bytes(heard.speech) == wanted[2]


def test_other_rates_chunks_and_tasks(address, expected):
    samples, rate = read_clip(CLIP)
    faster = soxr.resample(samples, rate, 44100).astype(np.float32)
    for task in ("asr", "s2tt", "s2st"):
        heard, _ = run(translate(address, faster, 44100, chunk_ms=640, task=task))
        transcript, translation, speech = expected(faster, 44100, 640, task)
        assert heard.words("transcript") == transcript and transcript
        assert heard.words("translation") == translation and bool(translation) == (task != "asr")
        assert bytes(heard.speech) == speech and bool(speech) == (task == "s2st")


def test_provisional_words_become_words(address):
    samples, rate = read_clip(CLIP)
    heard, _ = run(translate(address, samples, rate))
    for kind in ("transcript", "translation"):
        messages = heard.of_type(kind)
        tails = [message["tail"] for message in messages]
        assert any(tails) and not tails[-1], "provisional words are shown, and none is left over"


def test_sentences_of_a_talk(talking):
    pause = np.zeros(16000, np.float32)
    talk = np.concatenate([np.concatenate([read_clip(name)[0], pause]) for name in TALK])
    catalog = Catalog([served(assets.model_dir("echostream"), talking)])
    with running(catalog) as address:
        heard, _ = run(translate(address, talk, 16000))
    pipeline = Pipeline(talking)
    outputs, _ = pipeline.step(talk, 16000, pipeline.init_state(), final=True)
    sentences = {output.sentence for output in outputs if output.translation}
    assert len(sentences) >= len(TALK)
    for index in sentences:
        for kind in ("transcript", "translation"):
            words = [w for o in outputs if o.sentence == index for w in getattr(o, kind)]
            assert getattr(heard, kind).get(index, []) == words
    assert bytes(heard.speech) == b"".join(encode_speech(o.waveform) for o in outputs)


def test_small_messages_do_not_wait_for_each_other():
    """Nagle's algorithm is off, on the socket that listens and on its connections."""
    with bind("127.0.0.1", 0) as listener:
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            for end in (listener, accepted):
                assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_silence_and_nothing(address, expected):
    for samples in (np.zeros(0, np.float32), np.zeros(100, np.float32), np.zeros(8000, np.float32)):
        heard, _ = run(translate(address, samples, 16000))
        assert heard.messages[-1]["type"] == "done"
        assert heard.words("translation") == expected(samples, 16000)[1]
        assert bytes(heard.speech) == expected(samples, 16000)[2]


def test_twin_goes_on_from_what_it_knows(address, catalog):
    samples, rate = read_clip(CLIP)
    heard, ready = run(translate(address, samples, rate, model="echo-mini-streamspeech"))
    assert ready["model"] == "echo-mini-streamspeech"
    pipeline = StreamSpeechPipeline(catalog.find("echo-mini-streamspeech").system, chunk_ms=320)
    outputs, _ = pipeline.step(samples, rate, pipeline.init_state(), final=True)
    words = [word for output in outputs for word in output.translation]
    assert words and heard.words("translation") == " ".join(words)
    assert bytes(heard.speech) == b"".join(encode_speech(o.waveform) for o in outputs)


def test_recomputing_twin_brings_the_same_words_as_its_agent(address, catalog):
    samples, rate = read_clip(CLIP)
    heard, ready = run(translate(address, samples, rate, model="echo-mini-streamspeech:recompute"))
    assert ready["model"] == "echo-mini-streamspeech:recompute"
    baseline = catalog.find("echo-mini-streamspeech:recompute")
    pipeline = catalog.pipeline(baseline, 320, "s2st")
    outputs, state = pipeline.step(samples, rate, pipeline.init_state(), final=True)
    vocabulary = baseline.system.target_vocabulary
    assert heard.words("translation") == vocabulary.decode(state.prefix)
    speech = np.concatenate([output.waveform for output in outputs])
    assert len(heard.waveform) == len(speech)
    assert np.abs(heard.waveform / 32768 - speech).max() < 1e-4


def test_sessions_side_by_side_equal_sessions_alone(address, expected):
    clips = [read_clip(f"test_00{index:02d}1.flac") for index in range(0, 8)]

    async def scenario():
        return await asyncio.gather(*(translate(address, samples, rate) for samples, rate in clips))

    for (samples, rate), (heard, _) in zip(clips, run(scenario()), strict=True):
        transcript, translation, speech = expected(samples, rate)
        assert heard.words("transcript") == transcript
        assert heard.words("translation") == translation
        assert len(heard.speech) == len(speech)
        difference = heard.waveform.astype(int) - np.frombuffer(speech, "<i2")
        assert np.abs(difference).max(initial=0) <= 4  # 1e-4 of full scale


def get(address, path, **headers):
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode(), response.headers


def test_health_models_metrics(address):
    run(translate(address, *read_clip("test_00031.flac")))
    health = json.loads(get(address, "/healthz")[0])
    assert health["status"] == "ok" and health["max_sessions"] == 64
    models = json.loads(get(address, "/v1/models")[0])
    assert models["default"] == "echo-mini"
    names = ["echo-mini", "echo-mini-streamspeech", "echo-mini-streamspeech:recompute"]
    assert [m["name"] for m in models["models"]] == names
    assert [m["recompute"] for m in models["models"]] == [False, False, True]
    assert [m["limit_s"] for m in models["models"]] == [None, None, 120]
    metrics = get(address, "/metrics")[0]
    lines = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(lines['echostream_chunks_total{model="echo-mini"}']) >= 8
    assert float(lines['echostream_lag_ms_count{model="echo-mini"}']) >= 8
    assert float(lines['echostream_speech_seconds_total{model="echo-mini"}']) > 1
    assert float(lines["process_resident_memory_bytes"]) > 1e8


@pytest.mark.parametrize(
    "path",
    ["/../../setup.py", "/..%2f..%2fsetup.py", "//etc/passwd", "/examples/", "/examples/../app.js"],
)
def test_no_path_reaches_the_file_system(address, path):
    host, port = address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request("GET", path)  # sent as it is, unlike urllib's
    answer = connection.getresponse()
    assert answer.status == 404 and answer.read() == b"Not Found"
    connection.close()
