"""The corpus text: one TSV per split, with the speaker of every source utterance; how texts are
compared, and drawn from a seed."""

from __future__ import annotations

import csv
import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

SPLITS = ("train", "dev", "test")

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Utterance:
    """One row of a split file.

    Attributes:
        unseen: whether the sentence pattern is absent from training.
        speaker: who says the Spanish sentence.
    """

    id: str
    speaker: str
    topic: str
    pattern: str
    unseen: bool
    src_text: str
    tgt_text: str

    @property
    def split(self) -> str:
        return self.id.split("_")[0]


HEADER = [field.name for field in fields(Utterance)]


def _parse(lines: Iterable[str], path: Path) -> list[Utterance]:
    """Rows of a split file."""
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    header = next(reader, [])
    if header != HEADER:
        raise ValueError(f"{path}, line 1: columns must be {HEADER}, got {header}")
    rows = []
    for number, row in enumerate(reader, 2):
        if len(row) != len(HEADER) or row[4] not in ("0", "1"):
            raise ValueError(
                f"{path}, line {number}: expected {len(HEADER)} columns with 0 or 1 "
                f"under 'unseen', got {row}"
            )
        identifier, speaker, topic, pattern, unseen, src_text, tgt_text = row
        rows.append(
            Utterance(identifier, speaker, topic, pattern, unseen == "1", src_text, tgt_text)
        )
    return rows


def read_texts(folder: Path) -> dict[str, list[Utterance]]:
    """Read the split files of a folder.

    Raises:
        FileNotFoundError: a split file is missing.
        ValueError: a malformed line, named by file and number.
    """
    utterances = {}
    for split in SPLITS:
        path = folder / f"{split}.tsv"
        if not path.is_file():
            raise FileNotFoundError(f"no such corpus text: {path}")
        with path.open(encoding="utf-8", newline="") as stream:
            utterances[split] = _parse(stream, path)
    return utterances


def normalize(text: str) -> str:
    """Lower case without punctuation, as the text side of training and the references are."""
    return re.sub(r"[^\w\s]", "", text.lower())


class Chooser:
    """Seeded choice, the same on any platform: ``random()`` alone, whose sequence Python
    guarantees."""

    def __init__(self, *seed: object) -> None:
        self._random = random.Random(":".join(map(str, seed)))

    def fraction(self) -> float:
        return self._random.random()

    def choice(self, items: Sequence[ItemT]) -> ItemT:
        return items[int(self._random.random() * len(items))]

    def shuffled(self, items: Iterable[ItemT]) -> list[ItemT]:
        keyed = [(self._random.random(), index, item) for index, item in enumerate(items)]
        return [item for _, _, item in sorted(keyed, key=lambda triple: triple[:2])]


def digest(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text."""
    return hashlib.sha256("".join(line + "\n" for line in lines).encode("utf-8")).hexdigest()
