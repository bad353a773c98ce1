"""Filterbank and normalisation with torch; samples come from :mod:`echostream.samples`."""

from __future__ import annotations

import functools
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torchaudio.compliance.kaldi as kaldi
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from echostream.config import FrontendConfig
from echostream.samples import KALDI_SCALE, FrontendState, WindowedFrontend

# Whisper's log-mel: what counts as silence, how far below the loudest a value may lie (both as
# powers of ten), and the loudest that a stream begins with.
LOG_MEL_FLOOR = 1e-10
LOG_MEL_RANGE = 8.0
LOG_MEL_PEAK = 0.5


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


@functools.cache
def _mel_filters(bins: int, window: int, rate: int, device: torch.device) -> Tensor:
    """(bins, window / 2 + 1) Slaney's mel filters, as librosa and Whisper have them."""
    filters = melscale_fbanks(
        window // 2 + 1, 0.0, rate / 2, bins, rate, norm="slaney", mel_scale="slaney"
    )
    return filters.T.contiguous().to(device)


def log_mel(waveform: Tensor, config: FrontendConfig) -> Tensor:
    """(..., T) waveform in [-1, 1] to (..., frames, bins), the logarithm to base 10 of the mel
    power of all whole windows, before any scaling."""
    window = config.window_samples
    if waveform.size(-1) < window:
        return waveform.new_empty(*waveform.shape[:-1], 0, config.num_mel_bins)
    spectrum = torch.stft(
        waveform,
        window,
        config.shift_samples,
        window=torch.hann_window(window, device=waveform.device),
        center=False,
        return_complex=True,
    )
    filters = _mel_filters(config.num_mel_bins, window, config.sample_rate, waveform.device)
    power = filters @ spectrum.abs().square()
    return power.clamp(min=LOG_MEL_FLOOR).log10().transpose(-2, -1)


def scale_log_mel(features: Tensor, peak: Tensor) -> Tensor:
    """Whisper's range of (..., frames, bins) values, given the loudest, broadcastable to them."""
    return (torch.maximum(features, peak - LOG_MEL_RANGE) + 4.0) / 4.0


def running_peak(features: Tensor, before: float = LOG_MEL_PEAK) -> Tensor:
    """(..., frames, bins) to (..., frames, 1): the loudest up to each frame, and ``before``."""
    return features.amax(dim=-1, keepdim=True).cummax(dim=-2).values.clamp(min=before)


class LogMelFrontend(WindowedFrontend):
    """Samples at any rate to Whisper's log-mel frames, scaled by the loudest so far.

    Whisper centres its windows, so half a window of silence precedes a stream and follows it.

    Args:
        config: window, shift and bins.
    """

    def init_state(self) -> FrontendState:
        half = np.zeros(self.config.window_samples // 2, dtype=np.float32)
        return replace(super().init_state(), pending=half, peak=LOG_MEL_PEAK)

    def features(self, waveform: np.ndarray) -> Tensor:
        return log_mel(torch.from_numpy(waveform), self.config)

    def step(
        self, samples: object, sample_rate: int, state: FrontendState, *, final: bool = False
    ) -> tuple[Tensor, FrontendState]:
        features, following = super().step(samples, sample_rate, state, final=final)
        if final:
            half = np.zeros(self.config.window_samples // 2, dtype=np.float32)
            rest = self.features(np.concatenate([following.pending, half]))
            features = torch.cat([features, rest[None]], dim=1)
            following = replace(following, frames=following.frames + len(rest))
        if not features.size(1):
            return features, replace(following, peak=state.peak)
        peak = running_peak(features, state.peak)
        scaled = scale_log_mel(features, peak)
        return scaled, replace(following, peak=float(peak[0, -1]))


def build_frontend(config: FrontendConfig, cmvn: CMVN) -> WindowedFrontend:
    """The filterbank that the configuration names; Whisper's has no global normalisation."""
    return LogMelFrontend(config) if config.kind == "whisper" else Frontend(config, cmvn)
