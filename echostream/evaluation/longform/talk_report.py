"""The table of talks: systems side by side, each beside the same sentences one at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from echostream.evaluation.longform.alignment import SpokenSentence
from echostream.evaluation.longform.spoken import Recognition, recognize_speech
from echostream.evaluation.longform.talk_figure import plot_talk
from echostream.evaluation.longform.talk_scores import (
    average_lagging,
    check_same_sentences,
    score_talks,
    talk_names,
)
from echostream.evaluation.recognizers.recognizer import recognizer_name
from echostream.evaluation.runs.run_folder import RunFolder
from echostream.evaluation.significance import Significance, paired_bootstrap, significance_table
from echostream.files import write_atomically

# (key, heading, decimals)
ROWS = (
    ("bleu", "text BLEU, re-segmented", 1),
    ("alone_bleu", "text BLEU, one at a time", 1),
    ("bleu_ratio", "ratio to it", 3),
    ("word_ratio", "words out / words of the reference", 3),
    ("sentences", "sentences", 0),
    ("ends", "sentences that the system ended", 0),
    ("long_yaal_ms", "LongYAAL, ms", 0),
    ("long_yaal_ca_ms", "LongYAAL with computation, ms", 0),
    ("alone_long_yaal_ms", "LongYAAL, one at a time, ms", 0),
    ("alone_al_ms", "AL of the text, one at a time, ms", 0),
    ("asr_bleu", "ASR-BLEU, re-segmented", 1),
    ("alone_asr_bleu", "ASR-BLEU, one at a time", 1),
    ("asr_bleu_ratio", "ratio to it", 3),
    ("asr_word_ratio", "words recognised / words of the reference", 3),
    ("asr_long_yaal_ms", "LongYAAL of the speech, ms", 0),
    ("asr_long_yaal_ca_ms", "LongYAAL of the speech with computation, ms", 0),
    ("alone_asr_long_yaal_ms", "LongYAAL of the speech, one at a time, ms", 0),
    ("first_tenth_bleu", "text BLEU, first tenth", 1),
    ("last_tenth_bleu", "text BLEU, last tenth", 1),
    ("asr_first_tenth_bleu", "ASR-BLEU, first tenth", 1),
    ("asr_last_tenth_bleu", "ASR-BLEU, last tenth", 1),
    ("first_tenth_ms", "compute per decision, first tenth, ms", 1),
    ("last_tenth_ms", "compute per decision, last tenth, ms", 1),
    ("highest_backlog_ms", "highest backlog, ms", 0),
    ("final_backlog_ms", "backlog at the end, ms", 0),
)

Talks = Mapping[str, Sequence[SpokenSentence]]


@dataclass(frozen=True)
class TalkRun:
    """A run on talks with what it is scored against.

    Attributes:
        run: the folder.
        talks: the sentences of its talks.
        alone: the run of the same system on the same sentences, one a file, and these files'
            sentences; None where there is none.
    """

    run: RunFolder
    talks: Talks
    alone: tuple[RunFolder, Talks] | None = None


def talk_figures(talk_run: TalkRun, recognition: Recognition | None = None) -> dict[str, Any]:
    """The figures of :data:`ROWS`; None where one cannot be measured.

    Raises:
        ValueError: sentences, traces or speech are missing, or the sentences one at a time are
            others.
    """
    return _figures_and_texts(talk_run, recognition)[0]


def _figures_and_texts(
    talk_run: TalkRun, recognition: Recognition | None
) -> tuple[dict[str, Any], dict[str, Sequence[str]]]:
    """:func:`talk_figures`, and by metric what was put to each sentence."""
    run, talks = talk_run.run, talk_run.talks
    figures = dict.fromkeys(key for key, _, _ in ROWS)
    scores = _scored(run, talks, recognition)
    texts = {
        metric: scores.pop(key)
        for metric, key in (("text BLEU", "predictions"), ("ASR-BLEU", "asr_predictions"))
        if key in scores
    }
    figures.update(scores)
    if talk_run.alone is not None:
        other, sentences = talk_run.alone
        check_same_sentences(_chosen(run, talks), _chosen(other, sentences))
        scores = _scored(other, sentences, recognition)
        for key in ("bleu", "long_yaal_ms", "asr_bleu", "asr_long_yaal_ms"):
            figures[f"alone_{key}"] = scores.get(key)
        figures["alone_al_ms"] = average_lagging(other, sentences)
        for key in ("bleu", "asr_bleu"):
            whole, part = figures[f"alone_{key}"], figures[key]
            figures[f"{key}_ratio"] = part / whole if whole and part is not None else None
    recognized = recognition if run.is_speech else None
    figures["asr_model"] = recognized and recognizer_name(recognized.spec)
    return figures, texts


def _chosen(run: RunFolder, talks: Talks) -> Talks:
    return {name: talks[name] for name in talk_names(run, talks)}


def _scored(run: RunFolder, talks: Talks, recognition: Recognition | None) -> dict[str, Any]:
    recognized = recognize_speech(run, recognition) if recognition and run.is_speech else None
    figures = asdict(score_talks(run, talks, recognized))
    spoken = figures.pop("spoken") or {}
    return figures | {f"asr_{key}": value for key, value in spoken.items()}


def used_rows(scores: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """The rows that say something about some system."""
    return [row for row in ROWS if any(figures.get(row[0]) is not None for figures in scores)]


def cell(value: float | None, decimals: int) -> str:
    """A figure as tables show it."""
    return "-" if value is None else f"{value:.{decimals}f}"


def table(names: Sequence[str], scores: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: figures as rows, systems as columns."""
    lines = ["| | " + " | ".join(names) + " |", "| :-- |" + " --: |" * len(names)]
    for key, heading, decimals in used_rows(scores):
        cells = [cell(figures.get(key), decimals) for figures in scores]
        lines.append(f"| {heading} | " + " | ".join(cells) + " |")
    models = sorted({figures["asr_model"] for figures in scores if figures.get("asr_model")})
    return "\n".join([*lines, *(["", f"Recogniser: {', '.join(models)}."] if models else [])])


