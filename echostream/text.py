"""Vocabularies with special ids, and incremental detokenisation.

Ids follow fairseq dictionaries: ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, then the lines
of ``dict.txt``. StreamSpeech's text CTC heads use ``<s>`` as blank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
WORD_START = "\u2581"  # SentencePiece marks the start of a word with it
SENTENCE_END = re.compile(r"[.!?\u2026][)\]\"'\u2019\u201d]*$")  # at the end of a word


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a UTF-8 file, however it ends them.

    Args:
        what: what the file should be, for the error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such {what}: {path}")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error
    if lines and not lines[-1]:
        lines.pop()
    return [line.rstrip("\r") for line in lines]


class Vocabulary:
    """Subword pieces and their ids.

    Args:
        pieces: the pieces behind the special symbols, in id order.
        processor: the SentencePiece model the pieces come from, for encoding; optional.
    """

    bos, pad, eos, unk = range(4)
    blank = bos

    def __init__(
        self,
        pieces: Sequence[str],
        processor: sentencepiece.SentencePieceProcessor | None = None,
    ) -> None:
        self.pieces = (*SPECIALS, *pieces)
        self.processor = processor
        self._ids = {piece: index for index, piece in enumerate(self.pieces)}
        if len(self._ids) != len(self.pieces):
            twice = next(p for at, p in enumerate(self.pieces) if self._ids[p] != at)
            raise ValueError(f"vocabulary lists the piece {twice!r} twice")

    def __len__(self) -> int:
        return len(self.pieces)

    @classmethod
    def load(cls, dictionary: Path, model: Path | None = None) -> Vocabulary:
        """Read a fairseq ``dict.txt`` (``piece count`` per line) and, if there, the SentencePiece
        model beside it.

        Raises:
            FileNotFoundError: no such dictionary.
            ValueError: a malformed line, named by number, or an unreadable model.
        """
        pieces = []
        for number, line in enumerate(read_lines(dictionary, "dictionary"), start=1):
            piece, separator, count = line.rpartition(" ")
            if not separator or not piece or not count.isdigit():
                raise ValueError(
                    f"{dictionary}, line {number}: expected 'piece count', got {line!r}"
                )
            pieces.append(piece)
        processor = None
        if model is not None and model.is_file():
            try:
                processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
            except (RuntimeError, OSError) as error:
                raise ValueError(f"{model}: not a SentencePiece model: {error}") from error
        return cls(pieces, processor)

    def save(self, dictionary: Path, model: Path | None = None) -> None:
        """Write what :meth:`load` reads."""
        lines = "".join(f"{piece} 1\n" for piece in self.pieces[len(SPECIALS) :])
        dictionary.write_text(lines, encoding="utf-8")
        if model is not None and self.processor is not None:
            model.write_bytes(self.processor.serialized_model_proto())

    def is_special(self, token: int) -> bool:
        return token < len(SPECIALS)

    def starts_word(self, token: int) -> bool:
        return self.pieces[token].startswith(WORD_START)

    def encode(self, text: str) -> list[int]:
        """Text to ids; needs the SentencePiece model."""
        if self.processor is None:
            raise ValueError("encoding needs a SentencePiece model, this vocabulary has none")
        pieces = self.processor.encode(text, out_type=str)
        return [self._ids.get(piece, self.unk) for piece in pieces]

    def decode(self, tokens: Iterable[int]) -> str:
        """Ids to text; special symbols vanish, unknown words show as U+2047."""
        pieces = [
            "\u2047" if token == self.unk else self.pieces[token]
            for token in tokens
            if token == self.unk or not self.is_special(token)
        ]
        if self.processor is not None:
            return self.processor.decode_pieces(pieces)
        return "".join(pieces).replace(WORD_START, " ").strip(" ")


@dataclass(frozen=True)
class DetokenizerState:
    """Tokens of the word that may still grow, and whether any word was emitted."""

    pending: tuple[int, ...] = ()


class Detokenizer:
    """Incremental detokenisation into whole words.

    A word is emitted once the next one starts or the stream ends, so what was emitted never
    changes, and joining the emitted words by spaces equals decoding everything at once.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def init_state(self) -> DetokenizerState:
        return DetokenizerState()

    def step(
        self, tokens: Sequence[int], state: DetokenizerState, *, final: bool = False
    ) -> tuple[list[str], DetokenizerState]:
        """Take new tokens, return completed words."""
        words: list[str] = []
        pending = list(state.pending)
        for token in tokens:
            if pending and self.vocabulary.starts_word(token):
                words += self.vocabulary.decode(pending).split()
                pending = []
            pending.append(token)
        if final:
            words += self.vocabulary.decode(pending).split()
            pending = []
        return words, DetokenizerState(tuple(pending))


def edit_distance(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Levenshtein distance of two sequences of tokens or words."""
    import numpy as np

    if not len(left) or not len(right):
        return max(len(left), len(right))
    other = np.asarray(right)
    column = np.arange(len(other) + 1)
    previous = column.copy()
    for row, label in enumerate(left, start=1):
        current = np.empty_like(previous)
        current[0] = row
        current[1:] = np.minimum(previous[1:] + 1, previous[:-1] + (other != label))
        # Insertions run along the row: the best start minus its position, accumulated.
        previous = np.minimum.accumulate(current - column) + column
    return int(previous[-1])
