"""Manifests: TSV files that list utterances, units and texts.

Everything is checked when a file is read, and an error names the file and the line. The formats
are StreamSpeech's:

- speech, ``<split>.tsv``: ``id``, ``src_audio``, ``src_n_frames``, ``tgt_audio`` (units separated
  by spaces), ``tgt_n_frames``, and optionally ``speaker`` and texts; audio that nobody has
  translated may lack the target's columns, or leave them empty (``--missing-targets mask``);
- text, ``<split>.tsv`` in each task's folder: ``id``, ``tgt_text`` (subwords separated by spaces).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echostream.fairseq_plugin.source_features import FeatureReference
from echostream.text import Vocabulary, read_lines

logger = logging.getLogger(__name__)

_ZIP_REFERENCE = re.compile(r"(?P<path>.+\.zip):(?P<offset>\d+):(?P<size>\d+)")
# Rare characters are unknown in any corpus; a dictionary that misses this share is another one.
MAX_UNKNOWN_SHARE = 0.5


@dataclass(frozen=True)
class SpeechRow:
    """One utterance of a speech manifest.

    Attributes:
        line: line number in the manifest, from 1.
        units: (U,) int32 target units; (0,) if none are known.
        speaker: of the source; empty if the manifest does not say.
    """

    line: int
    id: str
    features: FeatureReference
    frames: int
    units: np.ndarray
    speaker: str = ""


@dataclass(frozen=True)
class TextRow:
    """One text: (N,) int32 token ids without end-of-sentence."""

    line: int
    tokens: np.ndarray


def read_rows(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and named columns of a TSV file; further columns are ignored, and
    ``optional`` ones are empty where they are missing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the header lacks a column, a line has another number of fields, an id is
            empty or occurs twice, the file has no rows or is not UTF-8.
    """
    lines = read_lines(path, "manifest")
    header = lines[0].split("\t") if lines else []
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(
            f"{path}, line 1: missing column {missing[0]!r}; needed: {', '.join(columns)}; "
            f"found: {', '.join(header) or 'nothing'}"
        )
    if len(lines) == 1:
        raise ValueError(f"{path}: holds a header but no rows")
    seen: dict[str, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {number}: expected {len(header)} tab-separated fields, "
                f"got {len(fields)}"
            )
        row = dict(zip(header, fields, strict=True))
        identifier = row["id"]
        if not identifier:
            raise ValueError(f"{path}, line {number}: empty id")
        if identifier in seen:
            raise ValueError(
                f"{path}, line {number}: id {identifier!r} occurred before, in line "
                f"{seen[identifier]}"
            )
        seen[identifier] = number
        yield number, {column: row.get(column, "") for column in (*columns, *optional)}


def _count(text: str, column: str, where: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"{where}: {column} must be a positive number, got {text!r}")
    return int(text)


def read_speech_manifest(
    path: Path, *, num_units: int, audio_root: Path | None = None, may_miss_units: bool = False
) -> list[SpeechRow]:
    """Read and check a speech manifest.

    Args:
        num_units: units are 0 to ``num_units - 1``.
        audio_root: what relative audio paths are relative to; None: the manifest's folder.
        may_miss_units: lines without units are right.

    Raises:
        FileNotFoundError: the manifest or an audio file in it is missing.
        ValueError: a line breaks a rule.
    """
    root = path.parent if audio_root is None else audio_root
    sizes: dict[Path, int] = {}
    rows = []
    needed: tuple[str, ...] = ("id", "src_audio", "src_n_frames")
    more: tuple[str, ...] = ("speaker",)
    target = ("tgt_audio", "tgt_n_frames")
    if may_miss_units:
        more = (*more, *target)
    else:
        needed = (*needed, *target)
    for line, row in read_rows(path, needed, optional=more):
        where = f"{path}, line {line}"
        reference = _feature_reference(row["src_audio"], root, where, sizes)
        if may_miss_units and not row["tgt_audio"] and row["tgt_n_frames"] in ("", "0"):
            units, announced = np.zeros(0, dtype=np.int32), 0
        else:
            units = _units(row["tgt_audio"], num_units, where)
            announced = _count(row["tgt_n_frames"], "tgt_n_frames", where)
        if announced != len(units):
            raise ValueError(
                f"{where}: tgt_n_frames is {announced}, but tgt_audio has {len(units)} units"
            )
        frames = _count(row["src_n_frames"], "src_n_frames", where)
        rows.append(SpeechRow(line, row["id"], reference, frames, units, row["speaker"]))
    return rows


def _units(text: str, num_units: int, where: str) -> np.ndarray:
    fields = text.split()
    if not fields:
        raise ValueError(f"{where}: tgt_audio holds no units")
    for position, field in enumerate(fields):
        if not (field.isascii() and field.isdigit()) or int(field) >= num_units:
            raise ValueError(
                f"{where}: unit {position} of tgt_audio must be a number from 0 to "
                f"{num_units - 1}, got {field!r}"
            )
    return np.array(fields, dtype=np.int32)


def _feature_reference(
    text: str, root: Path, where: str, sizes: dict[Path, int]
) -> FeatureReference:
    """Parse ``file.npy`` or ``archive.zip:offset:size``; ``sizes`` remembers file sizes."""
    match = _ZIP_REFERENCE.fullmatch(text)
    if match:
        path = root / match["path"]
        offset, size = int(match["offset"]), int(match["size"])
    elif text.endswith(".npy"):
        path, offset, size = root / text, 0, 0
    else:
        raise ValueError(
            f"{where}: src_audio must be 'file.npy' or 'archive.zip:offset:size', got {text!r}"
        )
    if path not in sizes:
        if not path.is_file():
            raise FileNotFoundError(f"{where}: src_audio: no such file: {path}")
        sizes[path] = path.stat().st_size
    if offset + size > sizes[path]:
        raise ValueError(
            f"{where}: src_audio reaches to byte {offset + size} of {path}, which has {sizes[path]}"
        )
    return FeatureReference(path, offset, size)


def read_text_manifest(path: Path, vocabulary: Vocabulary) -> Mapping[str, TextRow]:
    """Read and encode a text manifest; unknown subwords are counted and reported.

    Raises:
        FileNotFoundError: no such manifest.
        ValueError: a line breaks a rule, or the vocabulary is evidently another one.
    """
    ids = {piece: index for index, piece in enumerate(vocabulary.pieces)}
    rows: dict[str, TextRow] = {}
    unknown = total = first = 0
    for line, row in read_rows(path, ("id", "tgt_text")):
        tokens = [ids.get(piece, vocabulary.unk) for piece in row["tgt_text"].split()]
        if not tokens:
            raise ValueError(f"{path}, line {line}: tgt_text is empty")
        if vocabulary.unk in tokens:
            first = first or line
            unknown += tokens.count(vocabulary.unk)
        total += len(tokens)
        rows[row["id"]] = TextRow(line, np.array(tokens, dtype=np.int32))
    if unknown > MAX_UNKNOWN_SHARE * total:
        raise ValueError(
            f"{path}: {unknown} of {total} subwords are not in the dictionary (first in line "
            f"{first}); this is another dictionary's text"
        )
    if unknown:
        logger.warning(
            "%s: %d of %d subwords (%.3f %%) are unknown, first in line %d",
            path, unknown, total, 100 * unknown / total, first,
        )  # fmt: skip
    return rows
