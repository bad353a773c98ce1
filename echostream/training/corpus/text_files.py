"""The corpus text on disk: one TSV per split, with the speaker of every source utterance."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from echostream.files import write_atomically
from echostream.training.corpus.pairs import (
    SPLITS,
    Chooser,
    CorpusSizes,
    Pair,
    digest,
    generate_pairs,
)
from echostream.training.corpus.speakers import speakers_of

CHECKSUMS = "SHA256SUMS"


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


def assign_speakers(pairs: Mapping[str, list[Pair]], seed: int) -> dict[str, list[Utterance]]:
    """Give every pair an id and a speaker of its split, each speaker equally often."""
    utterances = {}
    for split in SPLITS:
        speakers = speakers_of(split)
        repeats = -(-len(pairs[split]) // len(speakers))
        names = Chooser(seed, "speakers", split).shuffled(
            [speaker.id for speaker in speakers] * repeats
        )
        utterances[split] = [
            Utterance(
                f"{split}_{number:05d}",
                name,
                pair.topic,
                pair.pattern,
                pair.unseen,
                pair.es,
                pair.en,
            )
            for number, (pair, name) in enumerate(zip(pairs[split], names, strict=False), 1)
        ]
    return utterances


def make_utterances(seed: int = 1, sizes: CorpusSizes | None = None) -> dict[str, list[Utterance]]:
    """The whole corpus text, from a seed."""
    return assign_speakers(generate_pairs(seed, sizes), seed)


def table_lines(utterances: Sequence[Utterance]) -> list[str]:
    """The lines of a split file, header first."""
    rows = (
        "\t".join(str(int(v)) if isinstance(v, bool) else v for v in astuple(utterance))
        for utterance in utterances
    )
    return ["\t".join(HEADER), *rows]


def text_digests(utterances: Mapping[str, list[Utterance]]) -> dict[str, str]:
    """SHA-256 of every split file's contents."""
    return {split: digest(table_lines(rows)) for split, rows in utterances.items()}


def write_texts(utterances: Mapping[str, list[Utterance]], folder: Path) -> None:
    """Write ``<split>.tsv`` and their checksums."""
    for split, rows in utterances.items():
        lines = "".join(f"{line}\n" for line in table_lines(rows))
        write_atomically(folder / f"{split}.tsv", lines)
    sums = text_digests(utterances)
    write_atomically(folder / CHECKSUMS, "".join(f"{sums[split]}  {split}.tsv\n" for split in sums))


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
    """Read what :func:`write_texts` wrote.

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
