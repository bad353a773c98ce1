"""A learned bias on attention scores by how far apart two frames are.

The idea is that of relative position representations (Shaw et al., 2018) and of the T5 model's
scalar biases (Raffel et al., 2020, section 2.1): a head adds a number that depends on distance
alone. It needs no absolute positions, so streams may go on for ever, and distances beyond its reach
share one bias.

Shapes: B batch, Q queries, K keys, H heads, R reach.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

NOWHERE = -(2**40)  # the position of what is no frame: summaries of segments


class DistanceBias(nn.Module):
    """Biases of one layer, zero at first.

    Args:
        heads: H.
        reach: largest distance R, in frames, that has a bias of its own.
    """

    def __init__(self, heads: int, reach: int) -> None:
        super().__init__()
        # Distances (query minus key) from -R to R, then one for pairs without a distance.
        self.weight = nn.Parameter(torch.zeros(heads, 2 * reach + 2))

    def forward(self, index: Tensor, mask: Tensor | None) -> Tensor:
        """What to add to the scores.

        Args:
            index: (Q, K) or (B, Q, K) of :func:`distance_index`.
            mask: True where a query may look, or numbers to add; broadcastable to (B, H, Q, K).

        Returns:
            (1, H, Q, K) or (B, H, Q, K).
        """
        bias = self.weight[:, index]  # (H, ..., Q, K)
        bias = bias[None] if index.dim() == 2 else bias.transpose(0, 1)
        if mask is None:
            return bias
        if mask.dtype == torch.bool:
            return torch.where(mask, bias, -torch.inf)
        return bias + mask


def distance_index(query: Tensor, key: Tensor, reach: int) -> Tensor:
    """Which bias each pair has.

    Args:
        query: (Q,) or (B, Q) frame numbers; :data:`NOWHERE` for what is no frame.
        key: (K,) or (B, K).
        reach: R.

    Returns:
        (Q, K) or (B, Q, K) numbers from 0 to 2 R + 1.
    """
    distance = (query[..., :, None] - key[..., None, :]).clamp(-reach, reach) + reach
    nowhere = (query == NOWHERE)[..., :, None] | (key == NOWHERE)[..., None, :]
    return distance.masked_fill(nowhere, 2 * reach + 1)


def step_distances(
    lengths: Sequence[int],
    right_size: int,
    size: int,
    memory: int,
    left: int,
    reach: int,
    device: torch.device,
) -> Tensor:
    """:func:`distance_index` of one step of an Emformer layer.

    Queries are [right context | segment | summary], keys [memory | left context | right context |
    segment]; there is a summary where there is a memory.

    Args:
        lengths: segment frames of each row.
        right_size, size: frames of right context and segment, padding included.
        memory, left: slots and frames kept from before.

    Returns:
        (Q, K), or (B, Q, K) where rows have right context behind segments of different lengths.
    """
    segment = torch.arange(size, device=device)
    right = torch.arange(right_size, device=device)
    if right_size and len(set(lengths)) > 1:
        # Look-ahead lies directly behind each row's own segment.
        right = right + torch.tensor(tuple(lengths), device=device)[:, None]
        segment = segment.expand(right.size(0), -1)
    elif right_size:
        right = right + lengths[0]
    rows = segment.shape[:-1]
    past = torch.arange(-left, 0, device=device).expand(*rows, -1)
    slots = torch.full((memory,), NOWHERE, device=device).expand(*rows, -1)
    return distance_index(
        torch.cat([right, segment, slots[..., :1]], dim=-1),
        torch.cat([slots, past, right, segment], dim=-1),
        reach,
    )
