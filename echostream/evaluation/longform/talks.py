"""Scoring runs on talks: re-segmentation, latency, backlog, and what changes with time.

A talk is one instance of a run; ``sentences.tsv`` (docs/corpus.md) says when each of its sentences
was spoken. Words out are put to the sentences that they translate by OmniSTEval's SoftSegmenter
(arXiv 2509.17349), which looks at texts only, so words that come late, twice or not at all cost
what they should. Text is taken from the agent's trace, where every word has its time.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu

from echostream.evaluation.runs.run_folder import RunFolder

COLUMNS = ("talk", "index", "start_ms", "end_ms", "src_text", "tgt_text")
TENTH = 10


@dataclass(frozen=True)
class SpokenSentence:
    """A sentence of a talk; times in ms from the talk's beginning."""

    talk: str
    start_ms: float
    end_ms: float
    source: str
    target: str


@dataclass(frozen=True)
class TimedWord:
    """A word out: ``time_ms`` of source had been read, ``elapsed_ms`` had passed when it came,
    computation included."""

    text: str
    time_ms: float
    elapsed_ms: float


@dataclass(frozen=True)
class TalkScores:
    """Figures of a run over all its talks.

    Attributes:
        bleu: of re-segmented sentences.
        word_ratio: words out over words of the references.
        long_yaal_ms, long_yaal_ca_ms: LongYAAL of the words, without and with computation.
        first_tenth_bleu, last_tenth_bleu: BLEU of the first and the last tenth of every talk.
        first_tenth_ms, last_tenth_ms: median compute per chunk there.
        final_backlog_ms, highest_backlog_ms: speech waiting to be played, at the end and at most;
            None without speech.
        sentences: of the references.
        ends: sentences that the system ended.
    """

    bleu: float
    word_ratio: float
    long_yaal_ms: float
    long_yaal_ca_ms: float
    first_tenth_bleu: float
    last_tenth_bleu: float
    first_tenth_ms: float
    last_tenth_ms: float
    final_backlog_ms: float | None
    highest_backlog_ms: float | None
    sentences: int
    ends: int


