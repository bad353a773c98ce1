"""Latency of a finished run: SimulEval's figures, and what they leave out.

All times are in milliseconds from the start of the source.
"""

from __future__ import annotations

import copy
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import simuleval.evaluator.scorers.latency_scorer as latency_module

from echostream.evaluation.runs.logged_instances import speech_layout
from echostream.evaluation.runs.metric import Column, LatencyAxis, Metric
from echostream.evaluation.runs.run_folder import RunFolder, Utterance

METRICS = ("AL", "LAAL", "AP", "DAL", "ATD", "StartOffset", "EndOffset", "NumChunks", "RTF")
SPEECH_METRICS = ("DiscontinuitySum", "DiscontinuityAve", "DiscontinuityNum")
# ATD adds each segment's own compute to its start, so there compute overlaps the source already.
FIXED_METRICS = ("AL", "LAAL", "DAL", "StartOffset")
NAN = float("nan")


def overlapped_emissions(delays: Sequence[float], elapsed: Sequence[float]) -> list[float]:
    """When each segment was out if compute runs while the source comes in.

    SimulEval's ``elapsed`` is the source position plus *all* compute since the start, as if the
    source stood still while the system computes, so it grows with the length of the utterance
    even for a system that keeps up. Here a segment's compute starts when its source is there and
    the compute before it is done: ``out[i] = max(delay[i], out[i-1]) + compute[i]``. Compute of
    reading steps is charged to the next segment written, so this is an upper bound.
    """
    emissions: list[float] = []
    previous_out = previous_total = 0.0
    for delay, raw in zip(delays, elapsed, strict=True):
        total = raw - delay
        out = max(delay, previous_out) + max(total - previous_total, 0.0)
        emissions.append(out)
        previous_out, previous_total = out, total
    return emissions


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else NAN


def _score(name: str, computation_aware: bool, utterances: Sequence[Utterance]) -> float:
    scorer = latency_module.LATENCY_SCORERS_DICT[name](
        computation_aware=computation_aware, use_ref_len=True
    )
    logger = logging.getLogger("simuleval.latency_scorer")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns once per silent utterance and metric
    try:
        return float(scorer(dict(enumerate(utterances))))
    except statistics.StatisticsError:
        return NAN
    finally:
        logger.setLevel(level)


def _overlapped(utterances: Sequence[Utterance]) -> list[Utterance]:
    changed = []
    for item in utterances:
        item = copy.copy(item)
        item.metrics = {}
        item.elapsed = overlapped_emissions(item.delays, item.elapsed)
        changed.append(item)
    return changed


@dataclass(frozen=True)
class BacklogPoint:
    """Speech still to be played right after a segment was written."""

    time_ms: float
    queued_ms: float


def backlog(times: Sequence[float], durations: Sequence[float]) -> list[BacklogPoint]:
    """Queue of unplayed speech after each write."""
    intervals, _ = speech_layout(list(times), list(durations))
    return [
        BacklogPoint(time, start + duration - time)
        for time, (start, duration) in zip(times, intervals, strict=True)
    ]


def _speech_extras(run: RunFolder) -> dict[str, float]:
    spoken = [item for item in run.utterances if item.delays]
    worst = [
        max(point.queued_ms for point in backlog(item.delays, item.durations)) for item in spoken
    ]
    extras = {"Backlog": _mean(worst), "BacklogMax": max(worst, default=NAN)}
    if run.has_elapsed:
        ends = []
        for item in spoken:
            out = overlapped_emissions(item.delays, item.elapsed)
            start, duration = speech_layout(out, item.durations)[0][-1]
            ends.append(start + duration - item.source_length)
        extras["EndOffset_CA_FIXED"] = _mean(ends)
    return extras


def compute_rtf(run: RunFolder) -> float:
    """Compute time until the last write over source time, over the whole test set."""
    spoken = [item for item in run.utterances if item.delays]
    source = sum(item.source_length for item in spoken)
    if not run.has_elapsed or not source:
        return NAN
    return sum(item.elapsed[-1] - item.delays[-1] for item in spoken) / source


def latency_scores(run: RunFolder) -> dict[str, float]:
    """Every latency figure of a run.

    Plain and ``_CA`` figures are SimulEval's own scorers'. ``_CA_FIXED`` are the same scorers on
    :func:`overlapped_emissions`. Where the log has lost ``elapsed``, the ``_CA`` figures are the
    ones in the folder's ``scores.tsv``, or nan when utterances were left out of the run.
    """
    names = METRICS + (SPEECH_METRICS if run.is_speech else ())
    scores = {name: _score(name, False, run.utterances) for name in names}
    if run.has_elapsed:
        scores.update({f"{name}_CA": _score(name, True, run.utterances) for name in names})
        fixed = _overlapped(run.utterances)
        scores.update({f"{name}_CA_FIXED": _score(name, True, fixed) for name in FIXED_METRICS})
    else:
        for name in names:
            value = NAN if run.is_reduced else run.reported.get(f"{name}_CA", NAN)
            scores[f"{name}_CA"] = value if isinstance(value, float) else NAN
    scores["ComputeRTF"] = compute_rtf(run)
    if run.is_speech:
        scores.update(_speech_extras(run))
    return scores


LATENCY = Metric(
    latency_scores,
    (
        Column("AL", "AL"),
        Column("AL_CA", "AL CA raw"),
        Column("AL_CA_FIXED", "AL CA overlapped"),
        Column("LAAL", "LAAL"),
        Column("ATD", "ATD"),
        Column("ATD_CA", "ATD CA"),
        Column("StartOffset", "Start offset"),
        Column("EndOffset", "End offset"),
        Column("NumChunks", "Segments", 1),
        Column("DiscontinuitySum", "Gaps, sum"),
        Column("Backlog", "Backlog"),
        Column("RTF", "Playback / source", 2),
        Column("ComputeRTF", "Compute RTF", 3),
    ),
    axes=(
        LatencyAxis("AL", "AL_CA", "AL_CA_FIXED", "Average Lagging, AL (s)"),
        LatencyAxis("ATD", "ATD_CA", None, "Average Token Delay, ATD (s)"),
    ),
)
