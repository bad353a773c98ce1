"""Human translations out of message catalogues of games: dialogue, narration, hints.

Debian's game packages carry them in gettext's binary form (Wesnoth's campaigns, Freeciv, Widelands
and others; GPL and similar: training data, not passed on).
"""

from __future__ import annotations

import gettext
import gzip
import io
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from echostream.training.everyday.debian import read_files

MIN_WORDS, MAX_WORDS = 4, 20  # of Spanish, to be spoken
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”»)]?\s+(?=[\"'“«¿¡(A-ZÁÉÍÓÚÑ])")
# Markup, placeholders, numbers, file names and addresses.
_UNSPOKEN = re.compile(r"[<>{}\[\]%$@#^~|=_\\/*+\d]|&\w+;|\b\w+\.\w+\b|https?:")
_SPANISH = re.compile(r"[a-zA-ZáéíóúüñÁÉÍÓÚÜÑ ,.;:¿?¡!'0-9-]+")
Sentence = tuple[str, str, str]  # Spanish, English, catalogue


def _clean(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("\u200b", "")).strip(" \"'“”«»-—")


def _count_words(text: str) -> int:
    return len(re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text))


def sentences_of(english: str, spanish: str) -> Iterator[tuple[str, str]]:
    """Spanish and English sentences of a message, where both sides have the same number."""
    english = english.split("\x04")[-1].split("^")[-1]  # without its context
    if english.count("\n") != spanish.count("\n"):
        return
    for paragraphs in zip(english.split("\n"), spanish.split("\n"), strict=True):
        parts = [_SENTENCE_END.split(paragraph.strip()) for paragraph in paragraphs]
        if len(parts[0]) != len(parts[1]):
            continue
        for source, translation in zip(*parts, strict=True):
            if _UNSPOKEN.search(source) or _UNSPOKEN.search(translation):
                continue
            source, translation = _clean(source), _clean(translation)
            counts = _count_words(source), _count_words(translation)
            if not (3 <= counts[0] <= 22 and 3 <= counts[1] <= 24):
                continue
            alike = source.lower() == translation.lower() or source.isupper()
            if 0.55 <= counts[0] / counts[1] <= 1.8 and not alike:
                yield translation, source


def read_packages(paths: Sequence[Path]) -> list[Sentence]:
    """Distinct sentences of the Spanish catalogues in .deb files, in their order.

    Raises:
        ValueError: not a Debian package, or not a catalogue.
    """
    found: dict[tuple[str, str], Sentence] = {}
    for path in paths:
        files = read_files(path, lambda name: name.endswith(".mo"))
        for name in sorted(files):
            place = PurePosixPath(name)
            if "es" not in place.parts and place.name != "es.mo":
                continue
            try:  # the class has no public way to list messages
                catalogue: Any = gettext.GNUTranslations(io.BytesIO(files[name]))
                messages = catalogue._catalog
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{path}: {name} is not a catalogue: {error}") from error
            for english, spanish in messages.items():
                # Plural forms have keys of two parts.
                if isinstance(english, str) and english and spanish:
                    for pair in sentences_of(english, spanish):
                        found.setdefault(pair, (*pair, place.stem))
    return list(found.values())


def read_table(path: Path) -> list[Sentence]:
    """Sentences of a file of Spanish, English and catalogue, gzipped or not.

    Raises:
        ValueError: a malformed line, named by file and number.
    """
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = []
    for number, line in enumerate(content.decode("utf-8").split("\n")[:-1], 1):
        row = line.split("\t")
        if len(row) != 3:
            raise ValueError(
                f"{path}, line {number}: expected Spanish, English, catalogue, got {row}"
            )
        spanish, english, catalogue = row
        rows.append((spanish, english, catalogue))
    return rows


def to_speak(sentences: Sequence[Sentence], rng: random.Random) -> list[tuple[str, str]]:
    """Spanish and English of the sentences that can be spoken, in random order."""
    fit = [
        (spanish, english)
        for spanish, english, _ in sentences
        if MIN_WORDS <= len(spanish.split()) <= MAX_WORDS and _SPANISH.fullmatch(spanish)
    ]
    rng.shuffle(fit)
    return fit
