"""Filterbank features on disk, and SpecAugment.

Features are NumPy arrays (T, bins), one file each or stored without compression in a zip archive
and addressed by byte range, which spares hundreds of thousands of small files.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echostream.fairseq_plugin.data_config import SpecAugmentConfig


@dataclass(frozen=True)
class FeatureReference:
    """A whole file (``size`` 0) or a byte range of one."""

    path: Path
    offset: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.offset}:{self.size}" if self.size else str(self.path)


def load_features(reference: FeatureReference, *, frames: int, bins: int, where: str) -> np.ndarray:
    """Read (frames, bins) float32 features.

    Raises:
        FileNotFoundError: the file is gone.
        ValueError: no array, another shape than announced, or values that are not finite;
            names ``where`` and the file.
    """
    try:
        with open(reference.path, "rb") as file:
            file.seek(reference.offset)
            data = file.read(reference.size or -1)
        features = np.load(io.BytesIO(data), allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: no such feature file: {reference.path}") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{where}: {reference} holds no NumPy array: {error}") from error
    if not isinstance(features, np.ndarray) or features.shape != (frames, bins):
        shape = getattr(features, "shape", type(features).__name__)
        raise ValueError(f"{where}: {reference} must be ({frames}, {bins}), got {shape}")
    features = features.astype(np.float32, copy=False)
    if not np.isfinite(features).all():
        raise ValueError(f"{where}: {reference} holds values that are not finite")
    return features


def spec_augment(
    features: np.ndarray, config: SpecAugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """(T, bins) with random bands of bins and stretches of frames set to the mean; a copy."""
    masked = features.copy()
    fill = features.mean()
    frames, bins = features.shape
    for _ in range(config.freq_mask_N):
        width = int(rng.integers(0, min(config.freq_mask_F, bins) + 1))
        start = int(rng.integers(0, bins - width + 1))
        masked[:, start : start + width] = fill
    longest = min(config.time_mask_T, int(frames * config.time_mask_p))
    for _ in range(config.time_mask_N):
        length = int(rng.integers(0, longest + 1))
        start = int(rng.integers(0, frames - length + 1))
        masked[start : start + length] = fill
    return masked
