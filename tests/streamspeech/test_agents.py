"""The StreamSpeech agents under SimulEval's protocol."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from simuleval.data.segments import SpeechSegment

from echostream.agents.streamspeech_asr import StreamSpeechASRAgent
from echostream.agents.streamspeech_s2st import StreamSpeechS2STAgent
from echostream.agents.streamspeech_s2tt import StreamSpeechS2TTAgent
from echostream.audio import CMVN
from echostream.checkpoint import System, save_model_dir
from echostream.config import preset
from echostream.models.echostream_model import seeded_model
from echostream.samples import read_audio
from echostream.streamspeech.convert import read_streamspeech
from echostream.text import Vocabulary
from tests.reference.recordings import SUBSET, Recording, clip

AGENTS = {
    "s2st": StreamSpeechS2STAgent,
    "s2tt": StreamSpeechS2TTAgent,
    "asr": StreamSpeechASRAgent,
}


@pytest.fixture(scope="module")
def recording(open_recording) -> Recording:
    return open_recording(SUBSET)


@pytest.fixture(scope="module")
def model_dir(recording, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "model"
    save_model_dir(path, read_streamspeech(recording.checkpoint, recording.config))
    return path


def build(task: str, model_dir: Path, *options: str, chunk_ms: int = 320):
    parser = argparse.ArgumentParser()
    AGENTS[task].add_args(parser)
    args = parser.parse_args(
        ["--model-dir", str(model_dir), "--source-segment-size", str(chunk_ms), *options]
    )
    return AGENTS[task](args)


def play(agent, samples: np.ndarray, rate: int, chunk_ms: int = 320) -> list:
    """Feed a clip as SimulEval does; returns what each call put out."""
    size = rate * chunk_ms // 1000
    pushed = []
    for start in range(0, len(samples), size):
        segment = SpeechSegment(
            content=samples[start : start + size].tolist(),
            sample_rate=rate,
            finished=start + size >= len(samples),
        )
        pushed.append(agent.pushpop(segment))
    return pushed


@pytest.mark.parametrize("task", list(AGENTS))
def test_recomputing_agent_writes_what_was_recorded(task, recording, model_dir, tmp_path):
    trace = tmp_path / "trace.jsonl"
    extra = tmp_path / "extra"
    agent = build(
        *(task, model_dir, "--recompute", "--trace", str(trace)),
        *("--extra-output-dir", str(extra)),
    )
    # The recorded clip twice: what an agent traces of a second utterance has its own number.
    runs = [run for run in recording.runs(task) if run["chunk_ms"] == 320] * 2
    assert len(runs) == 2
    for run in runs:
        outputs = play(agent, *read_audio(clip(run["wav"])))
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        for output, step in zip(outputs, run["steps"], strict=True):
            if task == "s2st":
                assert len(output.content or []) == step["write"]
            else:
                assert (output.content or "") == (step["text"] or "")
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [line["index"] for line in lines] == [
        index for index, run in enumerate(runs) for _ in run["steps"]
    ]
    assert all(
        len((extra / name).read_text().splitlines()) == len(runs)
        for name in ("asr.txt", "st.txt", "unit.txt")
    )


@pytest.mark.parametrize("task", list(AGENTS))
def test_incremental_agent_runs_and_leaves_nothing_behind(task, model_dir, clip_48k):
    agent = build(task, model_dir)
    samples, rate = clip_48k
    contents = []
    for _ in range(2):
        outputs = play(agent, samples, rate)
        assert outputs[-1].finished
        contents.append([output.content for output in outputs])
    assert contents[0] == contents[1]
    assert any(contents[0])


def test_beam_and_recompute_exclude_each_other(model_dir):
    with pytest.raises(ValueError, match="beam of 1 only"):
        build("s2st", model_dir, "--recompute", "--beam", "4")


def test_max_len_and_recompute_exclude_each_other(model_dir):
    with pytest.raises(ValueError, match="got --max-len 3"):
        build("s2tt", model_dir, "--recompute", "--max-len", "3")
    assert build("s2tt", model_dir, "--max-len", "3").pipeline.policy_config.max_len == 3


def test_other_encoders_are_refused(tmp_path):
    config = preset("tiny")
    words = Vocabulary([f"w{i}" for i in range(60)])
    system = System(config, seeded_model(config), words, words, CMVN.identity(80))
    save_model_dir(tmp_path / "model", system)
    with pytest.raises(ValueError, match="chunk_conformer encoder"):
        build("s2tt", tmp_path / "model")
