"""Sounds, and a detector that takes the loud ones for speech."""

from __future__ import annotations

import numpy as np

from echostream.live.speech_gate import WINDOW_SAMPLES


class LoudIsSpeech:
    """A detector of which the test knows what it says; counts what it has heard."""

    def init_state(self) -> int:
        return 0

    def step(self, window: np.ndarray, state: int) -> tuple[bool, int]:
        assert window.shape == (WINDOW_SAMPLES,)
        return bool(np.sqrt(np.mean(window**2)) > 0.05), state + 1


def tone(seconds: float, rate: int, level: float) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype("f4")
