"""A gated causal depthwise convolution, offline and streaming.

Shapes: B batch, T frames, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CausalConvolution(nn.Module):
    """Norm, pointwise GLU, causal depthwise convolution, SiLU, pointwise.

    Args:
        dim: width D.
        kernel: frames K that an output reads, the last one its own.
    """

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.kernel = kernel
        self.layer_norm = nn.LayerNorm(dim)
        self.pointwise_in = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, groups=dim)
        self.pointwise_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, windows: Tensor) -> Tensor:
        """Whole utterances: (B, R + T, D) to the same; ``windows`` of :func:`right_windows`.
        Right contexts take K times their memory here."""
        gated, right = self._gate(x), len(windows)
        out, _ = self._convolve(gated[:, right:], self.init_state(x.size(0)))
        if right:
            # Position -1 is the zero appended at the end.
            read = F.pad(gated, (0, 0, 0, 1))[:, windows]  # (B, R, K, D)
            looked = torch.einsum("brkd,dk->brd", read, self.depthwise.weight[:, 0])
            out = torch.cat([looked + self.depthwise.bias, out], dim=1)
        return self._finish(out)

    def init_state(self, batch_size: int) -> Tensor:
        """Silence before the first frame, (B, K - 1, D)."""
        weight = self.depthwise.weight
        return weight.new_zeros(batch_size, self.kernel - 1, weight.size(0))

    def step(self, x: Tensor, state: Tensor, right_length: int) -> tuple[Tensor, Tensor]:
        """One segment: (B, R + S, D) to the same, and the new state."""
        gated = self._gate(x)
        # In the order of time the right context comes last; the next segment brings it again.
        ordered = torch.cat([gated[:, right_length:], gated[:, :right_length]], dim=1)
        out, read = self._convolve(ordered, state)
        segment = x.size(1) - right_length
        out = torch.cat([out[:, segment:], out[:, :segment]], dim=1)
        return self._finish(out), read[:, segment : segment + self.kernel - 1].clone()

    def _gate(self, x: Tensor) -> Tensor:
        return F.glu(self.pointwise_in(self.layer_norm(x)), dim=-1)

    def _convolve(self, gated: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) behind (B, K - 1, D); returns the output and all that was read."""
        read = torch.cat([past.to(gated), gated], dim=1)
        return self.depthwise(read.transpose(1, 2)).transpose(1, 2), read

    def _finish(self, convolved: Tensor) -> Tensor:
        return self.dropout(self.pointwise_out(F.silu(convolved)))
