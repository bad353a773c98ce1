"""The sentences of the corpus ``everyday`` spoken by Kokoro-82M, in many voices and two accents.

Each process has one thread and a file of its own. What is there already is not made again.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from echostream.files import atomic_path, write_atomically
from echostream.training.voice import kokoro

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16000
PHONEMES = "phonemes.tsv"  # beside the list
_FOLDER_SIZE = 1000  # files in one folder
# As Kokoro writes sounds that espeak-ng writes with two characters.
_SINGLE = (("tʃ", "ʧ"), ("dʒ", "ʤ"), ("ts", "ʦ"))
_MARKS = ",;:.!?…—"
_UNSAID = re.compile(r"[\"“”«»()\[\]¡¿*_]")
_MIXED = re.compile(r"(\w+)\*([\d.]+)\+(\w+)\*([\d.]+)")


@dataclass(frozen=True)
class Spoken:
    """One line of the list to speak: id, accent, voice, speed, text."""

    number: int
    id: str
    accent: str
    voice: str
    speed: float
    text: str


def read_list(path: Path) -> list[Spoken]:
    """Read what ``make_everyday`` writes.

    Raises:
        ValueError: a line of another form; names it.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        columns = line.split("\t")
        if len(columns) != 5 or not re.fullmatch(r"[\w.-]+", columns[0]):
            raise ValueError(
                f"{path}, line {number + 1}: expected id, accent, voice, speed, text, got {columns}"
            )
        name, accent, voice, speed, text = columns
        found.append(Spoken(number, name, accent, voice, float(speed), text))
    return found


def mixed_styles(folder: Path, voice: str) -> np.ndarray:
    """(symbols, width) of a voice, or of a mixture such as ``ef_dora*0.6+af_bella*0.4``.

    Raises:
        FileNotFoundError: no such voice.
        ValueError: shares that do not sum to one.
    """
    mixture = _MIXED.fullmatch(voice)
    if mixture is None:
        return kokoro.read_styles(folder, voice)
    first, share, second, other_share = mixture.groups()
    if abs(float(share) + float(other_share) - 1) > 1e-6:
        raise ValueError(f"the shares of a mixture must sum to 1, got {voice!r}")
    styles = (kokoro.read_styles(folder, name) for name in (first, second))
    return sum(s * np.float32(w) for s, w in zip(styles, (share, other_share), strict=True))


class SpanishPhonemes:
    """Spanish text to Kokoro's symbols by espeak-ng, in the accents ``es`` and ``es-419``.

    Raises:
        ImportError: no phonemizer.
        RuntimeError: no espeak-ng.
    """

    def __init__(self) -> None:
        try:
            from phonemizer.backend import EspeakBackend
        except ImportError as error:
            raise ImportError("speaking needs the package phonemizer") from error
        self._make = lambda accent: EspeakBackend(
            accent,
            preserve_punctuation=True,
            with_stress=True,
            language_switch="remove-flags",
            logger=logging.getLogger(__name__),
        )
        self._backends: dict[str, Any] = {}

    def __call__(self, text: str, accent: str) -> str:
        """Symbols, with the text's punctuation and a full stop where it has no end."""
        if accent not in self._backends:
            self._backends[accent] = self._make(accent)
        text = _UNSAID.sub(" ", text.replace("...", "…").replace("–", "—"))
        # One mark where several follow one another, and none before the first word.
        text = re.sub(rf"([{_MARKS}])[{_MARKS}]+", r"\1", text).lstrip(_MARKS + " ")
        said = self._backends[accent].phonemize([" ".join(text.split())], strip=True)[0]
        for sound, symbol in _SINGLE:
            said = said.replace(sound, symbol)
        said = re.sub(rf"\s+(?=[{_MARKS}])", "", " ".join(said.split()))
        return said if said.endswith((".", "!", "?", "…")) else said.rstrip(_MARKS) + "."


def write_phonemes(
    lines: Sequence[Spoken], path: Path, phonemes: Callable[[str, str], str]
) -> None:
    """A table of accent, text and symbols, for a machine without espeak-ng."""
    rows = (f"{one.accent}\t{one.text}\t{phonemes(one.text, one.accent)}\n" for one in lines)
    write_atomically(path, "".join(rows))


def read_phonemes(path: Path) -> Callable[[str, str], str]:
    """Text and accent to symbols, as a table has them; a text that it lacks is an error."""
    table = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        accent, text, symbols = line.split("\t")
        table[text, accent] = symbols

    def known(text: str, accent: str) -> str:
        if (text, accent) not in table:
            raise ValueError(f"{path}: no symbols of {text!r} in the accent {accent}")
        return table[text, accent]

    return known


def speak(
    lines: list[Spoken],
    out: Path,
    say: Callable[[str, Spoken], np.ndarray],
    phonemes: Callable[[str, str], str],
    *,
    index: int = 0,
    processes: int = 1,
) -> float:
    """Speak every ``processes``-th line from ``index`` on that is not there yet.

    Args:
        out: gets ``audio/NNN/ID.ogg`` (Opus, 16 kHz) and ``part-INDEX.jsonl``, a line when a
            sentence is whole.
        say: symbols and line to a (T,) waveform at Kokoro's rate.
        phonemes: text and accent to symbols.

    Returns:
        Seconds of speech made.
    """
    out.mkdir(parents=True, exist_ok=True)
    done = kokoro.already_made(out)
    seconds = 0.0
    with kokoro.open_part(out, index) as table:
        for line in lines[index::processes]:
            if line.id in done:
                continue
            symbols = phonemes(line.text, line.accent)
            if not 1 < len(symbols) <= kokoro.LONGEST:
                logger.warning("left out %s: it has %d symbols", line.id, len(symbols))
                continue
            samples = soxr.resample(say(symbols, line), kokoro.SAMPLE_RATE, SAMPLE_RATE)
            file = f"audio/{line.number // _FOLDER_SIZE:03d}/{line.id}.ogg"
            with atomic_path(out / file) as temporary:
                soundfile.write(temporary, samples, SAMPLE_RATE, format="OGG", subtype="OPUS")
            length = len(samples) / SAMPLE_RATE
            entry = {"id": line.id, "lang": line.accent, "voice": line.voice, "speed": line.speed}
            entry |= {"text": line.text, "file": file, "seconds": round(length, 3)}
            table.write(json.dumps(entry, ensure_ascii=False) + "\n")
            table.flush()
            seconds += length
    return seconds


def run(path: Path, models: Path, out: Path, index: int, processes: int) -> float:
    """What one process does: :func:`speak` with Kokoro's network and voices in ``models``, and with
    the symbols of :data:`PHONEMES` where they were written."""
    network = kokoro.Kokoro(models, "ef_dora")

    def say(symbols: str, line: Spoken) -> np.ndarray:
        network.styles = mixed_styles(models / kokoro.VOICES_FOLDER, line.voice)
        return network.say(network.known(symbols), line.speed).waveform

    table = path.with_name(PHONEMES)
    phonemes = read_phonemes(table) if table.is_file() else SpanishPhonemes()
    return speak(read_list(path), out, say, phonemes, index=index, processes=processes)
