"""The scripted runs must score exactly as StreamSpeech's SimulEval fork scores them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.evaluation.conftest import S2S_METRICS, run_command
from tests.reference.recordings import DATA

# Plays a recorded script: per step how long it computes, by a clock of its own, and what it writes.
PLAYER = """
import json
import os
from pathlib import Path

import simuleval.evaluator.instance as instance_module
from simuleval.agents import SpeechToSpeechAgent
from simuleval.agents.actions import ReadAction, WriteAction
from simuleval.data.segments import SpeechSegment
from simuleval.utils import entrypoint

from echostream.evaluation import simuleval_compat

simuleval_compat.apply()
UTTERANCES = json.loads(Path(os.environ["SCRIPT"]).read_text())["utterances"]


class Clock:
    now_s = 1000.0

    @classmethod
    def time(cls):
        return cls.now_s


instance_module.time = Clock


@entrypoint
class Player(SpeechToSpeechAgent):
    utterances, steps = iter(UTTERANCES), None

    def reset(self):
        super().reset()
        self.steps = None

    def policy(self, states=None):
        if self.steps is None:
            self.steps = iter(next(self.utterances)["steps"])
        step = next(self.steps)
        Clock.now_s += step["compute_ms"] / 1000
        if not step["write_samples"]:
            return ReadAction()
        finished = self.states.source_finished
        content = [0.01] * step["write_samples"]
        segment = SpeechSegment(content=content, sample_rate=16000, finished=finished)
        return WriteAction(segment, finished=finished)
"""


@pytest.mark.parametrize("run", ["a", "b"])
def test_scores_equal_the_fork_to_the_last_digit(run: str, tmp_path: Path) -> None:
    reference = DATA / "metrics" / run
    script = json.loads((reference / "script.json").read_text())
    sources = []
    for number, utterance in enumerate(script["utterances"]):
        path = tmp_path / f"{number}.wav"
        rate = script["source_sample_rate"]
        soundfile.write(path, np.zeros(utterance["source_ms"] * rate // 1000), rate)
        sources.append(f"{path}\n")
    (tmp_path / "source.txt").write_text("".join(sources))
    (tmp_path / "target.txt").write_text(
        "".join(utterance["reference"] + "\n" for utterance in script["utterances"])
    )
    agent = tmp_path / "agent.py"
    agent.write_text(PLAYER)
    output = tmp_path / "output"
    run_command(
        [
            *("--agent", str(agent), "--output", str(output), "--computation-aware"),
            *("--source", str(tmp_path / "source.txt"), "--target", str(tmp_path / "target.txt")),
            *("--source-segment-size", str(script["chunk_ms"]), "--quality-metrics", "BLEU"),
            *("--latency-metrics", *S2S_METRICS),
        ],
        SCRIPT=str(reference / "script.json"),
    )
    for name in ("scores", "metrics"):
        expected = (reference / f"expected_{name}.tsv").read_text()
        assert (output / f"{name}.tsv").read_text() == expected
