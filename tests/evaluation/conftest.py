"""A small SimulEval test bed: scripted speech agents, generated sources, runs in this process."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.forks import Forked

ROOT = Path(__file__).resolve().parents[2]

S2S_METRICS = (
    "AL AP DAL StartOffset EndOffset LAAL ATD NumChunks "
    "DiscontinuitySum DiscontinuityAve DiscontinuityNum RTF"
).split()

# Plays a script: per utterance a list of [compute ms, samples to write]. The clock is the
# script's, so computation-aware figures are exact.
SPEECH_AGENT = r"""
import json
import time
from pathlib import Path

import simuleval.evaluator.instance as instance_module
from echostream.evaluation import simuleval_compat
from simuleval.agents import SpeechToSpeechAgent
from simuleval.agents.actions import ReadAction, WriteAction
from simuleval.data.segments import SpeechSegment
from simuleval.utils import entrypoint

simuleval_compat.apply()
SCRIPT = json.loads((Path(__file__).parent / "script.json").read_text())


class Clock:
    now = 1000.0

    @classmethod
    def time(cls):
        return cls.now


instance_module.time = Clock


@entrypoint
class Scripted(SpeechToSpeechAgent):
    def __init__(self, args):
        self.step = 0
        self.utterance = -1
        self.wait, self.pace, self.trace = args.wait, args.pace, args.trace
        if self.trace:
            Path(self.trace).write_text("")
        super().__init__(args)

    @staticmethod
    def add_args(parser):
        parser.add_argument("--wait", type=float, default=0.0, help="real seconds per decision")
        parser.add_argument("--pace", type=float, default=1.0, help="factor on compute times")
        parser.add_argument("--trace", default=None)

    def reset(self):
        super().reset()
        self.step = 0

    def policy(self, states=None):
        # Utterances are told apart by their length, so that resumed runs find their place.
        states = states or self.states
        self.utterance += self.step == 0
        steps = self.lookup(states)
        compute, samples = steps[self.step % len(steps)]
        self.step += 1
        Clock.now += self.pace * compute / 1000
        time.sleep(self.wait)
        finished = states.source_finished
        if self.trace:
            words = " ".join(f"w{number}" for number in range(self.step))
            line = {"index": self.utterance, "source_ms": 320.0 * self.step, "translation": words}
            line.update(samples=samples, compute_ms={"mt": compute})
            with open(self.trace, "a") as file:
                file.write(json.dumps(line) + "\n")
        if not samples and not finished:
            return ReadAction()
        content = [0.01] * samples
        return WriteAction(
            SpeechSegment(content=content, sample_rate=16000, finished=finished),
            finished=finished,
        )

    def lookup(self, states):
        return SCRIPT[int(round(states.source[0] * 100))]
"""

TEXT_AGENT = '''
from echostream.evaluation import simuleval_compat
from simuleval.agents import SpeechToTextAgent
from simuleval.agents.actions import ReadAction, WriteAction
from simuleval.utils import entrypoint

simuleval_compat.apply()


@entrypoint
class Words(SpeechToTextAgent):
    """Writes one word per chunk, marked as SentencePiece marks it when asked to."""

    @staticmethod
    def add_args(parser):
        parser.add_argument("--pieces", action="store_true")

    def __init__(self, args):
        self.pieces = args.pieces
        super().__init__(args)

    def policy(self, states=None):
        count = len(self.states.source) // 5120
        finished = self.states.source_finished
        if finished:
            return WriteAction("▁en d" if self.pieces else "end", finished=True)
        return WriteAction(f"▁wo rd{count}" if self.pieces else f"word{count}", finished=False)
'''


@dataclass
class Corpus:
    """Sources and references on disk, with an agent and the script it plays."""

    folder: Path
    agent: Path
    sources: list[Path] = field(default_factory=list)

    @property
    def source_list(self) -> Path:
        return self.folder / "source.txt"

    @property
    def target_list(self) -> Path:
        return self.folder / "target.txt"

    def arguments(self, output: Path, *more: str, latency: list[str] | None = None) -> list[str]:
        return [
            "--agent",
            str(self.agent),
            "--source",
            str(self.source_list),
            "--target",
            str(self.target_list),
            "--output",
            str(output),
            "--source-segment-size",
            "320",
            "--computation-aware",
            "--latency-metrics",
            *(latency or S2S_METRICS),
            *more,
        ]


def build_corpus(
    folder: Path,
    scripts: list[list[tuple[int, int]]],
    references: list[str],
    agent: str = SPEECH_AGENT,
) -> Corpus:
    """One source per script, 320 ms per step; its level tells the agent which script to play."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(folder, folder / "agent.py")
    corpus.agent.write_text(agent, encoding="utf-8")
    (folder / "script.json").write_text(json.dumps(scripts))
    for number, steps in enumerate(scripts):
        path = folder / f"source{number}.wav"
        # One step per 320 ms, the last one shorter, so that its flag arrives with its samples.
        samples = np.full(5120 * len(steps) - 100, number / 100, dtype=np.float32)
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        corpus.sources.append(path)
    corpus.source_list.write_text("".join(f"{path}\n" for path in corpus.sources))
    corpus.target_list.write_text("".join(f"{text}\n" for text in references))
    return corpus


def run_in_process(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ``simuleval`` command does, without the start of a second interpreter."""
    import simuleval.cli
    import simuleval.evaluator.instance as instance_module
    import simuleval.utils.agent

    from echostream.evaluation import simuleval_compat

    simuleval_compat.apply()
    simuleval.utils.agent.EVALUATION_SYSTEM_LIST.clear()
    monkeypatch.setattr(sys, "argv", ["simuleval", "--no-progress-bar", *arguments])
    clock = instance_module.time
    try:
        simuleval.cli.main()
    finally:
        instance_module.time = clock


def run_command(arguments: list[str], **environment: str) -> str:
    """The plain ``simuleval`` command, in a process of its own; returns what it printed."""
    return Forked("simuleval.cli:main", arguments, ROOT, environment).finish()


@pytest.fixture
def small_corpus(tmp_path: Path) -> Corpus:
    """Three utterances: short, long with gaps, and one that says nothing."""
    scripts = [
        [(10, 0), (20, 8000), (5, 1600)],
        [(40, 1600), (90, 0), (5, 0), (250, 16000), (40, 0), (5, 320), (90, 0), (40, 4800)],
        [(10, 0), (20, 0), (30, 0)],
    ]
    references = ["one two three", "a b c d e f g h", "nothing at all"]
    return build_corpus(tmp_path / "corpus", scripts, references)


@pytest.fixture(autouse=True)
def _quiet_logs() -> None:
    logging.getLogger("simuleval").setLevel(logging.WARNING)
