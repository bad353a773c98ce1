"""Rooms and noises for the source side of the extension, drawn and synthetic."""

from __future__ import annotations

import numpy as np

SAMPLE_RATE = 16000
ROOM_SHARE = 0.6
REVERBERATION_S = (0.1, 0.5)  # time to fall by 60 dB
DIRECT_TO_REVERBERANT_DB = (3.0, 18.0)
HUM_SHARE, HUM_SNR_DB = 0.15, (25.0, 40.0)
BABBLE_SHARE, BABBLE_SNR_DB = 0.25, (15.0, 35.0)


def room_response(rng: np.random.Generator) -> np.ndarray:
    """Impulse response of a synthetic room, (T,): direct sound, early echoes, a decaying tail."""
    reverberation_s = rng.uniform(*REVERBERATION_S)
    count = int(reverberation_s * SAMPLE_RATE)
    start = int(rng.uniform(0.002, 0.01) * SAMPLE_RATE)
    decay = 10 ** (-3 * np.arange(count) / (reverberation_s * SAMPLE_RATE))
    tail = rng.standard_normal(count) * decay
    tail[:start] = 0
    echoes = rng.integers(start, start + int(0.04 * SAMPLE_RATE), 6)
    for at in echoes[echoes < count]:
        tail[at] += rng.uniform(2, 6) * rng.choice([-1, 1]) * decay[at]
    # Walls swallow high frequencies: a one-pole low-pass on all but the direct sound.
    pole = rng.uniform(0.2, 0.7)
    tail = np.convolve(tail, pole ** np.arange(48))[:count]
    ratio = 10 ** (-rng.uniform(*DIRECT_TO_REVERBERANT_DB) / 20)
    response = tail * ratio / np.sqrt(np.square(tail).sum())
    response[0] = 1.0
    return response


def add_room(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put a share of utterances into a room; the direct sound keeps its place and level.

    Args:
        speech: (T,) at 16 kHz.

    Returns:
        (T,), of which a tail beyond the end of the recording is cut.
    """
    if rng.random() >= ROOM_SHARE:
        return speech
    response = room_response(rng)
    size = len(speech) + len(response)
    product = np.fft.rfft(speech, size) * np.fft.rfft(response, size)
    return np.fft.irfft(product, size)[: len(speech)]


def add_noises(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add mains hum or noise that swells and fades like distant voices to a share of utterances.

    The coloured noise that every utterance gets comes on top.
    """
    power = np.mean(np.square(speech, dtype=np.float64))
    clock_s = np.arange(len(speech)) / SAMPLE_RATE
    mixed = speech.astype(np.float64)
    if rng.random() < HUM_SHARE:
        mains_hz = rng.choice([50.0, 60.0])
        hum = sum(
            np.sin(2 * np.pi * k * mains_hz * clock_s + rng.uniform(0, 2 * np.pi)) / k
            for k in range(1, 6)
        )
        mixed += _at_snr(hum, power, rng.uniform(*HUM_SNR_DB))
    if rng.random() < BABBLE_SHARE:
        noise = rng.standard_normal(len(speech))
        spectrum = np.fft.rfft(noise)
        hertz = np.fft.rfftfreq(len(speech), 1 / SAMPLE_RATE)
        # About the long-term spectrum of speech: flat to 500 Hz, then falling.
        noise = np.fft.irfft(spectrum / (1 + (hertz / 500) ** 2), len(speech))
        swell = 1 + 0.8 * np.sin(2 * np.pi * rng.uniform(1.5, 5) * clock_s + rng.uniform(0, 6))
        mixed += _at_snr(noise * swell, power, rng.uniform(*BABBLE_SNR_DB))
    return mixed


def _at_snr(noise: np.ndarray, power: float, snr_db: float) -> np.ndarray:
    return noise * np.sqrt(power / 10 ** (snr_db / 10) / np.mean(np.square(noise)))
