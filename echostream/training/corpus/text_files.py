"""The corpus text on disk: one TSV per split, with the speaker of every source utterance."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from echostream.training.corpus.pairs import SPLITS


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
        rows.append(Utterance(*row[:4], row[4] == "1", *row[5:]))
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
