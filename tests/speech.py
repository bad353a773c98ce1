"""The shipped recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[1]
TEST_AUDIO = ROOT / "data" / "echo_mini" / "test_audio"


def speech_alone(wav: str) -> np.ndarray:
    """(S,) from the first to the last 10 ms that are not much quieter than the loudest."""
    samples, _ = soundfile.read(ROOT / wav, dtype="float32")
    level = np.square(samples[: len(samples) // 160 * 160].reshape(-1, 160)).mean(1)
    loud = np.flatnonzero(level > level.max() / 400)
    return samples[160 * loud[0] : 160 * (loud[-1] + 1)]
