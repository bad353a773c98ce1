"""Training of CodeVocos: what differs from the training of CodeHiFiGAN.

Pitch is given while spectra are learned, and learned beside them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.config import CodeVocosConfig
from echostream.models.decoders.codevocos import PULSE_LEVEL
from echostream.models.decoders.codevocos_vocoder import CodeVocosVocoder
from echostream.training.vocoder.data import Segments
from echostream.training.vocoder.vocoder_trainer import WEIGHTS, VocoderTrainer

SMOOTHED_HZ = 240.0  # either side: further than the harmonics of most voices lie apart
POWER_FLOOR = 1e-7
NOISE_AT_ALL = 0.01  # share of noise in voice at low frequencies
UNVOICED_LOG_LOSS = 6.0


def bridge_pitch(f0: Tensor, otherwise: float) -> Tensor:
    """Fill frames without pitch by a straight line in log pitch between their neighbours.

    Args:
        f0: (B, F) in Hz, 0 where there is none.
        otherwise: pitch of rows that have none at all.
    """
    place = torch.arange(f0.size(1), device=f0.device).expand_as(f0)
    voiced = f0 > 0
    last = torch.where(voiced, place, -1).cummax(1).values
    following = torch.where(voiced, place, f0.size(1)).flip(1).cummin(1).values.flip(1)
    none = last.lt(0) & following.ge(f0.size(1))
    left = torch.where(last < 0, following, last).clamp(max=f0.size(1) - 1)
    right = torch.where(following >= f0.size(1), last, following).clamp(min=0)
    log = torch.where(voiced, f0, torch.ones_like(f0)).log()
    share = (place - left) / (right - left).clamp(min=1)
    low, high = log.gather(1, left), log.gather(1, right)
    return torch.where(none, torch.full_like(f0, otherwise), (low + (high - low) * share).exp())


def gain_targets(waveform: Tensor, f0: Tensor, voiced: Tensor, config: CodeVocosConfig) -> Tensor:
    """Log gains that give pulses and noise the spectral envelopes of real speech.

    Power smoothed over neighbouring frequencies is shared out: in voice, low frequencies go to the
    pulses and high ones to both; elsewhere all is noise. Rough, but a place to begin.

    Args:
        waveform: (B, S).
        f0: (B, F) Hz.
        voiced: (B, F).

    Returns:
        (B, F, 2 K): of pulses, of noise.
    """
    hop, bins, rate = config.hop_samples, config.bins, config.sampling_rate
    frames = F.pad(waveform, (hop, 0)).unfold(1, 2 * hop, hop)
    window = torch.hann_window(2 * hop, device=waveform.device).sqrt()
    power = torch.fft.rfft(frames * window).abs().square()
    reach = max(round(SMOOTHED_HZ * hop / rate), 1)  # bins lie rate / (2 * hop) apart
    power = F.avg_pool1d(power, 2 * reach + 1, 1, reach, count_include_pad=False)
    power = (power + POWER_FLOOR * hop).log()
    frequency = torch.linspace(0, rate / 2, bins, device=waveform.device)
    share = NOISE_AT_ALL + (1 - NOISE_AT_ALL) * torch.sigmoid((frequency - 5000) / 700) / 2
    # Mean power of what is shaped: harmonics of twice the pulse level, one every f0; the noise,
    # whose spectra overlap without knowing each other and so keep half of it.
    pulses = 2 * math.log(PULSE_LEVEL) + math.log(hop * rate) - f0.log()[..., None]
    noise = 2 * math.log(PULSE_LEVEL) + math.log(bins / 2)
    voiced = voiced[..., None]
    of_pulses = torch.where(voiced, power + (1 - share).log(), power - UNVOICED_LOG_LOSS) - pulses
    of_noise = torch.where(voiced, power + share.log(), power) - noise
    return torch.cat([of_pulses, of_noise], dim=2) / 2


class CodeVocosTrainer(VocoderTrainer):
    """A :class:`VocoderTrainer` whose generator is a :class:`CodeVocosVocoder`.

    Raises:
        ValueError: the speech comes without pitch.
    """

    generator: CodeVocosVocoder

    @property
    def _sizes(self) -> CodeVocosConfig:
        if not isinstance(self.config.vocoder, CodeVocosConfig):
            raise ValueError(f"this trainer is CodeVocos's, got a {self.config.vocoder.kind}")
        return self.config.vocoder

    def _build(self) -> nn.Module:
        if any(utterance.f0 is None for utterance in self.sampler.utterances):
            raise ValueError("CodeVocos learns from speech with its pitch; give --pitch")
        vocoder = CodeVocosVocoder(self._sizes)
        vocoder.network.trains_in_half = self.config.half
        return vocoder

    def _speak(self, segments: Segments) -> tuple[Tensor | None, dict[str, Tensor]]:
        vocoder = self._sizes
        assert segments.f0 is not None  # seen to when the generator was built
        voiced = (segments.f0 >= vocoder.lowest_f0) & (segments.f0 <= vocoder.highest_f0)
        middle = (vocoder.lowest_f0 * vocoder.highest_f0) ** 0.5
        f0 = bridge_pitch(torch.where(voiced, segments.f0, 0.0), middle)
        network, fake = self.generator.network, None
        losses: dict[str, Tensor] = {}
        if self.update < self.config.regression_updates:
            gains, predicted = network.gains(segments.units)
            wanted = gain_targets(segments.waveform[:, 0], f0, voiced, vocoder)
            losses["gains"] = F.l1_loss(gains[..., : 2 * vocoder.bins], wanted)
        else:
            fake, predicted = network(segments.units, f0)
            fake = fake[:, None]
        error = (predicted.log() - f0.log()).abs() * voiced
        losses["pitch"] = self.config.pitch_weight * error.sum() / voiced.sum().clamp(min=1)
        return fake, losses

    def _predicts_durations(self) -> bool:
        return self.generator.durations is not None

    def _duration_loss(self) -> Tensor:
        """Squared error of log(1 + frames), per unit, over whole utterances."""
        durations = self.generator.durations
        assert durations is not None  # asked only where it predicts them
        past, future = durations.config.past_units, durations.config.future_units
        errors = []
        for units, frames in self.sampler.reduced(self.update, self.config.duration_utterances):
            around = nn.functional.pad(units.to(self.device), (past, future), value=-1)
            wanted = torch.log1p(frames.to(self.device, torch.float32))
            errors.append((durations(around) - wanted).square().flatten())
        return torch.cat(errors).mean()

    def vocoder(self) -> CodeVocosVocoder:
        """A copy of the current generator for synthesis on the CPU."""
        vocoder = CodeVocosVocoder(self._sizes)
        vocoder.load_state_dict(
            {name: t.detach().cpu() for name, t in self.generator.state_dict().items()}
        )
        return vocoder.eval().requires_grad_(False)

    def export(self, folder: Path) -> None:
        """Write the vocoder's file, in half precision."""
        self.vocoder().save(folder / WEIGHTS)

    @torch.no_grad()
    def start_from(self, path: Path) -> None:
        """Take over the weights of a vocoder file; durations, which voices do not keep, may be
        missing in it.

        Raises:
            FileNotFoundError, ValueError: no such file, or a vocoder of other sizes.
        """
        other, mine = CodeVocosVocoder.load(path), self._sizes
        if other.config not in (mine, replace(mine, durations=None)):
            raise ValueError(
                f"{path}: holds a vocoder of other sizes: {other.config}, expected {mine}"
            )
        self.generator.network.load_state_dict(other.network.state_dict())
        if other.durations is not None:
            assert self.generator.durations is not None  # the sizes are the same
            self.generator.durations.load_state_dict(other.durations.state_dict())
