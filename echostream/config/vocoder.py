"""CodeHiFiGAN."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from echostream.config.checks import require
from echostream.config.loading import MAY_BE_MISSING


@dataclass(frozen=True)
class DurationPredictorConfig:
    """Convolutional duration predictor of CodeHiFiGAN."""

    encoder_embed_dim: int = 128
    var_pred_hidden_dim: int = 128
    var_pred_kernel_size: int = 3
    var_pred_dropout: float = 0.5


@dataclass(frozen=True)
class VocoderConfig:
    """CodeHiFiGAN generator; names follow the JSON that ships with public checkpoints."""

    num_embeddings: int = 1000
    embedding_dim: int = 128
    model_in_dim: int = 128
    upsample_rates: tuple[int, ...] = (5, 4, 4, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (11, 8, 8, 4, 4)
    upsample_initial_channel: int = 512
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    sampling_rate: int = 16000
    dur_predictor_params: DurationPredictorConfig | None = field(
        default_factory=DurationPredictorConfig
    )
    # Files written when this was the only vocoder do not say so.
    kind: Literal["codehifigan"] = field(default="codehifigan", metadata=MAY_BE_MISSING)

    def __post_init__(self) -> None:
        require(
            len(self.upsample_rates) == len(self.upsample_kernel_sizes),
            "vocoder: upsample_rates and upsample_kernel_sizes must have the same length, "
            f"got {len(self.upsample_rates)} and {len(self.upsample_kernel_sizes)}",
        )
        require(
            len(self.resblock_kernel_sizes) == len(self.resblock_dilation_sizes),
            "vocoder: resblock_kernel_sizes and resblock_dilation_sizes must have the same "
            f"length, got {len(self.resblock_kernel_sizes)} and "
            f"{len(self.resblock_dilation_sizes)}",
        )

        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            # Otherwise a frame would not become a whole number of samples.
            require(
                kernel >= rate > 0 and (kernel - rate) % 2 == 0,
                "vocoder: an upsample kernel must exceed its rate by an even number, "
                f"got kernel {kernel} and rate {rate}",
            )
        durations = self.dur_predictor_params
        if durations is not None:
            require(
                durations.encoder_embed_dim == self.embedding_dim,
                "vocoder: dur_predictor_params.encoder_embed_dim must equal embedding_dim, "
                f"got {durations.encoder_embed_dim} and {self.embedding_dim}",
            )
            # Its second convolution is padded for a kernel of 3 whatever the kernel is.
            require(
                durations.var_pred_kernel_size == 3,
                "vocoder: dur_predictor_params.var_pred_kernel_size must be 3, "
                f"got {durations.var_pred_kernel_size}",
            )
        require(
            self.model_in_dim == self.embedding_dim,
            "vocoder: model_in_dim must equal embedding_dim, "
            f"got {self.model_in_dim} and {self.embedding_dim}",
        )

    @property
    def unit_samples(self) -> int:
        """Samples that one unit frame becomes."""
        product = 1
        for rate in self.upsample_rates:
            product *= rate
        return product
