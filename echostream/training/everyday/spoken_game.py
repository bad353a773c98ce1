"""Spanish speech of actors with its text and a translation: an adventure game, out of Debian.

"Drascula: The Vampire Strikes Back" (Alcachofa Soft, 1996) has ten speaking roles. Clip ``D12.ALS``
of ``drascula-spanish`` is what Dracula says in line 12 of his texts; ``drascula.dat`` of
``drascula`` holds the texts in Spanish and English. Its layout, big-endian, as ScummVM's
``engines/drascula`` reads it::

    "DRASCULA" and a byte of version
    13 tables of the game's rooms: number of rows (2 bytes), rows of a fixed size each
    number of languages (2 bytes)
    texts of each kind: their number (2 bytes), and of each language the size of a block (2 bytes)
        and the block: 2 bytes, then texts: their size with itself (2 bytes), text, zero bytes

The texts are in capitals and without accents, which ``spelling`` guesses.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from echostream.files import atomic_path, write_atomically
from echostream.training import data_folder
from echostream.training.everyday import spelling
from echostream.training.everyday.aligned import Utterance, write_aligned
from echostream.training.everyday.debian import DebianPackage, fetch, read_files
from echostream.training.everyday.unlabelled import trim
from echostream.training.warm_start.clips import LONGEST_S, RATE

_VERSION = "1.0+ds4-2"
SOUNDS = DebianPackage(
    "drascula-spanish",
    _VERSION,
    "87b5f12df3fcd7ca16097c802dff1ab55e40c9ebc21209fa3f031e1661b4b8e5",
)
TEXTS = DebianPackage(
    "drascula",
    _VERSION,
    "ed4af8e2d41ad446e2f3b73533daa1804e2f13f62f596c0b02b8dc39544f22b4",
)
# Kinds of texts in the order of the file, by what names of clips begin with.
ROLES = {
    "": "the hero",
    "D": "Dracula",
    "B": "the drunk",
    "BJ": "Billie Jean",
    "E": "the skeleton",
    "I": "Igor",
    "L": "the werewolf",
    "P": "the pianist",
    "T": "the bartender",
    "VB": "Von Braun",
}
HELD_OUT = ("I", "L")  # two men whom training does not hear
DEV = "dev.tsv"
SHORTEST_S = 1.0
LETTERS_A_S = 5.0, 22.0  # slower or faster, and the clip says something else than the text
_CLIP_RATE = 11025
_DAT_VERSION = 6
_ROW_BYTES = (4, 4, 4, 2, 4, 2, 4, 2, 2, 20, 20, 10, 8)
_ENGLISH, _SPANISH = 0, 1
_SPACE = "º"  # as some lines have it
_NAMES = (
    *("Alucsard", "Billy", "Braun", "Constantino", "Danube", "Danubio", "Desiderio", "Drascula"),
    *("Elvis", "Emilio de Paz", "Emma", "Enma", "Fernan", "Fruskynstein", "Ganimedes", "Gibraltar"),
    *("God", "I", "Igor", "Jesus", "John", "Johnny", "Johny", "Lancha", "Oxford", "Tchaikovsky"),
    *("Transilvania", "Von", "Yoda"),
)
_ATTRIBUTION = f"""# Attribution

THIS IS A MODIFIED VERSION of parts of the game "Drascula: The Vampire Strikes Back": its Spanish
speech, and its texts in Spanish and English, from the Debian packages {SOUNDS.name} and
{TEXTS.name}, version {_VERSION}. All game content is Copyright (C) Alcachofa Soft S.L.

Licence: free to distribute with its readme files and copyright notices left intact, in larger and
commercial collections too; not to be sold by itself; modified versions carry a prominent notice.
No warranty. COPYRIGHT is the packages' own statement and has the licence in full; the readme files
are theirs. They stay with what is passed on.

