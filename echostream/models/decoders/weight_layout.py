"""Convolution weights in the layouts that oneDNN's kernels want.

oneDNN chooses a kernel, and with it a layout of the weights, by the shapes of both sides. Plain
weights are rearranged at every call, which for a short signal costs about as much as the
convolution. Weights that were rearranged for another kernel are rearranged back first, by code that
takes ten times as long as the convolution itself. So weights are rearranged once per layout, and a
length of signal whose layout is not among the stored ones takes the plain weights.

oneDNN does not tell which layout it would choose. It shows it: a tensor of marks, rearranged for a
shape, lies in memory in an order that tells layouts apart.

Shapes: C channels, K taps, T positions.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib

import numpy as np
import torch
from torch import Tensor

STORED_LAYOUTS = 2  # per convolution; each is a copy of the weights
PROBED = 4096  # elements that are compared
MARKS = 251  # distinct values, all exact in bfloat16

Shape = tuple[int, int, int, int]  # C_out, C_in, K, dilation


def has_packed_kernels() -> bool:
    """Whether this torch has the kernels that take rearranged weights."""
    names = (
        "_convolution_pointwise",
        "_convolution_pointwise_",
        "_reorder_convolution_weight",
        "_nbytes",
        "data_ptr",
    )
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in names
    )


def plain_layout(weight: Tensor) -> Tensor:
    """(C_out, C_in, K) to what kernels for time-major signals take: (C_out, C_in, 1, K)."""
    return weight.detach().unsqueeze(2).contiguous(memory_format=torch.channels_last)


def rearranged(plain: Tensor, dilation: int, length: int, padding: int) -> Tensor:
    """The weights as the kernel for one signal of ``length`` positions wants them."""
    return torch.ops.mkldnn._reorder_convolution_weight(
        plain, [0, padding], [1, 1], [1, dilation], 1, [1, plain.size(1), 1, length]
    )


@functools.lru_cache(maxsize=64)
def _marks(outputs: int, inputs: int, taps: int, dtype: torch.dtype) -> Tensor:
    index = torch.arange(outputs * inputs * taps)
    marks = (index * 40503 % 65521 % MARKS).to(dtype)
    return plain_layout(marks.view(outputs, inputs, taps))


@functools.lru_cache(maxsize=65536)
def layout_of(shape: Shape, length: int, padding: int, dtype: torch.dtype) -> bytes:
    """What tells the layout that a convolution of one signal wants from others."""
    outputs, inputs, taps, dilation = shape
    packed = rearranged(_marks(outputs, inputs, taps, dtype), dilation, length, padding)
    size = torch.ops.mkldnn._nbytes(packed)
    memory = (ctypes.c_char * size).from_address(torch.ops.mkldnn.data_ptr(packed))
    elements = np.frombuffer(memory, dtype=f"u{dtype.itemsize}")
    probe = elements[:: max(len(elements) // PROBED, 1)].tobytes()
    return hashlib.sha256(size.to_bytes(8, "little") + probe).digest()


class LaidOutWeight:
    """The weights of one convolution, rearranged when a layout is first wanted.

    Args:
        weight: (C_out, C_in, K), float32 or bfloat16, on the CPU.
        dilation: distance of taps.
    """

    def __init__(self, weight: Tensor, dilation: int) -> None:
        self.plain, self.dilation = plain_layout(weight), dilation
        self.shape = (*weight.shape, dilation)
        self.stored: dict[bytes, Tensor] = {}

    def for_signal(self, batch: int, length: int, padding: int) -> Tensor:
        """What the kernel for ``batch`` signals of ``length`` positions, ``padding`` zeros on
        either side, computes quickest with."""
        if batch != 1:
            return self.plain
        layout = layout_of(self.shape, length, padding, self.plain.dtype)
        packed = self.stored.get(layout)
        if packed is None:
            if len(self.stored) == STORED_LAYOUTS:
                return self.plain
            packed = rearranged(self.plain, self.dilation, length, padding)
            self.stored[layout] = packed
        return packed
