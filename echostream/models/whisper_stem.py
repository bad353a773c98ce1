"""Whisper's convolutional stem, offline and streaming.

Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022: two
convolutions of three frames with GELU, the second of stride 2. Its output frame k (20 ms) reads
log-mel frames up to 2k + 2, so one frame of 10 ms is waited for.

Shapes: B batch, T log-mel frames, S encoder frames of 40 ms, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.config import EmformerConfig
from echostream.streaming import shift_in, valid_mask

GROUP = 4  # log-mel frames in an encoder frame


class WhisperStem(nn.Module):
    """Log-mel frames to frames of 20 ms, without positions.

    Args:
        config: bins and width.
    """

    lookahead = 1

    def __init__(self, config: EmformerConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.input_dim, config.embed_dim, 3)
        self.conv2 = nn.Conv1d(config.embed_dim, config.embed_dim, 3, stride=2)

    def init_state(self, batch_size: int = 1) -> tuple[Tensor, Tensor]:
        """The frame that each convolution reads before its first one, (B, 1, channels)."""
        weight = self.conv1.weight
        return (
            weight.new_zeros(batch_size, 1, weight.size(1)),
            weight.new_zeros(batch_size, 1, weight.size(0)),
        )

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, bins) and (B,) to (B, 2 S, D) and (B,), valid frames of 20 ms in whole encoder
        frames. Padding is treated as the silence behind a stream's end, whatever it holds."""
        rows, size = features.shape[:2]
        padded = F.pad(features, (0, 0, 0, -size % GROUP + self.lookahead))
        counts = lengths.tolist()
        if min(counts, default=0) < size:
            valid = valid_mask(counts, padded.size(1), features.device)
            padded = padded.masked_fill(~valid[..., None], 0.0)
        x, _ = self.step(padded, self.init_state(rows), counts)
        return x, (lengths + GROUP - 1) // GROUP * 2

    def step(
        self, features: Tensor, state: tuple[Tensor, Tensor], lengths: Sequence[int]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """New frames to the frames of 20 ms that they complete.

        Args:
            features: (B, 4 S + 1, bins), the last of each row its look-ahead; zeros behind the end
                of a row's stream.
            lengths: frames of each row that are new, a multiple of 4 but at the end of its stream.

        Returns:
            (B, 2 S, D) and the new state.
        """
        before, hidden_before = state
        size = features.size(1) - self.lookahead
        if not size:
            return features.new_empty(features.size(0), 0, self.conv2.out_channels), state
        x = torch.cat([before, features], dim=1).transpose(1, 2)
        hidden = F.gelu(self.conv1(x)).transpose(1, 2)
        if min(lengths) < size:
            # What the first convolution makes of the silence behind an end is not silence.
            valid = valid_mask(lengths, size, features.device)
            hidden = hidden.masked_fill(~valid[..., None], 0.0)
        x = torch.cat([hidden_before, hidden], dim=1).transpose(1, 2)
        following = (
            shift_in(before, features[:, :size], lengths),
            shift_in(hidden_before, hidden, lengths),
        )
        return F.gelu(self.conv2(x)).transpose(1, 2), following
