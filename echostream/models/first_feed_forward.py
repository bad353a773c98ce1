"""A feed-forward block in front of an attention, where the Conformer has its first one (Gulati et
al., 2020, section 2.3).

Shapes: B batch, T frames, D model width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class FirstFeedForward(nn.Module):
    """Norm, linear, activation, linear: what a layer may have in front of its attention.

    Args:
        dim: width D.
        hidden: units between the two linear layers.
        activation: (..., hidden) to the same.
    """

    def __init__(
        self, dim: int, hidden: int, activation: Callable[[Tensor], Tensor], dropout: float
    ) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same, the residual included."""
        hidden = self.dropout(self.activation(self.fc1(self.layer_norm(x))))
        return x + self.dropout(self.fc2(hidden))