def _compare_talks(
    runs: Sequence[TalkRun], texts: Sequence[Mapping[str, Sequence[str]]], samples: int
) -> list[list[Significance]]:
    """Paired bootstrap of every run against the first, over re-segmented sentences.

    Args:
        texts: by metric what was put to each sentence of a run.

    Returns:
        For every metric that all runs have, a row for each run.

    Raises:
        ValueError: the runs are on different sentences or in different order.
    """
    talks = [list(_chosen(talk_run.run, talk_run.talks).items()) for talk_run in runs]
    for talk_run, chosen in zip(runs, talks, strict=True):
        if chosen != talks[0]:
            raise ValueError(
                f"{talk_run.run.path} and {runs[0].run.path} are not on the same talks in the same "
                "order; a paired bootstrap needs that"
            )
    references = [sentence.target for _, sentences in talks[0] for sentence in sentences]
    names = [talk_run.run.name for talk_run in runs]
    return [
        paired_bootstrap(
            [(name, said[metric]) for name, said in zip(names, texts, strict=True)],
            references,
            metric,
            samples,
        )
        for metric in texts[0]
        if all(metric in said for said in texts)
    ]


def report(
    runs: Sequence[TalkRun],
    output: Path | None,
    recognition: Recognition | None = None,
    bootstrap: int = 0,
) -> str:
    """Score runs side by side; write JSON, Markdown and a picture under ``output``.

    Args:
        bootstrap: samples of a paired bootstrap of every run against the first; 0 makes none.

    Returns:
        The table.

    Raises:
        ValueError: two runs have one name, or are to be compared but not on the same talks, or see
            :func:`talk_figures`.
    """
    names = [talk_run.run.name for talk_run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"runs must have different names, got {', '.join(names)}; use NAME=DIR")
    scored = [_figures_and_texts(talk_run, recognition) for talk_run in runs]
    scores = [figures for figures, _ in scored]
    text = table(names, scores)
    if bootstrap > 0 and len(runs) > 1:
        tests = _compare_talks(runs, [texts for _, texts in scored], bootstrap)
        text = "\n".join([text, *(line for rows in tests for line in significance_table(rows))])
        for number, figures in enumerate(scores):
            figures["significance"] = [asdict(rows[number]) for rows in tests]
    if output is not None:
        content = json.dumps(dict(zip(names, scores, strict=True)), indent=1)
        write_atomically(output / "talks.json", content + "\n")
        write_atomically(output / "talks.md", text + "\n")
        plot_talk([talk_run.run for talk_run in runs], output / "talk.png")
    return text
