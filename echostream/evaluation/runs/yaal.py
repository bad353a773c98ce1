"""YAAL, LongYAAL and the degenerate-policy test, all computed by the ``omnisteval`` package.

They are defined on words. Text output has them. For speech output the transcript's words are
spread evenly over the speech as it is played, which needs no aligner but is an estimate; those
figures carry the suffix ``_EST``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from echostream.evaluation.runs.logged_instances import LoggedSpeechToSpeech, speech_layout
from echostream.evaluation.runs.metric import Column, Metric
from echostream.evaluation.runs.run_folder import RunFolder, Utterance
from echostream.evaluation.runs.run_latency import overlapped_emissions

logger = logging.getLogger(__name__)


def is_available() -> bool:
    """Whether ``omnisteval`` is installed."""
    try:
        import omnisteval  # noqa: F401
    except ImportError:
        return False
    return True


def spread_words(count: int, times: list[float], durations: list[float]) -> list[tuple[int, float]]:
    """Spread words evenly over speech as it is played.

    Returns:
        For each word the piece in which it ends and its end on the time axis, ms.
    """
    intervals, _ = speech_layout(times, durations)
    total = sum(durations)
    ends: list[tuple[int, float]] = []
    piece, before = 0, 0.0
    for number in range(1, count + 1):
        position = total * number / count
        while piece < len(durations) - 1 and before + durations[piece] < position:
            before += durations[piece]
            piece += 1
        ends.append((piece, intervals[piece][0] + min(position - before, durations[piece])))
    return ends


def word_emissions(item: Utterance, text: str, computation_aware: bool) -> list[float] | None:
    """When each word of ``text`` was out; None if that cannot be told."""
    if not item.delays or (computation_aware and len(item.elapsed) != len(item.delays)):
        return None
    times = overlapped_emissions(item.delays, item.elapsed) if computation_aware else item.delays
    count = len(text.split())
    if isinstance(item, LoggedSpeechToSpeech):
        return [end for _, end in spread_words(count, list(times), item.durations)]
    # Subword output has more delays than words, and the log does not say which belong together.
    return list(times) if count == len(times) else None


def _instances(run: RunFolder, texts: list[str]) -> list[Any]:
    from omnisteval import Instance

    return [
        Instance(
            prediction=text,
            reference=item.reference,
            index=item.index,
            source_length=item.source_length,
            emission_cu=word_emissions(item, text, False),
            emission_ca=word_emissions(item, text, True),
        )
        for item, text in zip(run.utterances, texts, strict=True)
    ]


def yaal_scores(run: RunFolder) -> dict[str, float]:
    """YAAL of utterances, plain and with overlapping compute, and the degenerate-policy test.

    Empty without ``omnisteval``, or without transcripts of speech output.
    """
    texts = run.hypotheses()
    if texts is None or not is_available():
        return {}
    from omnisteval.scoring import ShortformDegeneracyScorer, YAALScorer

    instances = _instances(run, texts)
    suffix = "_EST" if run.is_speech else ""
    degeneracy = ShortformDegeneracyScorer()(instances)
    scores = {
        f"YAAL{suffix}": YAALScorer()(instances),
        f"YAAL_CA_FIXED{suffix}": YAALScorer(computation_aware=True)(instances),
        f"SWF{suffix}": degeneracy["swf"],
        f"EFSW{suffix}": degeneracy["efsw"],
    }
    if degeneracy["degenerate_policy"]:
        logger.warning(
            "%s: likely a degenerate policy: %.0f %% of the words come before the end of the "
            "source, where the lag would let %.0f %%",
            run.name,
            degeneracy["swf"],
            degeneracy["efsw"],
        )
        scores[f"Degenerate{suffix}"] = 1.0
    else:
        scores[f"Degenerate{suffix}"] = 0.0
    return scores


def long_yaal_scores(run: RunFolder, segmentation: Path, references: Path) -> dict[str, float]:
    """LongYAAL and re-segmented BLEU of unsegmented recordings.

    Args:
        run: one utterance per recording.
        segmentation: YAML or JSON list of ``wav``, ``offset`` and ``duration`` in seconds.
        references: one reference per segment.

    Raises:
        ImportError: ``omnisteval`` is not installed.
        ValueError: the run does not have the recordings of the segmentation.
    """
    try:
        from omnisteval import Word, evaluate_instances, resegment
        from omnisteval.data import load_reference
    except ImportError as error:
        raise ImportError(
            "LongYAAL needs the package omnisteval: pip install 'echostream[eval]'"
        ) from error
    words, segments, sentences = load_reference(
        str(segmentation), str(references), char_level=False, offset_delays=False
    )
    recordings = list(dict.fromkeys(Path(segment["wav"]).stem for segment in segments))
    texts = run.hypotheses()
    if texts is None:
        raise ValueError(f"{run.path}: speech output without transcripts has no LongYAAL")
    spoken: dict[str, list[Any]] = {}
    for item, text in zip(run.utterances, texts, strict=True):
        plain = word_emissions(item, text, False) or []
        if len(plain) != len(text.split()):
            raise ValueError(
                f"{run.path}: utterance {item.index} has {len(text.split())} words but not one "
                "delay for each, so LongYAAL is not defined"
            )
        aware: Sequence[float | None] = word_emissions(item, text, True) or [None] * len(plain)
        spoken[item.source_path.stem] = [
            Word(word, emission_cu=cu, emission_ca=ca)
            for word, cu, ca in zip(text.split(), plain, aware, strict=True)
        ]
    if set(spoken) != set(recordings):
        odd = sorted(set(spoken) ^ set(recordings))
        raise ValueError(
            f"{run.path} and {segmentation} are not about the same recordings, first: {odd[0]!r}"
        )
    instances, _ = resegment(words, [spoken[name] for name in recordings], segments, sentences)
    scores, _, _ = evaluate_instances(instances, is_longform=True, fix_emission_ca_flag=True)
    suffix = "_EST" if run.is_speech else ""
    return {
        f"LongYAAL{suffix}": scores.get("long_yaal", float("nan")),
        f"LongYAAL_CA_FIXED{suffix}": scores.get("ca_long_yaal", float("nan")),
        "LongBLEU": scores["bleu"],
    }


YAAL = Metric(
    yaal_scores,
    (
        Column("YAAL", "YAAL"),
        Column("YAAL_EST", "YAAL (estimated)"),
        Column("LongYAAL", "LongYAAL"),
        Column("LongYAAL_EST", "LongYAAL (estimated)"),
    ),
)
