"""Training of CodeVocos: what differs from the training of CodeHiFiGAN.

Pitch is given while spectra are learned, and learned beside them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from echostream.models.decoders.codevocos_vocoder import CodeVocosVocoder
from echostream.models.decoders.vocoder_protocol import Vocoder
from echostream.training.vocoder.data import Segments
from echostream.training.vocoder.trainer import WEIGHTS, VocoderTrainer


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


class CodeVocosTrainer(VocoderTrainer):
    """A :class:`VocoderTrainer` whose generator is a :class:`CodeVocosVocoder`.

    Raises:
        ValueError: the speech comes without pitch.
    """

    generator: CodeVocosVocoder

    def _build(self) -> nn.Module:
        if any(utterance.f0 is None for utterance in self.sampler.utterances):
            raise ValueError("CodeVocos learns from speech with its pitch; give --pitch")
        vocoder = CodeVocosVocoder(self.config.vocoder)
        vocoder.network.trains_in_half = self.config.half
        return vocoder

    def _speak(self, segments: Segments) -> tuple[Tensor, dict[str, Tensor]]:
        vocoder = self.config.vocoder
        voiced = (segments.f0 >= vocoder.lowest_f0) & (segments.f0 <= vocoder.highest_f0)
        middle = (vocoder.lowest_f0 * vocoder.highest_f0) ** 0.5
        f0 = bridge_pitch(torch.where(voiced, segments.f0, 0.0), middle)
        fake, predicted = self.generator.network(segments.units, f0)
        error = (predicted.log() - f0.log()).abs() * voiced
        pitch = error.sum() / voiced.sum().clamp(min=1)
        return fake[:, None], {"pitch": self.config.pitch_weight * pitch}

    def _predicts_durations(self) -> bool:
        return self.generator.durations is not None

    def _duration_loss(self) -> Tensor:
        """Squared error of log(1 + frames), per unit, over whole utterances."""
        durations = self.generator.durations
        past, future = durations.config.past_units, durations.config.future_units
        errors = []
        for units, frames in self.sampler.reduced(self.update, self.config.duration_utterances):
            around = nn.functional.pad(units.to(self.device), (past, future), value=-1)
            wanted = torch.log1p(frames.to(self.device, torch.float32))
            errors.append((durations(around) - wanted).square().flatten())
        return torch.cat(errors).mean()

    def vocoder(self) -> Vocoder:
        """A copy of the current generator for synthesis on the CPU."""
        vocoder = CodeVocosVocoder(self.config.vocoder)
        vocoder.load_state_dict(
            {name: t.detach().cpu() for name, t in self.generator.state_dict().items()}
        )
        return vocoder.eval().requires_grad_(False)

    def export(self, folder: Path) -> None:
        """Write the vocoder's file, in half precision."""
        self.vocoder().save(folder / WEIGHTS)

    @torch.no_grad()
    def start_from(self, path: Path) -> None:
        """Take over the weights of a vocoder file.

        Raises:
            FileNotFoundError, ValueError: no such file, or a vocoder of other sizes.
        """
        other = CodeVocosVocoder.load(path)
        if other.config != self.config.vocoder:
            raise ValueError(
                f"{path}: holds a vocoder of other sizes: {other.config}, "
                f"expected {self.config.vocoder}"
            )
        self.generator.load_state_dict(other.state_dict())
