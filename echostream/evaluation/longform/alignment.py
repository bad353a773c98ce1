"""Words out to the sentences they translate: OmniSTEval's SoftSegmenter, quick enough for hours.

The alignment (arXiv 2509.17349) looks at texts alone, so words that come late, twice or not at all
cost what they should. OmniSTEval fills its table of (words of the references) x (words out) cell by
cell in Python, which takes minutes and gigabytes for an hour of speech; here a row is one vector
operation on the same numbers with the same ties, so the result is the same. Everything around the
table is OmniSTEval's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_MATCH, _DELETE, _INSERT = 0, 1, 2


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
    """A word out: ``time_ms`` of source had passed when it was there, ``elapsed_ms`` with
    computation included (None where that is not known)."""

    text: str
    time_ms: float
    elapsed_ms: float | None


def _types(words: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    """One word of every text, and the place of each word's text among them."""
    first: dict[str, int] = {}
    kinds: list[Any] = []
    places = np.zeros(len(words), dtype=np.intp)
    for number, word in enumerate(words):
        if word.text not in first:
            first[word.text] = len(kinds)
            kinds.append(word)
        places[number] = first[word.text]
    return kinds, places


def align_sequences(
    reference: Sequence[Any], hypothesis: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """What ``omnisteval.alignment.align_sequences`` returns, for words.

    Gaps cost nothing, so the best score up to a cell is the greatest of its row so far: a running
    maximum.

    Returns:
        Both sequences with None for gaps, equally long.
    """
    from omnisteval.alignment import similarity

    kinds, columns = _types(hypothesis)
    reference_kinds, rows = _types(reference)
    table = np.array(
        [[similarity(ref, hyp, False) for hyp in kinds] for ref in reference_kinds]
    ).reshape(len(reference_kinds), len(kinds))
    choice = np.empty((len(reference) + 1, len(hypothesis) + 1), dtype=np.uint8)
    choice[0], choice[:, 0] = _INSERT, _DELETE
    above = np.zeros(len(hypothesis) + 1)
    for row, kind in enumerate(rows, start=1):
        match = above[:-1] + table[kind][columns]
        delete = above[1:]
        best = np.maximum.accumulate(np.maximum(np.maximum(match, delete), 0.0))
        insert = np.concatenate([[0.0], best[:-1]])
        choice[row, 1:] = np.where(
            (match >= delete) & (match >= insert),
            _MATCH,
            np.where(delete >= insert, _DELETE, _INSERT),
        )
        above = np.concatenate([[0.0], best])
    return _walk_back(choice, reference, hypothesis)


def _walk_back(
    choice: np.ndarray, reference: Sequence[Any], hypothesis: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    i, j = len(reference), len(hypothesis)
    pairs = []
    while i or j:
        step = choice[i, j]
        i, j = i - (step != _INSERT), j - (step != _DELETE)
        pairs.append(
            (
                reference[i] if step != _INSERT else None,
                hypothesis[j] if step != _DELETE else None,
            )
        )
    pairs.reverse()
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _last(words: Sequence[TimedWord]) -> float:
    return max(
        (max(word.time_ms, word.elapsed_ms or 0.0) for word in words),
        default=0.0,
    )


def resegment(
    talks: Mapping[str, Sequence[SpokenSentence]], words: Mapping[str, Sequence[TimedWord]]
) -> list[Any]:
    """OmniSTEval's instances, one per sentence in the order of ``talks``; their times count from
    the sentence's beginning.

    Words of a talk whose references have no words at all go to its first sentence.

    Raises:
        ImportError: OmniSTEval is not installed.
    """
    try:
        from omnisteval.alignment import Word, process_alignment
        from omnisteval.data import Instance
        from omnisteval.tokenization import tokenize_words
    except ImportError as error:
        raise ImportError(
            "scoring talks needs OmniSTEval: pip install 'echostream[eval]'"
        ) from error
    instances: list[Instance] = []
    for talk, sentences in talks.items():
        spoken = [
            Word(text=word, seq_id=number)
            for number, sentence in enumerate(sentences)
            for word in sentence.target.split()
        ]
        out = [
            Word(text=word.text, emission_cu=word.time_ms, emission_ca=word.elapsed_ms, seq_id=0)
            for word in words[talk]
        ]
        references, hypotheses = tokenize_words([spoken, out], None)
        if references:
            aligned = align_sequences(references, hypotheses)
            hypotheses = process_alignment(*aligned, False)
        # Words that come behind the last sentence are late, not lost.
        end = max([_last(words[talk]), *(sentence.end_ms for sentence in sentences)]) + 1
        shares: list[list[Any]] = [[] for _ in sentences]
        for word in hypotheses:
            shares[word.seq_id].append(word)
        for sentence, share in zip(sentences, shares, strict=True):
            aware = [word.emission_ca for word in share]
            instances.append(
                Instance(
                    prediction=" ".join(word.original for word in share),
                    reference=sentence.target,
                    index=len(instances),
                    source_length=sentence.end_ms - sentence.start_ms,
                    emission_cu=[word.emission_cu - sentence.start_ms for word in share],
                    emission_ca=None
                    if None in aware
                    else [time - sentence.start_ms for time in aware],
                    time_to_recording_end=end - sentence.start_ms,
                )
            )
    return instances
