"""Folders of speech with text and a translation, as training that starts from Whisper reads them.

``part-0.jsonl`` has ``id``, ``text`` and ``file`` (from the folder) of each utterance, and
``translations.tsv`` id, text and translation without a header. ``warm_start.clips`` reads the
first, ``--more-texts`` the second.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from echostream.training import data_folder

LISTED, TRANSLATIONS = "part-0.jsonl", "translations.tsv"


@dataclass(frozen=True)
class Utterance:
    """One line of the lists.

    Attributes:
        id: begins with the split, ``train_``.
        file: the sound, from the folder.
        source, target: on one line each, without tabs.
    """

    id: str
    file: Path
    source: str
    target: str


def write_aligned(out: Path, utterances: Sequence[Utterance]) -> None:
    """Write both lists, when all sounds are there; the one that names sounds comes last."""
    data_folder.write_lines(
        out / TRANSLATIONS, (f"{one.id}\t{one.source}\t{one.target}" for one in utterances)
    )
    entries = (
        {"id": one.id, "text": one.source, "file": one.file.as_posix()} for one in utterances
    )
    data_folder.write_lines(
        out / LISTED, (json.dumps(entry, ensure_ascii=False) for entry in entries)
    )
