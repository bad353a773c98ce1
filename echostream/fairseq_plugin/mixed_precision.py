"""Mixed precision for training. Needs no fairseq."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@contextmanager
def autocast(device_type: str, enabled: bool) -> Iterator[None]:
    """bfloat16 matrix products inside, everything else as it was."""
    if not enabled:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device_type, dtype=torch.bfloat16))
        if device_type == "cpu":
            stack.enter_context(_UnfusedAttention())
        yield


class _UnfusedAttention(TorchFunctionMode):
    """Attention as two matrix products, which in bfloat16 train more than twice as fast on a CPU
    as its fused kernel does in either precision."""

    def __torch_function__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return unfused_attention(*args, **kwargs)
        return func(*args, **kwargs)


def unfused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float
) -> Tensor:
    """What ``F.scaled_dot_product_attention`` computes, in the precision of autocast.

    Args:
        query: (..., Q, D).
        key, value: (..., K, D).
        attn_mask: True where visible, or numbers to add to the scores, minus infinity where hidden;
            broadcastable to (..., Q, K). None: all is visible.
    """
    scores = (query * query.size(-1) ** -0.5) @ key.transpose(-1, -2)
    visible = attn_mask
    if attn_mask is not None and attn_mask.is_floating_point():
        visible = attn_mask.detach() > -torch.inf
        scores = scores + attn_mask.masked_fill(~visible, 0.0).to(scores.dtype)
    if visible is not None:
        # Not minus infinity, whose gradient is nan in rows that see nothing.
        hidden = torch.zeros_like(visible, dtype=scores.dtype)
        scores = scores + hidden.masked_fill_(~visible, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=scores.dtype)
    if dropout_p:
        weights = F.dropout(weights, dropout_p)
    attended = weights @ value
    if visible is not None:
        # Such rows (padding) attend to nothing, as in the fused kernel.
        attended = attended.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0)
    return attended
