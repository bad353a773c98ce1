"""Filterbank and normalisation with torch; samples come from :mod:`echostream.samples`."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchaudio.compliance.kaldi as kaldi
from torch import Tensor

from echostream.config import FrontendConfig
from echostream.samples import KALDI_SCALE, WindowedFrontend


def fbank(waveform: Tensor, config: FrontendConfig) -> Tensor:
    """(T,) waveform in [-1, 1] to (frames, bins) Kaldi log-mel filterbank, no dither."""
    if waveform.numel() < config.window_samples:
        return waveform.new_empty(0, config.num_mel_bins)
    return kaldi.fbank(
        (waveform * KALDI_SCALE)[None],
        num_mel_bins=config.num_mel_bins,
        sample_frequency=config.sample_rate,
        frame_length=config.window_ms,
        frame_shift=config.shift_ms,
        dither=0.0,
    )


@dataclass(frozen=True)
class CMVN:
    """Global mean and standard deviation per mel bin, each (bins,) float32."""

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape or self.mean.dim() != 1:
            raise ValueError(
                "CMVN mean and std must be vectors of the same length, "
                f"got {tuple(self.mean.shape)} and {tuple(self.std.shape)}"
            )
        if not bool((self.std > 0).all() and torch.isfinite(self.mean).all()):
            raise ValueError("CMVN std must be positive and mean finite")

    @classmethod
    def identity(cls, bins: int) -> CMVN:
        return cls(torch.zeros(bins), torch.ones(bins))

    @classmethod
    def from_npz(cls, path: Path) -> CMVN:
        """Read fairseq's ``gcmvn.npz`` (arrays ``mean`` and ``std``)."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                mean, std = arrays["mean"], arrays["std"]
        except FileNotFoundError:
            raise FileNotFoundError(f"no such CMVN file: {path}") from None
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not a CMVN file: {error}") from error
        return cls(torch.from_numpy(mean).float(), torch.from_numpy(std).float())

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std


class Frontend(WindowedFrontend):
    """Samples at any rate to normalised filterbank frames, as tensors.

    Args:
        config: window, shift and bins.
        cmvn: global normalisation.
    """

    def __init__(self, config: FrontendConfig, cmvn: CMVN | None = None) -> None:
        super().__init__(config)
        self.cmvn = CMVN.identity(config.num_mel_bins) if cmvn is None else cmvn
        if len(self.cmvn.mean) != config.num_mel_bins:
            raise ValueError(
                f"CMVN has {len(self.cmvn.mean)} bins, the frontend {config.num_mel_bins}"
            )

    def features(self, waveform: np.ndarray) -> Tensor:
        return self.cmvn(fbank(torch.from_numpy(waveform), self.config))
