"""Recordings of a real speaker to evaluate on: the Spanish prompts of Asterisk, a telephone system.

Debian packages them with their Spanish texts, and the same prompts in English are the references.
They are CC BY-SA 3.0, for evaluation, never for training.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path

import numpy as np
import soundfile
from num2words import num2words

from echostream.files import atomic_path, write_atomically
from echostream.training import data_folder
from echostream.training.corpus.text_files import normalize
from echostream.training.everyday.debian import DebianPackage, fetch, read_files

SAMPLE_RATE = 16000
TEST_SET = "asterisk"
MIN_WORDS = 4
_VERSION = "1.6.1-1"
SOUNDS = DebianPackage(
    "asterisk-core-sounds-es-g722",
    _VERSION,
    "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8",
)
SPANISH = DebianPackage(
    "asterisk-core-sounds-es",
    _VERSION,
    "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74",
)
ENGLISH = DebianPackage(
    "asterisk-core-sounds-en",
    _VERSION,
    "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
)
# Those that ship with the repository for demonstration: whole sentences that one can picture.
DEMO_PROMPTS = (
    "conf-now-recording",
    "conf-onlyperson",
    "followme/sorry",
    "followme/status",
    "priv-introsaved",
    "privacy-prompt",
    "transfer",
    "tt-weasels",
    "vm-delete",
    "vm-nobodyavail",
    "vm-nonumber",
    "vm-rec-name",
)
_ATTRIBUTION = f"""# Attribution

The recordings and texts in this folder are the Asterisk core sounds {_VERSION.partition("-")[0]},
http://downloads.asterisk.org/pub/telephony/asterisk/, from the Debian packages {SOUNDS.name},
{SPANISH.name} and {ENGLISH.name}, version {_VERSION}.

