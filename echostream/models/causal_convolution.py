"""A gated causal depthwise convolution, offline and streaming.

Shapes: B batch, T frames, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.streaming import shift_in, window


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
            if self.depthwise.bias is not None:
                looked = looked + self.depthwise.bias
            out = torch.cat([looked, out], dim=1)
        return self._finish(out)

    def init_state(self, batch_size: int) -> Tensor:
        """Silence before the first frame, (B, K - 1, D)."""
        weight = self.depthwise.weight
        return weight.new_zeros(batch_size, self.kernel - 1, weight.size(0))

    def step(
        self, x: Tensor, state: Tensor, lengths: Sequence[int], right_size: int
    ) -> tuple[Tensor, Tensor]:
        """One segment of each row.

        Args:
            x: (B, R + S, D), right context before the segment.
            state: (B, K - 1, D).
            lengths: frames of each row's segment.
            right_size: R.

        Returns:
            (B, R + S, D) and the new state.
        """
        gated, segment = self._gate(x), x.size(1) - right_size
        # In the order of time the right context comes last; the next segment brings it again.
        ordered = gated[:, right_size:]
        if right_size:
            ordered = _behind(ordered, gated[:, :right_size], lengths)
        out, read = self._convolve(ordered, state)
        following = shift_in(state.to(gated), ordered, lengths)
        if right_size:
            out = torch.cat([window(out, lengths, right_size), out[:, :segment]], dim=1)
        return self._finish(out), following

    def _gate(self, x: Tensor) -> Tensor:
        return F.glu(self.pointwise_in(self.layer_norm(x)), dim=-1)

    def _convolve(self, gated: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) behind (B, K - 1, D); returns the output and all that was read."""
        read = torch.cat([past.to(gated), gated], dim=1)
        return self.depthwise(read.transpose(1, 2)).transpose(1, 2), read

    def _finish(self, convolved: Tensor) -> Tensor:
        return self.dropout(self.pointwise_out(F.silu(convolved)))


def _behind(segment: Tensor, right: Tensor, lengths: Sequence[int]) -> Tensor:
    """(B, S, D) segments of some length each, and (B, R, D) directly behind each one's end."""
    size, both = segment.size(1), torch.cat([segment, right], dim=1)
    if min(lengths) == size:
        return both
    at = torch.arange(both.size(1)).expand(len(lengths), -1)
    ends = torch.tensor(lengths)[:, None]
    # Behind a row's end comes the right context, then whatever is left over.
    at = torch.where(at < ends, at, (at - ends + size).clamp(max=both.size(1) - 1))
    return both.gather(1, at.to(both.device)[..., None].expand_as(both))
