"""Scoring runs on talks: re-segmentation, latency, backlog, and what changes with time.

A talk is one instance of a run. ``sentences.tsv`` (docs/reference/corpus.md) says when each of its
sentences was spoken. Words out are put to the sentences that they translate (``alignment``). Text
is taken from the agent's trace, where every word has its time, and speech from a recogniser
(``spoken``).
"""

from __future__ import annotations

import csv
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu

from echostream.evaluation.longform.alignment import SpokenSentence, TimedWord, resegment
from echostream.evaluation.runs.run_folder import RunFolder, Utterance

COLUMNS = ("talk", "index", "start_ms", "end_ms", "src_text", "tgt_text")
TENTH = 10


def read_sentences(path: Path) -> dict[str, list[SpokenSentence]]:
    """Sentences by talk, in order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, a time is no number, a sentence ends before it begins, or
            there is none; names file and line.
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
            if not times[0] < times[1]:
                raise ValueError(
                    f"{path}, line {number}: a sentence must end after it begins, got "
                    f"{row['start_ms']} to {row['end_ms']} ms"
                )
            sentence = SpokenSentence(row["talk"], *times, row["src_text"], row["tgt_text"])
            talks.setdefault(row["talk"], []).append(sentence)
    if not talks:
        raise ValueError(f"{path} lists no sentence")
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


def speech_rate(item: Utterance, lines: Sequence[Mapping[str, Any]]) -> int:
    """Hz of an utterance's speech: its trace counts samples, its log milliseconds.

    Raises:
        ValueError: there is speech in the trace and none in the log.
    """
    samples = sum(line["samples"] for line in lines)
    duration_ms = sum(getattr(item, "durations", []))
    if not samples:
        return 1  # whatever it may be
    if not duration_ms:
        raise ValueError(
            f"utterance {item.index}: the trace has {samples} samples of speech, the log has none"
        )
    return round(1000 * samples / duration_ms)


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


def bleu(instances: Sequence[Any]) -> float | None:
    """Corpus BLEU (sacrebleu) of re-segmented sentences; None where nothing was to be said."""
    if not any(instance.reference.split() for instance in instances):
        return None
    return sacrebleu.corpus_bleu(
        [instance.prediction for instance in instances],
        [[instance.reference for instance in instances]],
    ).score


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def talk_names(run: RunFolder, talks: Mapping[str, Sequence[SpokenSentence]]) -> list[str]:
    """The talk that each instance of a run is: the stem of its sound file, or the only talk.

    Raises:
        ValueError: a talk has no sentences.
    """
    names = [item.source_path.stem for item in run.utterances]
    if len(names) == len(talks) == 1:
        return list(talks)  # one file, one talk, whatever their names
    for name in names:
        if name not in talks:
            known = ", ".join([*talks][:3]) + (", ..." if len(talks) > 3 else "")
            raise ValueError(f"{run.path}: no sentences of talk {name!r}; there are {known}")
    return names


def read_traces(run: RunFolder) -> list[list[dict[str, Any]]]:
    """The trace of each instance of a run.

    Raises:
        ValueError: one has none.
    """
    trace = run.trace()
    for item in run.utterances:
        if item.index not in trace:
            raise ValueError(
                f"{run.path}: no trace of {item.source_path.name!r}; run the agent with --trace"
            )
    return [trace[item.index] for item in run.utterances]


def _count_words(texts: Iterable[str]) -> int:
    return sum(len(text.split()) for text in texts)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True)
class WordScores:
    """Figures of words out, written or recognised; None where nothing can be said.

    Attributes:
        bleu: of re-segmented sentences.
        word_ratio: words out over words of the references.
        long_yaal_ms, long_yaal_ca_ms: LongYAAL, without and with computation.
        first_tenth_bleu, last_tenth_bleu: BLEU of the first and the last tenth of every talk.
        predictions: what was put to each sentence, in the order of the talks.
    """

    bleu: float | None
    word_ratio: float | None
    long_yaal_ms: float | None
    long_yaal_ca_ms: float | None
    first_tenth_bleu: float | None
    last_tenth_bleu: float | None
    predictions: tuple[str, ...]


@dataclass(frozen=True)
class TalkScores(WordScores):
    """Figures of a run over all its talks; those of the words are of the text.

    Attributes:
        first_tenth_ms, last_tenth_ms: median compute per decision there.
        final_backlog_ms, highest_backlog_ms: speech waiting to be played, at the end and at most;
            None without speech.
        sentences: of the references.
        ends: sentences that the system ended.
        spoken: the speech, if it was recognised.
    """

    first_tenth_ms: float
    last_tenth_ms: float
    final_backlog_ms: float | None
    highest_backlog_ms: float | None
    sentences: int
    ends: int
    spoken: WordScores | None


def score_words(
    talks: Mapping[str, Sequence[SpokenSentence]], words: Mapping[str, Sequence[TimedWord]]
) -> WordScores:
    """Put the words of every talk to its sentences and score them.

    Raises:
        ImportError: OmniSTEval is not installed.
    """
    instances = resegment(talks, words)
    from omnisteval.scoring import YAALScorer

    first, last, position = [], [], 0
    for sentences in talks.values():
        share = max(len(sentences) // TENTH, 1)
        first += instances[position : position + share]
        position += len(sentences)
        last += instances[position - share : position]
    out = sum(map(len, words.values()))
    reference = _count_words(s.target for sentences in talks.values() for s in sentences)
    return WordScores(
        bleu=bleu(instances),
        word_ratio=_ratio(out, reference),
        long_yaal_ms=_known(YAALScorer(is_longform=True)(instances)),
        long_yaal_ca_ms=_known(YAALScorer(computation_aware=True, is_longform=True)(instances)),
        first_tenth_bleu=bleu(first),
        last_tenth_bleu=bleu(last),
        predictions=tuple(instance.prediction for instance in instances),
    )


def score_talks(
    run: RunFolder,
    talks: Mapping[str, Sequence[SpokenSentence]],
    recognized: Mapping[int, Sequence[TimedWord]] | None = None,
) -> TalkScores:
    """Score a run that kept a trace.

    Args:
        recognized: what ``spoken.recognize_speech`` returns.

    Raises:
        ValueError: a talk has no sentences or no trace.
        ImportError: OmniSTEval is not installed.
    """
    names, traces = talk_names(run, talks), read_traces(run)
    chosen = {name: talks[name] for name in names}
    words = {name: words_of_trace(lines) for name, lines in zip(names, traces, strict=True)}
    written = score_words(chosen, words)
    spoken = None
    if recognized is not None:
        by_name = {n: recognized[i.index] for n, i in zip(names, run.utterances, strict=True)}
        spoken = score_words(chosen, by_name)
    compute = [[sum(line["compute_ms"].values()) for line in lines] for lines in traces]
    early = [ms for values in compute for ms in values[: max(len(values) // TENTH, 1)]]
    late = [ms for values in compute for ms in values[-max(len(values) // TENTH, 1) :]]
    speaks = any(line["samples"] for lines in traces for line in lines)
    backlog = [
        backlog_of_trace(lines, speech_rate(item, lines))[:, 1]
        for item, lines in zip(run.utterances, traces, strict=True)
    ]
    return TalkScores(
        **asdict(written),
        first_tenth_ms=statistics.median(early),
        last_tenth_ms=statistics.median(late),
        final_backlog_ms=max(float(b[-1]) for b in backlog) if speaks else None,
        highest_backlog_ms=max(float(b.max()) for b in backlog) if speaks else None,
        sentences=sum(map(len, chosen.values())),
        ends=sum(
            len({line.get("sentence", 0) for line in lines if line["translation"]})
            for lines in traces
        ),
        spoken=spoken,
    )


def average_lagging(run: RunFolder, talks: Mapping[str, Sequence[SpokenSentence]]) -> float | None:
    """AL in ms of the words of a run with one sentence a file, as SimulEval computes it for text:
    over the whole file."""
    from omnisteval.data import Instance
    from omnisteval.scoring import ALScorer

    instances = [
        Instance(
            reference=" ".join(sentence.target for sentence in talks[name]),
            source_length=item.source_length,
            emission_cu=[word.time_ms for word in words_of_trace(lines)],
        )
        for name, item, lines in zip(
            talk_names(run, talks), run.utterances, read_traces(run), strict=True
        )
    ]
    return _known(ALScorer()(instances))


def check_same_sentences(
    talks: Mapping[str, Sequence[SpokenSentence]],
    alone: Mapping[str, Sequence[SpokenSentence]],
) -> None:
    """Make sure that sentences one at a time are those of the talks.

    Raises:
        ValueError: one is said in only one of them, or more often.
    """
    counts = [Counter(s.target for part in each.values() for s in part) for each in (talks, alone)]
    if counts[0] != counts[1]:
        odd = sorted((counts[0] - counts[1]) + (counts[1] - counts[0]))[0]
        raise ValueError(
            f"the sentences one at a time are not those of the talks: {odd!r} is said "
            f"{counts[0][odd]} times in the talks and {counts[1][odd]} times alone"
        )
