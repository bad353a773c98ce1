"""Spectral distances between waveforms: log-mel L1 and multi-resolution STFT."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.transforms import MelSpectrogram

_FLOOR = 1e-5


class MelLoss(nn.Module):
    """Mean absolute difference of log-mel spectra."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.mel = MelSpectrogram(
            sample_rate,
            n_fft=1024,
            hop_length=256,
            n_mels=80,
            power=1.0,
            norm="slaney",
            mel_scale="slaney",
        )

    def spectrum(self, waveform: Tensor) -> Tensor:
        """(B, 1, S) to (B, 1, 80, frames) log-mel."""
        return self.mel(waveform).clamp(min=_FLOOR).log()

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        return F.l1_loss(self.spectrum(fake), self.spectrum(real))


class STFTLoss(nn.Module):
    """Spectral convergence plus log-magnitude L1 at several resolutions (Yamamoto et al., 2020).

    Args:
        resolutions: FFT size and hop, in samples.
    """

    def __init__(
        self, resolutions: tuple[tuple[int, int], ...] = ((256, 64), (512, 128), (1024, 256))
    ) -> None:
        super().__init__()
        self.resolutions = resolutions
        for size, _ in resolutions:
            self.register_buffer(f"window{size}", torch.hann_window(size), persistent=False)

    def _magnitude(self, waveform: Tensor, size: int, hop: int) -> Tensor:
        window = getattr(self, f"window{size}")
        spectrum = torch.stft(waveform.flatten(0, 1), size, hop, window=window, return_complex=True)
        # The gradient of a square root explodes at zero.
        return (spectrum.real.square() + spectrum.imag.square() + 1e-7).sqrt()

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """(B, 1, S) each; mean over resolutions."""
        total = fake.new_zeros(())
        for size, hop in self.resolutions:
            ours, theirs = self._magnitude(fake, size, hop), self._magnitude(real, size, hop)
            convergence = (ours - theirs).norm() / theirs.norm().clamp(min=_FLOOR)
            total = total + convergence + F.l1_loss(ours.log(), theirs.log())
        return total / len(self.resolutions)
