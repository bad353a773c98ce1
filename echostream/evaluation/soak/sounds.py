"""Sounds in which nobody speaks, block by block, the same every time.

None of them is made by the generator that training draws its sounds from.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

RATE = 16000
_SEED = 1
_TONE_HZ, _TONE_DB, _MUSIC_DB = 440.0, -20.0, -20.0
_BEAT_S = 0.5
# Roots in semitones above A2, and whether the chord is a minor one: i VI III VII.
_CHORDS = ((0, True), (-4, False), (3, False), (-2, False))
_MELODY = (12, 15, 19, 17, 15, 14, 12, 10, 7, 10, 12, 14)


def gain(level_db: float) -> float:
    """The factor that a level in dB stands for."""
    return 10 ** (level_db / 20)


def _noise(level_db: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    return gain(level_db) * rng.standard_normal(samples, dtype=np.float32)


def _tone(start: int, samples: int) -> np.ndarray:
    time = (start + np.arange(samples)) / RATE
    return gain(_TONE_DB) * np.sqrt(2) * np.sin(2 * np.pi * _TONE_HZ * time)


def _note(semitones: float, seconds: float, harmonics: int = 6) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 110.0 * 2 ** (semitones / 12) * time
    wave = sum(np.sin(2 * np.pi * k * pitch) / k**2 for k in range(1, harmonics + 1))
    # A soft beginning, then it dies away: a plucked string.
    return wave * np.minimum(time / 0.01, 1) * np.exp(-3 * time)


def _beat(number: int) -> np.ndarray:
    """Half a second of music: a chord every four beats, a melody and a drum above it."""
    root, minor = _CHORDS[number // 4 % len(_CHORDS)]
    wave = _note(root + _MELODY[number * 5 % len(_MELODY)], _BEAT_S)
    for step in (0, 3 if minor else 4, 7):
        wave = wave + 0.7 * _note(root + step, _BEAT_S)
    rng = np.random.default_rng((_SEED, number))
    drum = rng.standard_normal(len(wave)) * np.exp(-60 * np.arange(len(wave)) / RATE)
    return wave + (0.5 if number % 2 else 0.2) * drum


@functools.cache
def _music_rms() -> float:
    """Of four chords: a whole turn of the harmony."""
    return float(np.sqrt(np.mean(np.concatenate([_beat(n) for n in range(16)]) ** 2)))


def _music(start: int, samples: int) -> np.ndarray:
    beat = int(_BEAT_S * RATE)
    first, last = start // beat, -(-(start + samples) // beat)
    wave = np.concatenate([_beat(number) for number in range(first, last)])
    return gain(_MUSIC_DB) / _music_rms() * wave[start - first * beat :][:samples]


SOUNDS = ("silence", "noise-40", "noise-14", "tone", "music")
HEADINGS = {
    "silence": "digital silence",
    "noise-40": "white noise at -40 dB",
    "noise-14": "white noise at -14 dB",
    "tone": "a tone of 440 Hz at -20 dB",
    "music": "music-like sound at -20 dB",
}


def blocks(name: str, seconds: float) -> Iterator[np.ndarray]:
    """One of :data:`SOUNDS` in blocks of a second: (T,) float32 at :data:`RATE`. Levels are RMS,
    relative to full scale.

    Raises:
        ValueError: no such sound.
    """
    if name not in SOUNDS:
        raise ValueError(f"sounds are {', '.join(SOUNDS)}, got {name!r}")
    total, rng = int(seconds * RATE), np.random.default_rng(_SEED)
    for start in range(0, total, RATE):
        samples = min(RATE, total - start)
        if name == "silence":
            wave = np.zeros(samples)
        elif name == "tone":
            wave = _tone(start, samples)
        elif name == "music":
            wave = _music(start, samples)
        else:
            wave = _noise(float(name.removeprefix("noise")), samples, rng)
        yield np.clip(wave, -1, 1).astype(np.float32)