Changes: clips as WAV files of 16 kHz, without silence at their edges, those without text and those
that do not fit theirs left out; texts in small letters, accents guessed.
"""


@dataclass(frozen=True)
class Line:
    """One clip with its texts.

    Attributes:
        name: of the clip, ``VB12``.
        role: what the name begins with, a key of :data:`ROLES`.
        samples: (T,) float32 at 16 kHz, trimmed.
        spanish, english: as the game has them.
    """

    name: str
    role: str
    samples: np.ndarray
    spanish: str
    english: str


def parse_texts(content: bytes) -> dict[str, list[tuple[str, str]]]:
    """Spanish and English texts of each role, by their number, out of ``drascula.dat``.

    Raises:
        ValueError: the content is laid out in another way.
    """
    head = b"DRASCULA" + bytes([_DAT_VERSION])
    if not content.startswith(head):
        raise ValueError(f"drascula.dat must begin with {head!r}, got {content[: len(head)]!r}")
    position = len(head)

    def number() -> int:
        nonlocal position
        (value,) = struct.unpack_from(">H", content, position)
        position += 2
        return int(value)

    try:
        for size in _ROW_BYTES:
            rows = number()  # which moves the position itself
            position += rows * size
        languages = number()
        texts = {}
        for role in ROLES:
            count, blocks = number(), []
            for _ in range(languages):
                size = number()
                blocks.append(_parse_block(content[position : position + size], count))
                position += size
            texts[role] = list(zip(blocks[_SPANISH], blocks[_ENGLISH], strict=True))
    except (struct.error, IndexError) as error:
        raise ValueError(f"drascula.dat ({len(content)} bytes) ends too early: {error}") from error
    return texts


def _parse_block(block: bytes, count: int) -> list[str]:
    texts, position = [], 2
    for _ in range(count):
        (size,) = struct.unpack_from(">H", block, position)
        text = block[position + 2 : position + size].partition(b"\0")[0].decode("cp850")
        texts.append(" ".join(text.replace(_SPACE, " ").split()))
        position += size
    if position != len(block):
        raise ValueError(
            f"drascula.dat: {count} texts must fill their {len(block)} bytes, got {position}"
        )
    return texts


def decode(content: bytes) -> np.ndarray:
    """A clip as (T,) float32 at 16 kHz, without silence at its edges.

    Clips are WAV files without a header, 8 bits at 11,025 Hz; at the end of most of them there are
    a byte that fills up and the beginning of a chunk that is no sound.
    """
    content = re.sub(rb"\0?(fact.{8})?\Z", b"", content, flags=re.DOTALL)
    samples = np.frombuffer(content, np.uint8).astype(np.float32) / 128 - 1
    return trim(soxr.resample(samples, _CLIP_RATE, RATE))


def pair(
    clips: Mapping[str, bytes], texts: Mapping[str, Sequence[tuple[str, str]]]
) -> Iterator[Line]:
    """Clips with the texts that they say, in the order of roles and numbers.

    Left out are sounds that belong to no role, clips without text or with stage directions in it,
    those shorter than a second or longer than training takes, and those whose texts are too long or
    too short for them.
    """
    for role, known in texts.items():
        for index, (spanish, english) in enumerate(known):
            name = f"{role}{index}"
            if name not in clips or not spanish or not english or "(" in spanish + english:
                continue
            samples = decode(clips[name])
            seconds = len(samples) / RATE
            if not SHORTEST_S <= seconds < LONGEST_S:
                continue
            letters = sum(map(str.isalnum, spanish))
            if LETTERS_A_S[0] <= letters / seconds <= LETTERS_A_S[1]:
                yield Line(name, role, samples, spanish, english)


def make_spoken_game(
    out: Path, packages: Path, accents_from: Sequence[Path] = ()
) -> dict[str, tuple[int, float]]:
    """Write the folder.

    ``wav/*.wav`` (16 kHz), ``part-0.jsonl`` with ``id``, ``text`` and ``file`` of what training
    hears, ``translations.tsv`` with id, Spanish and English of the same without a header,
    ``dev.tsv`` with ``id``, ``file``, ``source`` and ``target`` of the roles held out,
    ``ATTRIBUTION.md``, ``COPYRIGHT`` and the packages' readme files. Lists are written when all
    sounds are there.

    Args:
        packages: folder of the .deb files; what is missing is downloaded into it.
        accents_from: Spanish texts whose spelling is followed; without them texts have no accents.

    Returns:
        Clips and hours of every role.

    Raises:
        RuntimeError: a package cannot be fetched or read.
        ValueError: a package or a text is not what it should be.
    """
    spellings = spelling.count_spellings(spelling.read_texts(accents_from))
    files = read_files(fetch(TEXTS, packages), lambda name: name.endswith(("/drascula.dat", "txt")))
    files |= read_files(
        fetch(SOUNDS, packages), lambda name: name.endswith((".ALS", "/copyright", "txt"))
    )
    [content] = (files[name] for name in files if name.endswith("/drascula.dat"))
    clips = {Path(name).stem: files[name] for name in files if name.endswith(".ALS")}
    utterances, held_out = [], []
    totals = {role: (0, 0.0) for role in ROLES}
    for line in pair(clips, parse_texts(content)):
        path = Path("wav") / f"{line.name}.wav"
        with atomic_path(out / path) as temporary:
            soundfile.write(temporary, line.samples, RATE, "PCM_16")
        spanish = spelling.with_accents(line.spanish.lower(), spellings)
        spanish = spelling.in_sentences(spanish, _NAMES)
        english = spelling.in_sentences(line.english.lower(), _NAMES)
        if line.role in HELD_OUT:
            held_out.append((f"dev_drascula_{line.name}", path.as_posix(), spanish, english))
        else:
            name = f"train_drascula_{line.name}"
            utterances.append(Utterance(name, path, spanish, english))
        count, hours = totals[line.role]
        totals[line.role] = count + 1, hours + len(line.samples) / RATE / 3600
    for name, text in files.items():
        if name.startswith("usr/share/doc/"):
            known = "COPYRIGHT" if name.endswith("/copyright") else Path(name).name
            write_atomically(out / known, text)
    write_atomically(out / "ATTRIBUTION.md", _ATTRIBUTION)
    data_folder.write_table(out / DEV, ("id", "file", "source", "target"), held_out)
    write_aligned(out, utterances)
    return totals