Copyright 2003-2010 Allison Smith, who recorded them (http://www.theivrvoice.com), with financial
contributions by Digium, Inc. Licence: Creative Commons Attribution-ShareAlike 3.0 Unported,
https://creativecommons.org/licenses/by-sa/3.0/. COPYRIGHT is the packages' own statement.

Changes: decoded from G.722 to WAV; texts in lower case, without punctuation, numbers in words.
What is made from these files and passed on must name the above and carry the same licence.
"""


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        name: as Asterisk knows it, ``vm-goodbye``.
        spanish, english: its texts as packaged; the Spanish one mostly lacks accents.
    """

    name: str
    spanish: str
    english: str


def parse_texts(content: bytes) -> dict[str, str]:
    """Prompt name to text, from a package's list; prompts without words are left out.

    A line is ``name: text``; comments begin with a semicolon, sounds stand in brackets, and what is
    said about a prompt in parentheses.
    """
    found = {}
    for line in content.decode("utf-8").splitlines():
        name, separator, text = line.partition(":")
        text = " ".join(re.sub(r"\([^)]*\)", " ", text).split())
        if separator and text and not line.startswith(";") and "[" not in text:
            found[name.strip()] = text
    return found


def spell_numbers(text: str, language: str) -> str:
    """Write numbers in words, those of four digits and more digit by digit, as telephones do."""

    def spell(match: re.Match[str]) -> str:
        digits = match[0]
        parts = [digits] if len(digits) < 4 else list(digits)
        return f" {' '.join(num2words(int(part), lang=language) for part in parts)} "

    return re.sub(r"\d+", spell, text)


def reference(text: str, language: str) -> str:
    """A text as references are: lower case, no punctuation, numbers in words."""
    return " ".join(normalize(re.sub(r"[-–—/]", " ", spell_numbers(text, language))).split())


def choose_prompts(
    sounds: set[str], spanish: dict[str, str], english: dict[str, str]
) -> list[Prompt]:
    """Prompts with sound and both texts, of at least ``MIN_WORDS`` Spanish words, by name."""
    return [
        Prompt(name, spanish[name], english[name])
        for name in sorted(sounds & spanish.keys() & english.keys())
        if len(normalize(spanish[name]).split()) >= MIN_WORDS
    ]


def decode(content: bytes, codec: str | None) -> np.ndarray:
    """Mono sound of an encoded file, (T,) float32 at 16 kHz.

    Args:
        codec: name of FFmpeg's format for files without a header; None: the header says it.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: FFmpeg cannot read it.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("decoding these sounds needs PyAV: pip install av") from error
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    try:
        with av.open(io.BytesIO(content), format=codec) as container:
            frames = [*container.decode(audio=0), None]  # None: the resampler's tail
            parts = [out.to_ndarray()[0] for frame in frames for out in resampler.resample(frame)]
    except (av.FFmpegError, IndexError) as error:  # no stream of sound
        kind = codec or "any known kind of"
        raise ValueError(f"not {kind} sound ({len(content)} bytes): {error}") from error
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


@dataclass(frozen=True)
class Recordings:
    """What the packages hold.

    Attributes:
        sounds: encoded sound by prompt name.
        notice: their copyright statement.
    """

    prompts: list[Prompt]
    sounds: dict[str, bytes]
    notice: bytes


def read_recordings(packages: Path) -> Recordings:
    """Fetch and read the three packages.

    Args:
        packages: folder of the .deb files; what is missing is downloaded into it.

    Raises:
        RuntimeError: a package cannot be fetched or read.
        ValueError: a package is not the pinned one.
    """
    lists = {}
    for package in (SPANISH, ENGLISH):
        stem = f"core-sounds-{package.name[-2:]}.txt.gz"
        found = read_files(fetch(package, packages), methodcaller("endswith", stem))
        lists[package] = parse_texts(gzip.decompress(next(iter(found.values()))))
    files = read_files(fetch(SOUNDS, packages), lambda name: name.endswith((".g722", "/copyright")))
    sounds = {
        name.partition("/sounds/")[2].partition("/")[2].removesuffix(".g722"): content
        for name, content in files.items()
        if name.endswith(".g722")
    }
    notice = next(content for name, content in files.items() if name.endswith("/copyright"))
    prompts = choose_prompts(set(sounds), lists[SPANISH], lists[ENGLISH])
    return Recordings(prompts, sounds, notice)


def _write_sound(path: Path, content: bytes) -> None:
    options = {"compression_level": 1.0} if path.suffix == ".flac" else {}
    with atomic_path(path) as temporary:
        soundfile.write(temporary, decode(content, "g722"), SAMPLE_RATE, "PCM_16", **options)


def _write_lists(folder: Path, prompts: Sequence[Prompt], sounds: Sequence[str]) -> None:
    data_folder.write_lists(
        folder,
        sounds=sounds,
        targets=[reference(one.english, "en") for one in prompts],
        sources=[reference(one.spanish, "es") for one in prompts],
    )


def make_recordings(out: Path, packages: Path) -> list[Prompt]:
    """Write the evaluation folder.

    ``audio/*.wav`` and ``simuleval/asterisk/`` with the lists that ``echostream evaluate`` reads,
    ``prompts.tsv`` with names and texts as packaged, ``ATTRIBUTION.md`` and ``COPYRIGHT``.

    Args:
        packages: as for :func:`read_recordings`.

    Returns:
        The prompts, in the order of the lists.
    """
    found = read_recordings(packages)
    paths = [out / "audio" / f"{number:03d}.wav" for number in range(len(found.prompts))]
    for path, prompt in zip(paths, found.prompts, strict=True):
        _write_sound(path, found.sounds[prompt.name])
    data_folder.write_table(
        out / "prompts.tsv",
        ("id", "prompt", "spanish", "english"),
        ((p.stem, o.name, o.spanish, o.english) for p, o in zip(paths, found.prompts, strict=True)),
    )
    write_atomically(out / "ATTRIBUTION.md", _ATTRIBUTION)
    write_atomically(out / "COPYRIGHT", found.notice)
    folder = out / data_folder.LISTS / TEST_SET
    _write_lists(folder, found.prompts, [str(path.resolve()) for path in paths])
    return found.prompts


def make_demo(out: Path, root: Path, packages: Path) -> list[Prompt]:
    """Write the few recordings that ship, as FLAC beside their lists.

    Args:
        root: of the checkout, which paths in the list of sounds are relative to.
        packages: as for :func:`read_recordings`.

    Returns:
        The prompts, in the order of the lists.
    """
    found = read_recordings(packages)
    by_name = {one.name: one for one in found.prompts}
    prompts = [by_name[name] for name in DEMO_PROMPTS]
    paths = [out / f"{one.name.replace('/', '-')}.flac" for one in prompts]
    for path, prompt in zip(paths, prompts, strict=True):
        _write_sound(path, found.sounds[prompt.name])
    write_atomically(out / "ATTRIBUTION.md", _ATTRIBUTION.replace("WAV", "FLAC"))
    _write_lists(out, prompts, [p.resolve().relative_to(root.resolve()).as_posix() for p in paths])
    return prompts
