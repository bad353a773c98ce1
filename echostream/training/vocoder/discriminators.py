"""HiFi-GAN's discriminators (Kong et al., NeurIPS 2020, section 2.3), of any size.

Each returns a score map and the activations behind it, for feature matching. Shapes: B batch,
S samples, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from echostream.training.vocoder.training_settings import DiscriminatorConfig

LEAKY_SLOPE = 0.1
_PERIOD_KERNEL, _PERIOD_STRIDE = 5, 3
_SCALE_KERNEL = 41

Output = tuple[Tensor, list[Tensor]]


def _judge(x: Tensor, convs: nn.ModuleList, score: nn.Module) -> Output:
    """Scores (B, N), and the activations of every layer."""
    activations = []
    for conv in convs:
        x = F.leaky_relu(conv(x), LEAKY_SLOPE)
        activations.append(x)
    activations.append(score(x))
    return activations[-1].flatten(1), activations


class PeriodDiscriminator(nn.Module):
    """Looks at every ``period``-th sample, as an image of period columns."""

    def __init__(self, period: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.period = period
        sizes = (1, *channels)
        padding = (_PERIOD_KERNEL // 2, 0)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (_PERIOD_KERNEL, 1), (_PERIOD_STRIDE, 1), padding))
            for before, after in zip(sizes, sizes[1:], strict=False)
        )
        last = channels[-1]
        self.convs.append(weight_norm(nn.Conv2d(last, last, (_PERIOD_KERNEL, 1), 1, padding)))
        self.score = weight_norm(nn.Conv2d(last, 1, (3, 1), 1, (1, 0)))

    def forward(self, x: Tensor) -> Output:
        """(B, 1, S) waveform to scores (B, N) and activations."""
        missing = -x.size(2) % self.period
        if missing:
            x = F.pad(x, (0, missing), "reflect")
        x = x.unflatten(2, (-1, self.period))  # (B, 1, S / period, period)
        return _judge(x, self.convs, self.score)


class ScaleDiscriminator(nn.Module):
    """Strided grouped convolutions over the waveform."""

    def __init__(self, channels: tuple[int, ...], *, spectral: bool) -> None:
        super().__init__()
        # HiFi-GAN normalises the first scale spectrally and the others by weight.
        norm = spectral_norm if spectral else weight_norm
        self.convs = nn.ModuleList([norm(nn.Conv1d(1, channels[0], 15, padding=7))])
        for before, after in zip(channels, channels[1:], strict=False):
            self.convs.append(
                norm(nn.Conv1d(before, after, _SCALE_KERNEL, 4, _SCALE_KERNEL // 2, groups=4))
            )
        self.convs.append(norm(nn.Conv1d(channels[-1], channels[-1], 5, padding=2)))
        self.score = norm(nn.Conv1d(channels[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> Output:
        """(B, 1, S) waveform to scores (B, N) and activations."""
        return _judge(x, self.convs, self.score)


class Discriminators(nn.Module):
    """All of them."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.periods = nn.ModuleList(
            PeriodDiscriminator(period, config.period_channels) for period in config.periods
        )
        self.scales = nn.ModuleList(
            ScaleDiscriminator(config.scale_channels, spectral=index == 0)
            for index in range(config.scales)
        )
        self.halve = nn.AvgPool1d(4, 2, padding=2)

    def forward(self, x: Tensor) -> list[Output]:
        """(B, 1, S) waveform to the output of each discriminator."""
        outputs = [discriminator(x) for discriminator in self.periods]
        for index, discriminator in enumerate(self.scales):
            x = self.halve(x) if index else x
            outputs.append(discriminator(x))
        return outputs


def discriminator_loss(real: list[Output], fake: list[Output]) -> Tensor:
    """Least squares: real speech should score 1, synthetic 0."""
    losses = [
        (1 - score).square().mean() + false.square().mean()
        for (score, _), (false, _) in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).sum()


def generator_loss(fake: list[Output]) -> Tensor:
    """Least squares: synthetic speech should score 1."""
    return torch.stack([(1 - score).square().mean() for score, _ in fake]).sum()


def feature_loss(real: list[Output], fake: list[Output]) -> Tensor:
    """Mean absolute difference of the activations, summed over layers and discriminators."""
    losses = [
        F.l1_loss(theirs, ours.detach())
        for (_, left), (_, right) in zip(real, fake, strict=True)
        for ours, theirs in zip(left, right, strict=True)
    ]
    return torch.stack(losses).sum()
