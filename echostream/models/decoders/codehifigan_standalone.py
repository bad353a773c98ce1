"""The CodeHiFiGAN network: unit embedding, duration predictor, HiFi-GAN generator.

Follows the generator of public unit vocoders (Polyak et al., Interspeech 2021; Kong et al.,
NeurIPS 2020) in arithmetic and parameter names, without fairseq. Convolutions are plain here:
weight normalisation belongs to training, and :func:`fold_weight_norm` removes it from a
checkpoint.

Shapes: B batch, N units, T unit frames, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.config import DurationPredictorConfig, VocoderConfig
from echostream.models.module_list import module_list
from echostream.streaming import valid_mask

LEAKY_SLOPE = 0.1
EDGE_KERNEL = 7  # of the first and the last convolution


class ResBlock(nn.Module):
    """Three dilated convolutions, each followed by a plain one, with residuals."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = module_list(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2)
            for d in dilations
        )
        self.convs2 = module_list(
            nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            hidden = dilated(F.leaky_relu(x, LEAKY_SLOPE))
            x = x + plain(F.leaky_relu(hidden, LEAKY_SLOPE))
        return x


class DurationPredictor(nn.Module):
    """Predicts log(1 + frames) of each unit from its neighbours."""

    def __init__(self, config: DurationPredictorConfig) -> None:
        super().__init__()
        hidden, kernel = config.var_pred_hidden_dim, config.var_pred_kernel_size
        self.conv1 = nn.Sequential(
            nn.Conv1d(config.encoder_embed_dim, hidden, kernel, padding=(kernel - 1) // 2),
            nn.ReLU(),
        )
        self.ln1 = nn.LayerNorm(hidden)
        # The original pads the second convolution by 1 whatever its kernel is.
        self.conv2 = nn.Sequential(nn.Conv1d(hidden, hidden, kernel, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(config.var_pred_dropout)

    def forward(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """(B, N, C) unit embeddings, of which ``lengths`` are valid in each row (None: all), to
        (B, N) predicted log(1 + frames)."""
        valid: Tensor | int = 1
        if lengths is not None and min(lengths) < x.size(1):
            # Behind a row's end the convolutions see zeros, as they do behind the longest one's.
            valid = valid_mask(lengths, x.size(1), x.device)[..., None].to(x)
        for conv, norm in ((self.conv1, self.ln1), (self.conv2, self.ln2)):
            x = self.dropout(norm(conv((x * valid).transpose(1, 2)).transpose(1, 2)))
        return self.proj(x).squeeze(2)


class CodeGenerator(nn.Module):
    """Units to waveform."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.upsample_initial_channel
        self.dict = nn.Embedding(config.num_embeddings, config.embedding_dim)
        self.dur_predictor = (
            DurationPredictor(config.dur_predictor_params) if config.dur_predictor_params else None
        )
        self.conv_pre = nn.Conv1d(
            config.model_in_dim, channels, EDGE_KERNEL, padding=EDGE_KERNEL // 2
        )
        ups: list[nn.ConvTranspose1d] = []
        blocks: list[ResBlock] = []
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            ups.append(
                nn.ConvTranspose1d(
                    channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2
                )
            )
            channels //= 2
            for size, dilations in zip(
                config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
            ):
                blocks.append(ResBlock(channels, size, dilations))
        self.ups, self.resblocks = module_list(ups), module_list(blocks)
        self.conv_post = nn.Conv1d(channels, 1, EDGE_KERNEL, padding=EDGE_KERNEL // 2)

    def durations(self, units: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """(B, N) units, of which ``lengths`` are valid in each row (None: all), to (B, N) whole
        frames per unit, at least 1."""
        if self.dur_predictor is None:
            raise ValueError("this vocoder has no duration predictor")
        log_frames = self.dur_predictor(self.dict(units), lengths)
        return torch.round(log_frames.exp() - 1).long().clamp(min=1)

    def embed(self, units: Tensor, durations: Tensor | None) -> Tensor:
        """(1, N) units to (1, C, T) frames, each unit repeated as often as it lasts."""
        x = self.dict(units).transpose(1, 2)
        if durations is None:
            return x
        return x.repeat_interleave(durations.flatten(), dim=2)

    def synthesize(self, x: Tensor) -> Tensor:
        """(B, C, T) embedded frames to (B, 1, T * unit_samples) waveform in [-1, 1]."""
        x = self.conv_pre(x)
        kernels = len(self.config.resblock_kernel_sizes)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, LEAKY_SLOPE))
            blocks = self.resblocks[i * kernels : (i + 1) * kernels]
            x = sum(block(x) for block in blocks) / kernels
        # The original's last activation has torch's default slope, 0.01.
        return self.conv_post(F.leaky_relu(x)).tanh()

    def left_context_frames(self) -> int:
        """How many unit frames before a frame its samples depend on.

        Walks the network backwards from the frame's first sample.
        """
        config = self.config
        earliest = -(EDGE_KERNEL // 2)
        radius = max(
            sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)
            for kernel, dilations in zip(
                config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
            )
        )
        for rate, kernel in reversed(
            list(zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True))
        ):
            padding = (kernel - rate) // 2
            earliest -= radius
            # Output p reads inputs i with i * rate - padding <= p <= i * rate - padding + kernel-1.
            earliest = -((-(earliest + padding - kernel + 1)) // rate)
        return -(earliest - EDGE_KERNEL // 2)

    def duration_radius_units(self) -> int:
        """How many units on either side a predicted duration depends on."""
        params = self.config.dur_predictor_params
        if params is None:
            return 0
        # Two convolutions, each of half its kernel on either side.
        return params.var_pred_kernel_size - 1


WEIGHT_NORM = {  # size to direction, as torch names them before and since parametrisations
    ".weight_g": ".weight_v",
    ".parametrizations.weight.original0": ".parametrizations.weight.original1",
}


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace sizes and directions by the weights they stand for, ``v (g / |v|)`` with the norm
    over all but the first dimension.

    The ratio comes first, as in torch: where it is 1, the weight is ``v`` to the last bit.

    Raises:
        ValueError: a size without its direction.
    """
    folded = {}
    for name, tensor in state.items():
        size = next((suffix for suffix in WEIGHT_NORM if name.endswith(suffix)), None)
        if size is not None:
            stem = name.removesuffix(size)
            if stem + WEIGHT_NORM[size] not in state:
                raise ValueError(f"vocoder weight {name} lacks its {stem}{WEIGHT_NORM[size]}")
            direction = state[stem + WEIGHT_NORM[size]]
            ratio = tensor / torch.norm_except_dim(direction, 2, 0)
            folded[f"{stem}.weight"] = direction * ratio
        elif not name.endswith(tuple(WEIGHT_NORM.values())):
            folded[name] = tensor
    return folded
