"""Operations on arrays of numpy and of torch alike, for code that decides and does not compute.

Such code runs where torch is not installed or not loaded too: torch is imported only once somebody
hands over a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

ArrayT = TypeVar("ArrayT", np.ndarray, "torch.Tensor")


def concatenate(parts: Sequence[ArrayT], axis: int) -> ArrayT:
    """Join arrays of one kind along an axis."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis=axis)
    import torch

    return torch.cat(list(parts), dim=axis)


def log_softmax(scores: ArrayT) -> ArrayT:
    """(..., V) scores to log probabilities over the last axis."""
    if not isinstance(scores, np.ndarray):
        return scores.log_softmax(dim=-1)
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
