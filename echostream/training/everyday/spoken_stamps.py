"""Spanish speech of people with its text and a translation: names of pictures, out of Debian.

The stamps of the children's program Tux Paint are pictures with a sentence that says what they
show. ``NAME.txt`` of ``tuxpaint-stamps-default`` has it in English in its first line and in Spanish
behind ``es.utf8=``; somebody reads it out in ``NAME_desc_es.ogg``. The digits have ``NAME_es.ogg``
instead.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import soundfile

from echostream.files import write_atomically
from echostream.training.everyday.aligned import Utterance, write_aligned
from echostream.training.everyday.debian import fetch, read_files
from echostream.training.everyday.unlabelled import STAMPS

SHORTEST_S, LONGEST_S = 0.6, 11.5
CHARACTERS_A_S = 4.0, 26.0  # slower or faster, and the clip says something else than the text
_FOLDER = "usr/share/tuxpaint/stamps/"
_SPANISH = "es.utf8="
_SOUND = re.compile(r"(?P<stem>.+?)(_desc)?_es\.ogg")
_LETTER = re.compile("La letra|El signo de la letra")  # 146 sentences that differ in one letter
_MARKS = str.maketrans({**dict.fromkeys("«»“”", '"'), "—": ", "})
_ATTRIBUTION = f"""# Attribution

The sounds and texts in this folder are parts of Tux Paint's stamps, from the Debian package
{STAMPS.name}, version {STAMPS.version}.

Copyright 2002-2022 Bill Kendrick and contributors. Licence: GNU General Public License, version 2.
No warranty. COPYRIGHT is the package's own statement. What is passed on keeps that licence.

Changes: sounds are as packaged, those without text and those that do not fit theirs left out;
quotation marks and dashes of the texts in plain characters.
"""


@dataclass(frozen=True)
class Stamp:
    """One sound with its texts.

    Attributes:
        name: path in the folder of stamps, ``animals/birds/owl_desc_es.ogg``.
        sound: as packaged, Ogg Vorbis.
        seconds: how long it is.
        spanish, english: what it says.
    """

    name: str
    sound: bytes
    seconds: float
    spanish: str
    english: str


def parse_texts(content: str) -> tuple[str, str]:
    """Spanish and English of a stamp's text file, each on one line, empty if it has none."""
    lines = content.splitlines()
    spanish = (line.removeprefix(_SPANISH) for line in lines if line.startswith(_SPANISH))
    both = next(spanish, ""), next(iter(lines), "")
    spanish_text, english_text = (" ".join(text.translate(_MARKS).split()) for text in both)
    return spanish_text, english_text


def choose(files: Mapping[str, bytes]) -> Iterator[Stamp]:
    """Spanish sounds with the texts that they say, in the order of their names.

    Left out are sounds without both texts, letters of the alphabet, and those that are too short or
    too long, for training or for their texts.

    Args:
        files: of the package, by path.

    Raises:
        ValueError: a sound or a text cannot be read; names it.
    """
    for path in sorted(files):
        found = _SOUND.fullmatch(path)
        texts = files.get(f"{found['stem']}.txt") if found else None
        if texts is None:
            continue
        try:
            spanish, english = parse_texts(texts.decode("utf-8"))
            seconds = soundfile.info(io.BytesIO(files[path])).duration
        except (UnicodeDecodeError, soundfile.LibsndfileError) as error:
            raise ValueError(f"{path} or its text cannot be read: {error}") from error
        if not spanish or not english or _LETTER.match(spanish):
            continue
        if not SHORTEST_S < seconds < LONGEST_S:
            continue
        if CHARACTERS_A_S[0] < len(spanish) / seconds < CHARACTERS_A_S[1]:
            yield Stamp(path.removeprefix(_FOLDER), files[path], seconds, spanish, english)


def make_spoken_stamps(out: Path, packages: Path) -> list[Stamp]:
    """Write the folder.

    ``ogg/**/*.ogg`` as packaged, ``part-0.jsonl`` with ``id``, ``text`` and ``file``,
    ``translations.tsv`` with id, Spanish and English without a header, ``ATTRIBUTION.md`` and
    ``COPYRIGHT``. Sounds that are there are left alone, and lists are written when all are.

    Args:
        packages: folder of the .deb file; what is missing is downloaded into it.

    Returns:
        The stamps, in the order of the lists.

    Raises:
        RuntimeError: the package cannot be fetched or read.
        ValueError: the package is not the pinned one, or not laid out like it.
    """
    notice = f"usr/share/doc/{STAMPS.name}/copyright"
    package = fetch(STAMPS, packages)
    files = read_files(
        package,
        lambda name: (
            name == notice or (name.startswith(_FOLDER) and name.endswith(("_es.ogg", ".txt")))
        ),
    )
    stamps = list(choose(files))
    if not stamps or notice not in files:
        raise ValueError(
            f"{package} must hold {notice} and Spanish sounds with texts in {_FOLDER}, got "
            f"{'a' if notice in files else 'no'} notice and {len(stamps)} sounds"
        )
    utterances = []
    for number, stamp in enumerate(stamps):
        path = Path("ogg") / stamp.name
        if not (out / path).is_file() or (out / path).read_bytes() != stamp.sound:
            write_atomically(out / path, stamp.sound)
        name = f"train_stamp_{number:04d}"
        utterances.append(Utterance(name, path, stamp.spanish, stamp.english))
    write_atomically(out / "COPYRIGHT", files[notice])
    write_atomically(out / "ATTRIBUTION.md", _ATTRIBUTION)
    write_aligned(out, utterances)
    return stamps
