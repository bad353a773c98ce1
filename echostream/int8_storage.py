"""Weights stored in eight bits: a quarter of float32's size on disk, float32 in memory.

Every row of a large matrix (the first dimension) has a scale of its own, kept beside it under the
name of the matrix and ``.row_scale``. What is small stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".row_scale"
LEAST_NUMBERS = 4096  # of a matrix that is worth it
LARGEST = 127


def to_int8(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Large float matrices as int8 and their scales; everything else unchanged."""
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.dim() < 2 or tensor.numel() < LEAST_NUMBERS or not tensor.is_floating_point():
            stored[name] = tensor
            continue
        rows = tensor.detach().float().flatten(1)
        scale = rows.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
        stored[name] = (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape)
        stored[name + SCALE] = scale
    return stored


def from_int8(stored: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """What :func:`to_int8` was given, rounded; other weights come back as they are.

    Raises:
        ValueError: a scale without its matrix, or one that does not fit.
    """
    state = {name: tensor for name, tensor in stored.items() if not name.endswith(SCALE)}
    for name, scale in stored.items():
        if not name.endswith(SCALE):
            continue
        matrix = state.get(name.removesuffix(SCALE))
        if matrix is None or matrix.dtype != torch.int8 or scale.shape != matrix.shape[:1]:
            raise ValueError(
                f"{where}: {name} of shape {tuple(scale.shape)} belongs to no int8 matrix with so "
                "many rows"
            )
        shape = (-1, *[1] * (matrix.dim() - 1))
        state[name.removesuffix(SCALE)] = matrix.float() * scale.float().view(shape)
    return state
