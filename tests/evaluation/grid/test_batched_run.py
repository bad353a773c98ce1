"""A test set several utterances at a time against SimulEval's own loop."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echostream.evaluation.grid import simuleval_main
from echostream.evaluation.grid.definition import load_grid
from echostream.evaluation.grid.runner import run_grid
from echostream.evaluation.grid_commands import run_evaluate
from echostream.synthetic import synthetic_clip
from tests.evaluation.conftest import ROOT, build_corpus
from tests.evaluation.grid.grids import write_grid

SECONDS = (1.3, 2.6, 0.9, 1.9, 0.2)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A list of made-up utterances of different lengths, with references beside it."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, seconds in enumerate(SECONDS):
        soundfile.write(
            folder / f"{number}.wav", synthetic_clip(seconds, 16000, seed=number), 16000
        )
    (folder / "list.txt").write_text("".join(f"{folder / f'{i}.wav'}\n" for i in range(5)))
    (folder / "target.txt").write_text("some words\n" * 5)
    return folder / "list.txt"


@pytest.fixture
def simuleval(monkeypatch: pytest.MonkeyPatch, model_dir: Path, sources: Path):
    """Runs an agent over the sources; returns log lines, waveforms and trace lines."""
    import simuleval.utils.agent
    from simuleval.evaluator.evaluator import SentenceLevelEvaluator

    from echostream.evaluation import simuleval_compat

    simuleval_compat.apply()
    own_loop = SentenceLevelEvaluator.__call__

    def run(output: Path, agent: str, batch: int, *more: str):
        simuleval.utils.agent.EVALUATION_SYSTEM_LIST.clear()
        monkeypatch.setattr(SentenceLevelEvaluator, "__call__", own_loop)
        arguments = [
            *(("--batch", str(batch)) if batch > 1 else ()),
            *("--agent", str(ROOT / "agents" / f"{agent}.py"), "--model-dir", str(model_dir)),
            *("--source", str(sources), "--target", str(sources.parent / "target.txt")),
            *("--output", str(output), "--source-segment-size", "320", "--no-scoring"),
            *(
                "--no-progress-bar",
                "--max-len",
                "6",
                "--trace",
                str(output.parent / f"{output.name}.jsonl"),
                *more,
            ),
        ]
        monkeypatch.setattr(sys, "argv", ["simuleval", *arguments])
        simuleval_main.main()
        lines = [json.loads(line) for line in (output / "instances.log").open()]
        waves = [soundfile.read(line["prediction"])[0] for line in lines if line.get("durations")]
        trace = [json.loads(line) for line in (output.parent / f"{output.name}.jsonl").open()]
        return lines, waves, trace

    return run


@pytest.mark.parametrize("agent", ["echostream_s2st", "echostream_s2tt"])
def test_batches_leave_what_single_utterances_leave(agent, simuleval, tmp_path: Path) -> None:
    one, one_waves, one_trace = simuleval(tmp_path / "one", agent, 1)
    three, three_waves, three_trace = simuleval(tmp_path / "three", agent, 3)
    assert [line["index"] for line in three] == [0, 1, 2, 3, 4]
    assert any(line["delays"] for line in one)
    for a, b in zip(one, three, strict=True):
        assert b["elapsed"] == []
        # Folder and time differ.
        same = a.keys() - {"elapsed"} - ({"prediction"} if "durations" in a else set())
        assert a.keys() == b.keys() and all(a[key] == b[key] for key in same)
    for a, b in zip(one_waves, three_waves, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    by_stream = [
        [{key: value for key, value in line.items() if key != "compute_ms"} for line in trace]
        for trace in (one_trace, sorted(three_trace, key=lambda line: line["index"]))
    ]
    assert by_stream[0] == by_stream[1]


def test_a_batch_goes_on_where_a_run_ended(simuleval, tmp_path: Path) -> None:
    whole, _, _ = simuleval(tmp_path / "run", "echostream_s2tt", 1)
    log = tmp_path / "run" / "instances.log"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    again, _, _ = simuleval(tmp_path / "run", "echostream_s2tt", 3, "--continue-unfinished")
    assert [line["index"] for line in again] == [0, 1, 2, 3, 4]
    assert [line["prediction"] for line in again] == [line["prediction"] for line in whole]


def test_batches_say_nothing_about_time(simuleval, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need utterances one at a time, got a batch of 2"):
        simuleval(tmp_path / "run", "echostream_s2tt", 2, "--computation-aware")
    corpus = build_corpus(tmp_path / "corpus", [[(1, 0), (1, 320)]], ["word"])
    grid = load_grid(write_grid(corpus))
    with pytest.raises(ValueError, match="drop --batch 4"):
        run_grid(grid, batch=4)


def test_batch_sizes_are_checked() -> None:
    from argparse import Namespace

    with pytest.raises(ValueError, match="--batch must be at least 1, got 0"):
        run_evaluate(Namespace(jobs=1, batch=0, grid=Path("x"), output=None))
