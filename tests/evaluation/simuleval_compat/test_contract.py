"""The scripted runs must score exactly as StreamSpeech's SimulEval fork scores them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.evaluation.conftest import S2S_METRICS, SHARED, run_command

METRICS = SHARED / "reference" / "metrics"
RUNS = sorted(path.parent for path in METRICS.glob("*/script.json"))


@pytest.mark.skipif(not RUNS, reason="reference runs are not on this machine")
@pytest.mark.parametrize("reference", RUNS, ids=lambda path: path.name)
def test_scores_equal_the_fork_to_the_last_digit(reference: Path, tmp_path: Path) -> None:
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
    agent.write_text(
        "from echostream.evaluation import simuleval_compat\nsimuleval_compat.apply()\n"
        + (METRICS / "scripted_agent.py").read_text()
    )
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
