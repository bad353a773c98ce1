"""Large projections of few rows, with weights laid out once for the processor.

A streaming step multiplies a handful of rows with every weight. For large weights oneDNN does that
faster than the plain product once they lie as its kernels read them; below ``MIN_WEIGHTS`` its
calls cost more than they save, and so they do for a single row in float32. In bfloat16 the plain
product lays the weights out at every call.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ModelT = TypeVar("ModelT", bound=nn.Module)
MIN_WEIGHTS = {torch.float32: 256 * 2048, torch.bfloat16: 256 * 512}
MIN_ROWS = {torch.float32: 2, torch.bfloat16: 1}
LAYOUT_ROWS = 8  # rows of a chunk in steady state: oneDNN lays weights out for a number of rows


def has_packed_kernels(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch, on this processor, has the kernels that take rearranged weights."""
    if not torch.backends.mkldnn.is_available() or dtype not in MIN_WEIGHTS:
        return False
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Linear):
    """A linear layer that keeps a second copy of its weights, laid out, for steps without
    gradients; everything else about it is ``nn.Linear``'s.

    The copy is made at the first step and made again when the weights have changed.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._packed: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if (
            input.dtype != self.weight.dtype
            or input.numel() < MIN_ROWS[input.dtype] * self.in_features
            or input.device.type != "cpu"
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()  # which lays weights out by itself
        ):
            return F.linear(input, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(
            input, self._laid_out(), self.bias, "none", [], ""
        )

    def _laid_out(self) -> Tensor:
        version = (self.weight.data_ptr(), self.weight._version)
        if self._packed is None or self._packed[0] != version:
            weight = self.weight.detach().contiguous()
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, LAYOUT_ROWS)
            self._packed = version, packed
        return self._packed[1]


def pack(model: ModelT, min_weights: int | None = None) -> ModelT:
    """Let the projections of at least ``min_weights`` weights (None: as many as it takes to pay)
    keep them laid out, in place."""
    for parent, name, child in _linears(model, nn.Linear):
        dtype, size = child.weight.dtype, child.weight.numel()
        if has_packed_kernels(dtype) and size >= (min_weights or MIN_WEIGHTS[dtype]):
            setattr(parent, name, PackedLinear(child))
    return model


def unpack(model: ModelT) -> ModelT:
    """Undo :func:`pack`, in place."""
    for parent, name, child in _linears(model, PackedLinear):
        plain = nn.Linear(child.in_features, child.out_features, device="meta")
        plain.weight, plain.bias = child.weight, child.bias
        setattr(parent, name, plain)
    return model


def _linears(model: nn.Module, kind: type[nn.Linear]) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Layers of exactly one kind, with what holds them and under which name."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is kind
    ]
