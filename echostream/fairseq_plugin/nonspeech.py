"""Sounds that nobody said, as filterbank features: what streams contain between sentences.

A mel band's power is a sum over signal and noise, so in log-mel features a gain is an addition and
mixing two sounds is ``logaddexp`` (their phases, which average out, are neglected). That makes it
cheap to draw pauses and noise anew for every stream of every epoch. Needs no fairseq.

Shapes: T frames, F mel bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from echostream.audio import fbank
from echostream.config import FrontendConfig

KINDS = ("white", "coloured", "hum", "tone", "music", "bursts")
FLOOR = float(np.log(np.finfo(np.float32).eps))  # of Kaldi's filterbank: digital silence
DB = math.log(10.0) / 10.0  # log power of one decibel
_EDGE_FRAMES = 4


@dataclass(frozen=True)
class NonspeechPool:
    """Recordings of sounds without speech.

    Attributes:
        sounds: per kind, (T, F) log-mel features of sounds with a level of 0 dBFS (RMS).
        flutter: (T, F) how log-mel features of steady noise stray around their mean.
    """

    sounds: dict[str, list[np.ndarray]]
    flutter: np.ndarray

    @classmethod
    def synthesize(
        cls, config: FrontendConfig, seed: int, *, seconds: float = 20.0, each: int = 3
    ) -> NonspeechPool:
        """Make ``each`` sounds of every kind; the same for the same seed."""
        rng = np.random.default_rng((seed, 0))
        samples = int(seconds * config.sample_rate)
        sounds = {
            kind: [_features(_sound(kind, samples, config.sample_rate, rng), config)
                   for _ in range(each)]
            for kind in KINDS
        }  # fmt: skip
        steady = _features(rng.standard_normal(samples), config)
        return cls(sounds, (steady - steady.mean(axis=0)).astype(np.float32))

    def draw(
        self, frames: int, level_db: float, rng: np.random.Generator, kinds: tuple[str, ...] = KINDS
    ) -> np.ndarray:
        """(frames, F) of one sound at ``level_db`` relative to full scale, repeated if short."""
        sound = _any(self.sounds[kinds[int(rng.integers(len(kinds)))]], rng)
        return np.maximum(_stretch(sound, frames, rng) + np.float32(level_db * DB), FLOOR)

    def extend(
        self,
        before: np.ndarray | None,
        after: np.ndarray | None,
        frames: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """(frames, F) of the background noise that the (T, F) utterances on either side have at
        the edges that face the pause, fading from one to the other."""
        sides = []
        if before is not None:
            sides.append(before[-_EDGE_FRAMES:].mean(axis=0))
        if after is not None:
            sides.append(after[:_EDGE_FRAMES].mean(axis=0))
        fade = np.linspace(0.0, 1.0, frames, dtype=np.float32)[:, None]
        mean = (1 - fade) * sides[0] + fade * sides[-1]
        return np.maximum(mean + _stretch(self.flutter, frames, rng), FLOOR).astype(np.float32)


def mix(features: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Log-mel features of two sounds at once, both (T, F)."""
    return np.logaddexp(features, other).astype(np.float32)


def speech_span(features: np.ndarray, *, above_db: float = 5.0) -> tuple[int, int]:
    """First frame of an utterance's speech and the one behind its last: where (T, F) features
    rise ``above_db`` over the quieter edge, or everything if nowhere."""
    level = features.mean(axis=1)
    edge = min(level[:_EDGE_FRAMES].mean(), level[-_EDGE_FRAMES:].mean())
    loud = np.flatnonzero(level > edge + above_db * DB)
    return (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, len(features))


def _any(choices: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    return choices[int(rng.integers(len(choices)))]


def _stretch(sound: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    start = int(rng.integers(len(sound)))
    return sound[np.arange(start, start + frames) % len(sound)]


def _features(samples: np.ndarray, config: FrontendConfig) -> np.ndarray:
    samples = samples / np.sqrt(np.mean(samples**2))
    return fbank(torch.from_numpy(samples.astype(np.float32)), config).numpy()


def _sound(kind: str, samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(samples) / rate
    if kind == "white":
        return rng.standard_normal(samples)
    if kind == "coloured":
        return _coloured(samples, rng)
    if kind == "hum":
        mains = rng.choice([50.0, 60.0])
        wave = sum(np.sin(2 * np.pi * mains * k * time) / k for k in range(1, 12))
        return wave + 0.1 * _coloured(samples, rng)
    if kind == "tone":
        return np.sin(2 * np.pi * math.exp(rng.uniform(math.log(100), math.log(4000))) * time)
    if kind == "music":
        return _music(samples, rate, rng)
    # Knocks and clicks: noise that starts at random and dies away.
    wave = np.zeros(samples)
    for start in np.flatnonzero(rng.random(samples) < 2.0 / rate):
        length = min(int(rate * rng.uniform(0.01, 0.3)), samples - start)
        decay = np.exp(-np.linspace(0.0, 6.0, length))
        wave[start : start + length] += rng.uniform(0.2, 1.0) * decay * _coloured(length, rng)
    return wave + 1e-3 * rng.standard_normal(samples)


def _coloured(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise between white and the low rumble of rooms."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    angle = np.linspace(0, np.pi, len(spectrum))
    pole = rng.uniform(0.3, 0.98)
    return np.fft.irfft(spectrum / np.abs(1 - pole * np.exp(-1j * angle)), samples)


def _music(samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Chords of decaying harmonic notes, a few a second."""
    wave = np.zeros(samples)
    beat = int(rate * rng.uniform(0.15, 0.6))
    scale = 110.0 * 2 ** (rng.integers(0, 24) / 12) * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11]) / 12)
    for start in range(0, samples, beat):
        length = min(int(beat * rng.uniform(1.0, 3.0)), samples - start)
        time = np.arange(length) / rate
        for pitch in rng.choice(scale, int(rng.integers(1, 4)), replace=False):
            decay = np.exp(-time * rng.uniform(1.0, 6.0))
            note = sum(np.sin(2 * np.pi * pitch * k * time) / k**1.5 for k in range(1, 9))
            wave[start : start + length] += decay * note
    return wave + 1e-4 * rng.standard_normal(samples)
