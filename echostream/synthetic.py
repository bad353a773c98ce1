"""Stand-ins where there is no data: a tiny random system and a speech-like clip."""

from __future__ import annotations

import numpy as np

from echostream.audio import CMVN
from echostream.checkpoint import System
from echostream.config import preset
from echostream.models.echostream_model import seeded_model
from echostream.text import SPECIALS, WORD_START, Vocabulary

SEED = 1
# Speech-like filterbank statistics, so that random weights see inputs of order one.
CMVN_MEAN, CMVN_STD = 12.0, 4.0


def syllables(count: int) -> list[str]:
    """``count`` distinct pieces, every second one starting a word."""
    pieces = [consonant + vowel for vowel in "aeiou" for consonant in "bdfgklmnprstv"]
    return [(WORD_START if i % 2 == 0 else "") + piece for i, piece in enumerate(pieces[:count])]


def random_system() -> System:
    """A tiny system with seeded random weights."""
    config = preset("tiny")
    bins = config.frontend.num_mel_bins
    mean, std = CMVN.identity(bins).mean + CMVN_MEAN, CMVN.identity(bins).std * CMVN_STD
    return System(
        config,
        seeded_model(config, SEED),
        Vocabulary(syllables(config.source_vocab_size - len(SPECIALS))),
        Vocabulary(syllables(config.target_vocab_size - len(SPECIALS))),
        CMVN(mean, std),
    )


def synthetic_clip(seconds: float, rate: int, seed: int) -> np.ndarray:
    """A vowel-like clip: a gliding pulse train through three moving resonances, in syllables."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    pitch = 120 * 2 ** (0.3 * np.sin(2 * np.pi * 0.7 * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    wave = np.zeros_like(time)
    for centre, width, speed in ((600, 200, 1.1), (1500, 400, 1.7), (2600, 500, 2.3)):
        formant = centre + width * np.sin(2 * np.pi * speed * time + generator.uniform(0, 6))
        for harmonic in range(1, 30):
            gain = np.exp(-(((harmonic * pitch - formant) / 150) ** 2))
            wave += gain * np.sin(harmonic * phase)
    envelope = np.clip(np.sin(2 * np.pi * 2.2 * time) + 0.4, 0, 1)
    wave = wave * envelope + 0.002 * generator.standard_normal(len(time))
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)
