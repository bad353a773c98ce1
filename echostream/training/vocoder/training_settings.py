"""Settings of a vocoder training, and presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from echostream.config import (
    MAY_BE_MISSING,
    CodeVocosConfig,
    VocoderConfig,
)


@dataclass(frozen=True)
class DiscriminatorConfig:
    """HiFi-GAN's multi-period and multi-scale discriminators.

    Attributes:
        periods: one period discriminator each.
        period_channels: of its strided layers.
        scales: scale discriminators, each on speech at half the rate of the one before.
        scale_channels: of the layers of a scale discriminator.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024)
    scales: int = 3
    scale_channels: tuple[int, ...] = (128, 256, 512, 1024)

    def __post_init__(self) -> None:
        if not self.periods and not self.scales:
            raise ValueError("discriminators: periods and scales are both empty")
        if min((*self.period_channels, *self.scale_channels), default=0) < 4:
            raise ValueError("discriminators: channels must be at least 4")
        if any(channels % 4 for channels in self.scale_channels):
            raise ValueError(
                f"discriminators: scale_channels must be multiples of 4, got {self.scale_channels}"
            )


@dataclass(frozen=True)
class VocoderTrainingConfig:
    """How to train.

    Attributes:
        segment_frames: unit frames per training segment.
        adversarial_start: update from which discriminators take part; the spectral losses alone
            go a long way before, at a fraction of the cost.
        stft_weight: of the multi-resolution STFT loss, 0 to leave it out as HiFi-GAN does.
        duration_utterances: utterances per update for the duration predictor.
        lr_decay: factor on the learning rate per 1000 updates.
        warmup_updates: in which the learning rate rises from 0.
        clip_norm: longest gradient of the generator; 0: any.
        stft_sizes: samples of the spectra compared by the STFT loss; hops are a quarter.
        pitch_weight: of the mean error of log pitch, for vocoders that predict it.
        regression_updates: in which CodeVocos learns the gains of each spectrum from the speech's
            own, without making any sound: a fast start.
        half: CodeVocos' blocks compute in bfloat16, which pays where the machine has it.
    """

    vocoder: VocoderConfig | CodeVocosConfig = field(default_factory=VocoderConfig)
    discriminators: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    seed: int = 1
    updates: int = 500000
    batch_size: int = 16
    segment_frames: int = 28
    learning_rate: float = 2e-4
    lr_decay: float = 0.999
    adversarial_start: int = 0
    mel_weight: float = 45.0
    feature_weight: float = 2.0
    stft_weight: float = 0.0
    duration_weight: float = 1.0
    duration_utterances: int = 8
    warmup_updates: int = field(default=0, metadata=MAY_BE_MISSING)
    clip_norm: float = field(default=0.0, metadata=MAY_BE_MISSING)
    stft_sizes: tuple[int, ...] = field(default=(256, 512, 1024), metadata=MAY_BE_MISSING)
    pitch_weight: float = field(default=2.0, metadata=MAY_BE_MISSING)
    regression_updates: int = field(default=0, metadata=MAY_BE_MISSING)
    half: bool = field(default=False, metadata=MAY_BE_MISSING)

    def __post_init__(self) -> None:
        for name in (
            "updates",
            "batch_size",
            "segment_frames",
            "learning_rate",
            "lr_decay",
            "duration_utterances",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in (
            "adversarial_start",
            "mel_weight",
            "feature_weight",
            "stft_weight",
            "duration_weight",
            "warmup_updates",
            "clip_norm",
            "pitch_weight",
            "regression_updates",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.regression_updates > self.adversarial_start:
            raise ValueError(
                "regression_updates must end before adversarial_start, "
                f"got {self.regression_updates} and {self.adversarial_start}"
            )


PRESETS = ("mini", "mini-tune", "vocos", "vocos-tune", "hifigan")


VOCOS = CodeVocosConfig(blocks=6, width=192, hidden_width=512)


def preset(name: str) -> VocoderTrainingConfig:
    """``hifigan``: the published sizes for 1000 units; ``mini``: about a million parameters for
    the 200 MFCC units of echo-mini, trainable on one core; ``mini-tune``: to go on from such a
    vocoder on a GPU, against stronger discriminators; ``vocos``: CodeVocos at 24 kHz on one core
    within an hour, without discriminators; ``vocos-tune``: to go on from a voice's, with sound from
    the first update and without durations."""
    if name == "hifigan":
        return VocoderTrainingConfig()
    if name == "mini":
        return VocoderTrainingConfig(
            vocoder=VocoderConfig(
                num_embeddings=200,
                # Four stages, since the fifth at full rate costs half the time and little else.
                upsample_rates=(5, 4, 4, 4),
                upsample_kernel_sizes=(11, 8, 8, 8),
                upsample_initial_channel=192,
                resblock_kernel_sizes=(3, 7),
                resblock_dilation_sizes=((1, 3), (1, 3)),
            ),
            discriminators=DiscriminatorConfig(
                periods=(2, 3, 5),
                period_channels=(16, 32, 64),
                scales=1,
                scale_channels=(16, 32, 64),
            ),
            updates=14000,
            batch_size=8,
            segment_frames=32,
            learning_rate=5e-4,
            lr_decay=0.97,
            adversarial_start=8000,
            stft_weight=10.0,
        )
    if name == "mini-tune":
        return replace(
            preset("mini"),
            discriminators=DiscriminatorConfig(
                periods=(2, 3, 5, 7),
                period_channels=(32, 64, 128, 256),
                scales=2,
                scale_channels=(32, 64, 128, 256),
            ),
            updates=20000,
            batch_size=32,
            duration_utterances=16,
            learning_rate=4e-4,
            lr_decay=0.82,
            adversarial_start=500,
        )
    if name == "vocos":
        return VocoderTrainingConfig(
            vocoder=VOCOS,
            discriminators=preset("mini").discriminators,
            updates=5000,
            batch_size=6,
            segment_frames=80,
            learning_rate=1e-3,
            lr_decay=0.6,
            warmup_updates=100,
            clip_norm=5.0,
            adversarial_start=5000,
            mel_weight=4.0,
            stft_weight=1.0,
            stft_sizes=(512, 2048),
            duration_utterances=2,
            regression_updates=1000,
            half=True,
        )
    if name == "vocos-tune":
        return replace(
            preset("vocos"),
            vocoder=replace(VOCOS, durations=None),
            learning_rate=4e-4,
            lr_decay=0.65,
            regression_updates=0,
            updates=7000,
            adversarial_start=7000,
        )
    raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
