"""CVSS-C and CoVoST 2 as they are downloaded.

CoVoST 2 (with Common Voice 4) gives source speech and transcripts, CVSS-C target speech and its
normalised text, for the same clips::

    COVOST/<language>/  clips/*.mp3, validated.tsv, covost_v2.<language>_en.tsv(.tar.gz)
    CVSS/<language>-en/ train/, dev/, test/ with *.mp3.wav; train.tsv, dev.tsv, test.tsv
                        (or all of these in cvss_c_<language>_en_v1.0.tar.gz)
"""

from __future__ import annotations

import logging
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
# CoVoST 2 calls what it adds to Common Voice's training split by another name.
_COVOST_SPLITS = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test"}
_PUNCTUATION = re.compile(r"[^\w\s]")


def normalize_text(text: str) -> str:
    """Lower case without punctuation, as StreamSpeech's text targets are."""
    return " ".join(_PUNCTUATION.sub("", text.lower()).split())


@dataclass(frozen=True)
class Clip:
    """One utterance with its translation.

    Attributes:
        name: the clip's file name in CoVoST.
        source: source speech.
        target: target speech.
        src_text: transcript as written.
        tgt_text: CVSS-C's normalised translation.
        position: place in CVSS-C's table, the order of its published test lists.
    """

    name: str
    source: Path
    target: Path
    src_text: str
    tgt_text: str
    position: int

    @property
    def id(self) -> str:
        return Path(self.name).stem


@dataclass(frozen=True)
class Corpus:
    """Where a language pair lies.

    Args:
        covost: CoVoST's folder of the source language.
        cvss: CVSS-C's folder of the pair; what is prepared goes there too.
    """

    language: str
    covost: Path
    cvss: Path

    @classmethod
    def open(cls, covost_root: Path, cvss_root: Path, language: str) -> Corpus:
        """Find both parts, unpacking archives that still are packed.

        Raises:
            FileNotFoundError: a part is missing; names it.
        """
        corpus = cls(language, covost_root / language, cvss_root / f"{language}-en")
        for folder in (corpus.covost, corpus.cvss):
            if not folder.is_dir():
                raise FileNotFoundError(f"no such folder: {folder}")
        table = corpus.covost_table
        if not table.is_file():
            _unpack(corpus.covost / f"{table.name}.tar.gz", corpus.covost)
        archive = corpus.cvss / f"cvss_c_{language}_en_v1.0.tar.gz"
        missing = [
            path for split in SPLITS for path in corpus.cvss_parts(split) if not path.exists()
        ]
        if missing:
            _unpack(archive, corpus.cvss)
        needed = [table, corpus.covost / "validated.tsv", corpus.covost / "clips"]
        needed += [path for split in SPLITS for path in corpus.cvss_parts(split)]
        for path in needed:
            if not path.exists():
                raise FileNotFoundError(f"no such file or folder: {path}")
        return corpus

    @property
    def covost_table(self) -> Path:
        return self.covost / f"covost_v2.{self.language}_en.tsv"

    def cvss_parts(self, split: str) -> tuple[Path, Path]:
        """The text table and the speech folder of a split."""
        return self.cvss / f"{split}.tsv", self.cvss / split

    def clips(self, split: str) -> list[Clip]:
        """What both corpora have of a split, in the order of ``validated.tsv``.

        Raises:
            ValueError: a table is damaged; names file and line.
        """
        chosen = {
            row["path"]
            for _, row in read_table(self.covost_table, ("path", "split"))
            if _COVOST_SPLITS.get(row["split"]) == split
        }
        table, speech = self.cvss_parts(split)
        translations = _read_translations(table)
        positions = {name: place for place, name in enumerate(translations)}
        clips, seen = [], set()
        for line, row in read_table(self.covost / "validated.tsv", ("path", "sentence")):
            name = row["path"]
            if name not in chosen or name not in translations:
                continue
            if name in seen:
                raise ValueError(
                    f"{self.covost / 'validated.tsv'}, line {line}: {name} occurs twice"
                )
            seen.add(name)
            clips.append(
                Clip(
                    name,
                    self.covost / "clips" / name,
                    speech / f"{name}.wav",
                    row["sentence"],
                    translations[name],
                    positions[name],
                )
            )
        if not clips:
            raise ValueError(f"{table}: shares no clip of split {split!r} with {self.covost}")
        logger.info(
            "%s: %d clips (CVSS-C has %d, CoVoST 2 has %d)",
            split, len(clips), len(translations), len(chosen),
        )  # fmt: skip
        return clips


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into its folder.

    Raises:
        FileNotFoundError: neither the files nor the archive are there.
        ValueError: damaged, or an entry would leave the folder.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"neither unpacked files nor the archive are there: {archive}")
    logger.info("unpacking %s", archive)
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{archive}: cannot be unpacked: {error}") from error


def read_table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and columns of a TSV with a header; quotes mean nothing in it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing or a line too short; names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such table: {path}")
    with path.open(encoding="utf-8", newline="\n") as lines:
        header = next(lines, "").rstrip("\r\n").split("\t")
        missing = [column for column in columns if column not in header]
        if missing:
            raise ValueError(
                f"{path}, line 1: missing column {missing[0]!r}; found: {', '.join(header)}"
            )
        places = {column: header.index(column) for column in columns}
        for number, line in enumerate(lines, start=2):
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) <= max(places.values()):
                raise ValueError(
                    f"{path}, line {number}: expected {len(header)} tab-separated fields, "
                    f"got {len(fields)}"
                )
            yield number, {column: fields[place] for column, place in places.items()}


def _read_translations(path: Path) -> dict[str, str]:
    """CVSS-C's table: clip and text, without a header."""
    translations: dict[str, str] = {}
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) != 2 or not all(fields):
                raise ValueError(
                    f"{path}, line {number}: expected a clip and its text, got {line[:60]!r}"
                )
            if fields[0] in translations:
                raise ValueError(f"{path}, line {number}: {fields[0]} occurs twice")
            translations[fields[0]] = fields[1]
    return translations
