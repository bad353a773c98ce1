"""The registry of metrics: what follows from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from echostream.evaluation.runs import comparison, metric, run_metrics, tables
from echostream.evaluation.runs.run_folder import load_run
from echostream.evaluation.simuleval_compat import quality
from echostream.evaluation.text_scores import TEXT_SCORES


def test_every_figure_has_one_column() -> None:
    keys = [column.key for column in run_metrics.COLUMNS]
    assert len(keys) == len(set(keys))
    shown = {axis.plain for axis in run_metrics.LATENCY_AXES}
    assert shown <= set(keys) and {"ASR_BLEU", "WER"} <= set(run_metrics.QUALITY_NAMES)


def test_curves_show_quality_alone() -> None:
    run_metrics.check_quality(None)
    for name in run_metrics.QUALITY_NAMES:
        run_metrics.check_quality(name)
    with pytest.raises(ValueError, match="one of ASR_BLEU, .*, got 'AL'"):
        run_metrics.check_quality("AL")


def test_scores_of_texts_are_metrics_of_simuleval() -> None:
    for one in TEXT_SCORES:
        if one.name != "BLEU":  # SimulEval's own
            scorer = quality.SCORERS[one.name]()
            assert scorer.score(["a b"], ["a c"]) == one.score(["a b"], ["a c"])


def test_a_metric_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the registry; its column, and its figure in JSON, come by themselves."""
    count = metric.Metric(
        lambda run: {"Count": float(len(run.utterances))}, (metric.Column("Count", "How many"),)
    )
    monkeypatch.setattr(comparison, "METRICS", (*run_metrics.METRICS, count))
    monkeypatch.setattr(tables, "COLUMNS", (*run_metrics.COLUMNS, *count.columns))
    line = {
        "index": 0,
        "prediction": "a b",
        "delays": [320.0, 640.0],
        "elapsed": [330.0, 660.0],
        "prediction_length": 2,
        "reference": "a b",
        "source": ["a.wav"],
        "source_length": 1000.0,
    }
    (tmp_path / "instances.log").write_text(json.dumps(line) + "\n")
    results = comparison.compare_runs([load_run(tmp_path)])
    assert "How many |" in tables.markdown_table(results)
    assert '"Count": 1.0' in tables.json_table(results)
