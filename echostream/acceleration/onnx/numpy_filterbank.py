"""Kaldi's filterbank in numpy, from the tables that a model was exported with."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

import numpy as np

from echostream.config import FrontendConfig
from echostream.samples import KALDI_SCALE, WindowedFrontend

PREEMPHASIS = 0.97
FLOOR = np.finfo(np.float32).eps


@dataclass(frozen=True)
class FilterbankTables:
    """What the filterbank multiplies with, float32.

    Attributes:
        window: (W,) samples of the analysis window.
        mel: (N / 2, bins) from the lower half of an N-point spectrum to mel bins.
        mean, std: (bins,) global normalisation.
    """

    window: np.ndarray
    mel: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def from_npz(cls, content: bytes, where: str) -> FilterbankTables:
        """Read what :meth:`to_npz` wrote.

        Raises:
            ValueError: something else; ``where`` names it.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return cls(*(arrays[name] for name in ("window", "mel", "mean", "std")))
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{where}: not filterbank tables: {error}") from error

    def to_npz(self) -> bytes:
        file = io.BytesIO()
        np.savez(file, window=self.window, mel=self.mel, mean=self.mean, std=self.std)
        return file.getvalue()


class ArrayFrontend(WindowedFrontend):
    """Samples at any rate to normalised filterbank frames, without torch: log mel energies under
    Kaldi's window, without dither.

    Args:
        config: window, shift and bins.
        tables: those that fit it.
    """

    def __init__(self, config: FrontendConfig, tables: FilterbankTables) -> None:
        super().__init__(config)
        self.tables = tables

    def filterbank(self, waveform: np.ndarray) -> np.ndarray:
        """(T,) waveform in [-1, 1] to (frames, bins), not normalised."""
        tables, size = self.tables, len(self.tables.window)
        if len(waveform) < size:
            return np.zeros((0, tables.mel.shape[1]), dtype=np.float32)
        scaled = waveform * np.float32(KALDI_SCALE)
        frames = np.lib.stride_tricks.sliding_window_view(scaled, size)
        frames = frames[:: self.config.shift_samples]
        frames = frames - frames.mean(axis=1, keepdims=True)
        before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
        frames = (frames - np.float32(PREEMPHASIS) * before) * tables.window
        bands = len(tables.mel)
        # Where numpy's transform is of double precision alone, its result is rounded.
        spectrum = np.abs(np.fft.rfft(frames, 2 * bands)).astype(np.float32)[:, :bands]
        return np.log(np.maximum((spectrum * spectrum) @ tables.mel, FLOOR))

    def features(self, waveform: np.ndarray) -> np.ndarray:
        return (self.filterbank(waveform) - self.tables.mean) / self.tables.std