def read_sentences(path: Path) -> dict[str, list[SpokenSentence]]:
    """Sentences by talk, in order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing or a time is no number; names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such list of sentences: {path}")
    talks: dict[str, list[SpokenSentence]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}, line 1: missing column {missing[0]!r}")
        for number, row in enumerate(reader, start=2):
            try:
                times = float(row["start_ms"]), float(row["end_ms"])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: times must be numbers") from error
            sentence = SpokenSentence(row["talk"], *times, row["src_text"], row["tgt_text"])
            talks.setdefault(row["talk"], []).append(sentence)
    return talks


def words_of_trace(lines: Sequence[Mapping[str, Any]]) -> list[TimedWord]:
    """Words of the translation as they came.

    A decision starts when its source is there and the one before is done.
    """
    words: list[TimedWord] = []
    known: dict[int, int] = {}
    elapsed = 0.0
    for line in lines:
        elapsed = max(elapsed, line["source_ms"]) + sum(line["compute_ms"].values())
        said = line["translation"].split()
        sentence = line.get("sentence", 0)
        new = said[known.get(sentence, 0) :]
        known[sentence] = max(len(said), known.get(sentence, 0))
        words += [TimedWord(word, line["source_ms"], elapsed) for word in new]
    return words


def backlog_of_trace(lines: Sequence[Mapping[str, Any]], sample_rate: int) -> np.ndarray:
    """(decisions, 2) source time and speech that waits to be played then, both in ms.

    Speech is played as soon as it is written and what was written before is over.
    """
    free, points = 0.0, []
    for line in lines:
        now = line["source_ms"]
        if line["samples"]:
            free = max(free, now) + 1000 * line["samples"] / sample_rate
        points.append((now, max(free - now, 0.0)))
    return np.array(points).reshape(-1, 2)


def resegment(
    talks: Mapping[str, Sequence[SpokenSentence]], words: Mapping[str, Sequence[TimedWord]]
) -> list[Any]:
    """OmniSTEval's instances, one per sentence in the order of ``talks``.

    Raises:
        ImportError: OmniSTEval is not installed.
    """
    try:
        from omnisteval.alignment import Word
        from omnisteval.resegment import resegment as align
    except ImportError as error:
        raise ImportError(
            "scoring talks needs OmniSTEval: pip install 'echostream[eval]'"
        ) from error
    references, hypotheses, segmentation, targets = [], [], [], []
    for talk, sentences in talks.items():
        end = max(sentence.end_ms for sentence in sentences)
        spoken = []
        for sentence in sentences:
            number = len(targets)
            spoken += [Word(text=word, seq_id=number) for word in sentence.target.split()]
            targets.append(sentence.target)
            segmentation.append(
                {
                    "offset": sentence.start_ms,
                    "duration": sentence.end_ms - sentence.start_ms,
                    # Words that come behind the last sentence are late, not lost.
                    "time_to_recording_end": max(end, _last(words[talk])) + 1 - sentence.start_ms,
                    "doc_id": talk,
                    "seg_id": number,
                }
            )
        references.append(spoken)
        hypotheses.append(
            [
                Word(
                    text=word.text,
                    original=word.text,
                    emission_cu=word.time_ms,
                    emission_ca=word.elapsed_ms,
                )
                for word in words[talk]
            ]
        )
    return align(references, hypotheses, segmentation, targets)[0]


def _last(words: Sequence[TimedWord]) -> float:
    return max((word.elapsed_ms for word in words), default=0.0)


def bleu(instances: Sequence[Any]) -> float:
    """Corpus BLEU (sacrebleu) of re-segmented sentences."""
    if not instances:
        return float("nan")
    return sacrebleu.corpus_bleu(
        [instance.prediction for instance in instances],
        [[instance.reference for instance in instances]],
    ).score


def talk_names(run: RunFolder) -> list[str]:
    """The talk that each instance of a run is: the stem of its sound file."""
    return [item.source_path.stem for item in run.utterances]


def score_talks(
    run: RunFolder, talks: Mapping[str, Sequence[SpokenSentence]], *, sample_rate: int = 16000
) -> TalkScores:
    """Score a run that kept a trace.

    Args:
        sample_rate: of the speech output, Hz.

    Raises:
        ValueError: a talk has no sentences or no trace.
    """
    from omnisteval.scoring import YAALScorer

    trace = run.trace()
    names = talk_names(run)
    if len(names) == len(talks) == 1:
        names = list(talks)  # one file, one talk, whatever their names
    for name, item in zip(names, run.utterances, strict=True):
        if name not in talks:
            raise ValueError(f"{run.path}: no sentences of talk {name!r}; there are {list(talks)}")
        if item.index not in trace:
            raise ValueError(f"{run.path}: no trace of {name!r}; run the agent with --trace")
    lines = {name: trace[i.index] for name, i in zip(names, run.utterances, strict=True)}
    chosen = {name: talks[name] for name in names}
    words = {name: words_of_trace(lines[name]) for name in names}
    instances = resegment(chosen, words)
    first, last, position = [], [], 0
    for sentences in chosen.values():
        share = max(len(sentences) // TENTH, 1)
        first += instances[position : position + share]
        position += len(sentences)
        last += instances[position - share : position]
    compute = {
        name: [sum(line["compute_ms"].values()) for line in entries]
        for name, entries in lines.items()
    }
    early = [ms for values in compute.values() for ms in values[: max(len(values) // TENTH, 1)]]
    late = [ms for values in compute.values() for ms in values[-max(len(values) // TENTH, 1) :]]
    speaks = any(line["samples"] for entries in lines.values() for line in entries)
    backlog = [backlog_of_trace(entries, sample_rate)[:, 1] for entries in lines.values()]
    written = sum(len(entries) for entries in words.values())
    reference = sum(len(s.target.split()) for entries in chosen.values() for s in entries)
    return TalkScores(
        bleu=bleu(instances),
        word_ratio=written / reference,
        long_yaal_ms=YAALScorer(is_longform=True)(instances),
        long_yaal_ca_ms=YAALScorer(computation_aware=True, is_longform=True)(instances),
        first_tenth_bleu=bleu(first),
        last_tenth_bleu=bleu(last),
        first_tenth_ms=statistics.median(early),
        last_tenth_ms=statistics.median(late),
        final_backlog_ms=max(float(b[-1]) for b in backlog) if speaks else None,
        highest_backlog_ms=max(float(b.max()) for b in backlog) if speaks else None,
        sentences=len(instances),
        ends=sum(
            len({line.get("sentence", 0) for line in entries if line["translation"]})
            for entries in lines.values()
        ),
    )
