"""Scores: plain beside computation-aware, nan instead of a crash, and tables of all of them."""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
from simuleval.evaluator.evaluator import SentenceLevelEvaluator
from simuleval.evaluator.instance import LogInstance

from echostream.evaluation.simuleval_compat.patch import Patch, mark, unmarked
from echostream.evaluation.simuleval_compat.scorer_choice import change_scorers
from echostream.files import atomic_path

logger = logging.getLogger(__name__)


def _plain_metrics_are_computation_aware() -> bool:
    options = argparse.Namespace(
        score_only=True,
        no_use_ref_len=False,
        computation_aware=True,
        latency_metrics=["AL"],
        quality_metrics=[],
    )
    # from_args ends in cls(...), so a function in place of the class shows what it would build.
    built = SentenceLevelEvaluator.from_args.__func__(lambda *parts: parts, options)
    return built[2]["AL"].computation_aware


def patch_plain_metrics() -> None:
    """Under ``--computation-aware`` the plain metrics must stay plain; 1.1.4 makes both alike."""

    def change(
        quality_scorers: dict[str, Any], latency_scorers: dict[str, Any], args: argparse.Namespace
    ) -> dict[str, Any]:
        for name in args.latency_metrics:
            latency_scorers[name].computation_aware = False
        return quality_scorers

    mark(change_scorers(change))


def _score(name: str, scorer: Callable, instances: dict[int, Any]) -> float:
    try:
        return scorer(instances)
    except statistics.StatisticsError:  # the mean over no utterance at all
        logger.warning("%s: no utterance has what it is computed from; reported as nan", name)
        return float("nan")


def patch_unscorable_latency() -> None:
    """Report nan, not a crash after hours of inference, when no utterance can be scored."""

    def latency(self: SentenceLevelEvaluator) -> dict[str, float]:
        return {
            name: _score(name, scorer, self.instances)
            for name, scorer in self.latency_scorers.items()
        }

    SentenceLevelEvaluator.latency = property(mark(latency))


def _write_table(table: pandas.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False)


def utterance_table(evaluator: SentenceLevelEvaluator) -> pandas.DataFrame:
    """Every latency metric of every utterance under its own name, ATD and ``_CA`` included."""
    rows = []
    level = logging.getLogger("simuleval.latency_scorer").level
    logging.getLogger("simuleval.latency_scorer").setLevel(logging.ERROR)
    try:
        for instance in evaluator.instances.values():
            kept = dict(instance.metrics)
            row = {"index": instance.index}
            for name, scorer in evaluator.latency_scorers.items():
                try:
                    row[name] = scorer({0: instance})
                except statistics.StatisticsError:
                    row[name] = float("nan")
            instance.metrics = kept
            rows.append(row)
    finally:
        logging.getLogger("simuleval.latency_scorer").setLevel(level)
    return pandas.DataFrame(rows).round(3)


def patch_utterance_table() -> None:
    """Add ``utterances.tsv``; in ``metrics.tsv`` each ``_CA`` value overwrites its plain one."""
    original = SentenceLevelEvaluator.dump_metrics

    def dump_metrics(self: SentenceLevelEvaluator) -> None:
        original(self)
        if self.output and isinstance(self.instances, dict):
            untyped = any(isinstance(item, LogInstance) for item in self.instances.values())
            if not untyped:
                _write_table(utterance_table(self), self.output / "utterances.tsv")

    SentenceLevelEvaluator.dump_metrics = mark(dump_metrics)


def patch_score_only_files() -> None:
    """Let ``--score-only`` leave its scores in the folder; SimulEval only prints them."""
    original = SentenceLevelEvaluator.results.fget

    def results(self: SentenceLevelEvaluator) -> pandas.DataFrame:
        table = original(self)
        if self.score_only and self.output:
            _write_table(table, self.output / "scores.tsv")
            self.dump_metrics()
        return table

    SentenceLevelEvaluator.results = property(mark(results))


PATCHES = (
    Patch(patch_plain_metrics, _plain_metrics_are_computation_aware),
    Patch(patch_unscorable_latency, unmarked(SentenceLevelEvaluator, "latency")),
    Patch(patch_utterance_table, unmarked(SentenceLevelEvaluator, "dump_metrics")),
    Patch(patch_score_only_files, unmarked(SentenceLevelEvaluator, "results")),
)
