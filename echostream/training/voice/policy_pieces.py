"""What a policy writes together, and when more comes, from the log of a finished run.

A *piece* is the words that one decision writes. Sentences that the run has come in its pieces,
others in pieces drawn from all that were followed by another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Piece:
    """Words that are said together.

    Attributes:
        words: how many.
        gap_ms: from when they are there until the next ones are; None behind the last piece.
    """

    words: int
    gap_ms: float | None


@dataclass(frozen=True)
class PolicyPieces:
    """What a policy wrote together in a run.

    Attributes:
        sentences: the pieces of each sentence, by its words in lower case.
        followed: all pieces that others followed, from which those of other sentences are drawn.
    """

    sentences: Mapping[str, tuple[Piece, ...]]
    followed: tuple[Piece, ...]

    @property
    def fingerprint(self) -> str:
        """Tells other pieces from these."""
        content = repr((sorted(self.sentences.items()), self.followed))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def of(self, text: str, words: int, rng: np.random.Generator) -> tuple[Piece, ...]:
        """The pieces in which a sentence comes.

        Args:
            text: as written.
            words: how many it has, as they are spoken.
        """
        same = self.sentences.get(_key(text), ())
        if same and sum(piece.words for piece in same) == words:
            return same
        drawn: list[Piece] = []
        while words > 0:
            piece = self.followed[int(rng.integers(len(self.followed)))]
            if piece.words >= words:
                piece = Piece(words, None)
            drawn.append(piece)
            words -= piece.words
        return tuple(drawn)


def _key(text: str) -> str:
    """A sentence as a run's log may write it: words in lower case, without marks."""
    kept = "".join(c if c.isalnum() or c in "' " else " " for c in text.lower().replace("’", "'"))
    return " ".join(kept.split())


def _pieces(info: Mapping[str, Any], where: str) -> tuple[Piece, ...]:
    """The pieces of a logged utterance."""
    prediction, delays = info.get("prediction"), info.get("delays")
    if not isinstance(prediction, str) or not isinstance(delays, list):
        raise ValueError(
            f"{where}: expected a text 'prediction' and a list of 'delays', "
            f"got {prediction!r} and {delays!r}"
        )
    words = prediction.split()
    if len(words) != len(delays):
        raise ValueError(
            f"{where}: expected one delay per word, got {len(words)} words and {len(delays)} delays"
        )
    if not all(isinstance(delay, (int, float)) for delay in delays) or delays != sorted(delays):
        raise ValueError(f"{where}: delays must be numbers that never fall, got {delays}")
    times = sorted(set(delays))
    return tuple(
        Piece(delays.count(time), None if place + 1 == len(times) else times[place + 1] - time)
        for place, time in enumerate(times)
    )


def read_pieces(path: Path) -> PolicyPieces:
    """What a policy wrote together, from the ``instances.log`` of a run with text output.

    Raises:
        FileNotFoundError: there is no such log.
        ValueError: it is none, it lacks times of words, or all its utterances are of one piece.
    """
    from echostream.evaluation.runs.logged_instances import is_speech_output, read_log_lines

    sentences: dict[str, tuple[Piece, ...]] = {}
    followed: list[Piece] = []
    for info in read_log_lines(path):
        where = f"{path}, utterance {info['index']}"
        if is_speech_output(info):
            raise ValueError(
                f"{where}: re-timing needs the time of every word, as runs of a text agent log it; "
                f"this is speech in {len(info['durations'])} segments"
            )
        pieces = _pieces(info, where)
        if pieces:
            sentences[_key(info["prediction"])] = pieces
        followed += [piece for piece in pieces if piece.gap_ms is not None]
    if not followed:
        raise ValueError(
            f"{path}: re-timing needs an utterance of several pieces, "
            f"got {len(sentences)} with words, each in one piece"
        )
    return PolicyPieces(sentences, tuple(followed))
