"""Convolutions over time-major signals, with weights laid out once for the processor.

Signals are (B, T, C): slices of a stretch of time are contiguous and cost nothing, and the same
memory read as (B, C, 1, T) is what channels-last kernels take. On a CPU, oneDNN rearranges the
weights of every plain convolution at every call, which for a few frames of signal costs more than
the convolution; here they are rearranged once (:mod:`~echostream.models.decoders.weight_layout`).
Where torch or the number format has no packed kernel, the plain one computes the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.models.decoders.weight_layout import (
    LaidOutWeight,
    has_packed_kernels,
    plain_layout,
)

# A short stretch of zeros on the left is cheaper to convolve than to avoid by copying the signal.
CHEAP_PADDING = 1 / 16


def _computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels of this half precision on this processor."""
    return dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class PackedConv:
    """One convolution of stride 1 whose output is as long as its input is to the right.

    Args:
        weight: (C_out, C_in, K).
        bias: (C_out,).
        dilation: distance of taps.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int = 1) -> None:
        self.kernel, self.dilation = weight.size(2), dilation
        self.reach = dilation * (self.kernel - 1)  # samples before the last tap
        self.bias = bias
        self.packed = (
            has_packed_kernels()
            and weight.device.type == "cpu"
            and (weight.dtype == torch.float32 or _computes(weight.dtype))
            # Of one channel the strides say nothing, and torch 2.11's kernels refuse the signal.
            and min(weight.size(0), weight.size(1)) > 1
        )
        self.weight = LaidOutWeight(weight, dilation) if self.packed else plain_layout(weight)

    def __call__(
        self,
        x: Tensor,
        *,
        zeros_right: int,
        leaky_slope: float | None = None,
        add: Tensor | None = None,
        overwrite: bool = False,
    ) -> Tensor:
        """Convolve.

        Args:
            x: (B, T, C_in).
            zeros_right: the signal goes on with so many zeros.
            leaky_slope: apply a leaky rectifier to the output.
            add: (B, T', C_out) to be added to the output, ends aligned, T' at least T.
            overwrite: ``add`` may be used for the result.

        Returns:
            (B, T + zeros_right - reach, C_out), the outputs whose taps all fall on ``x`` or on
            the zeros.
        """
        padding = 0
        if 2 * zeros_right == self.reach and zeros_right <= CHEAP_PADDING * x.size(1):
            padding = zeros_right  # on both sides; the first outputs are cut off again
        elif zeros_right:
            x = F.pad(x, (0, 0, 0, zeros_right))
        image = x.transpose(1, 2).unsqueeze(2)
        if add is not None:
            add = add[:, add.size(1) - (x.size(1) + 2 * padding - self.reach) :]
            add = add.transpose(1, 2).unsqueeze(2)
        convolve = self._packed if self.packed else self._plain
        y = convolve(image, padding, leaky_slope, add, overwrite)
        return y.squeeze(2).transpose(1, 2)[:, padding:]

    def _plain(
        self, x: Tensor, padding: int, slope: float | None, add: Tensor | None, overwrite: bool
    ) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, padding=(0, padding), dilation=(1, self.dilation))
        if add is not None:
            y = y.add_(add)
        return y if slope is None else F.leaky_relu_(y, slope)

    def _packed(
        self, x: Tensor, padding: int, slope: float | None, add: Tensor | None, overwrite: bool
    ) -> Tensor:
        operations = torch.ops.mkldnn
        weight = self.weight.for_signal(x.size(0), x.size(3), padding)
        shape = ([0, padding], [1, 1], [1, self.dilation], 1)
        rectifier = ("none", [], "") if slope is None else ("leaky_relu", [slope], "")
        if add is None:
            return operations._convolution_pointwise(x, weight, self.bias, *shape, *rectifier)
        if slope is not None:
            raise ValueError("a rectifier cannot follow an addition")
        if overwrite and x.size(0) == 1:
            operations._convolution_pointwise_.binary(
                add, x, weight, self.bias, *shape, "add", 1.0, None, [], None
            )
            return add
        return operations._convolution_pointwise.binary(
            x, add, weight, self.bias, *shape, "add", 1.0, None, [], None
        )


def packed_conv(conv: nn.Conv1d) -> PackedConv:
    """A :class:`PackedConv` with the weights of ``conv``."""
    return PackedConv(conv.weight, conv.bias, conv.dilation[0])


class PackedUpsampling:
    """A transposed convolution as a plain one that writes ``rate`` samples at a time.

    Output sample q of the transposed convolution before its padding is cut reads inputs
    ``q // rate`` and the ``taps - 1`` before it. So the outputs of one input step are ``rate *
    C_out`` channels of a causal convolution, and in time-major layout those channels already lie
    in the order of the samples.
    """

    def __init__(self, conv: nn.ConvTranspose1d) -> None:
        self.rate, self.padding = conv.stride[0], conv.padding[0]
        weight = conv.weight.detach()  # (C_in, C_out, K)
        inputs, outputs, kernel = weight.shape
        self.taps = -(-kernel // self.rate)
        padded = F.pad(weight, (0, self.taps * self.rate - kernel))
        # Tap t counts from the oldest input: it reads kernel positions rate * (taps - 1 - t) on.
        phases = padded.view(inputs, outputs, self.taps, self.rate).flip(2)
        phases = phases.permute(3, 1, 0, 2).reshape(self.rate * outputs, inputs, self.taps)
        self.conv = PackedConv(phases.contiguous(), conv.bias.detach().repeat(self.rate))

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, C_in) to all outputs whose inputs lie on ``x`` or, past its end, on zeros:
        (B, T', C_out), from output ``(taps - 1) * rate - padding`` on, up to ``T * rate``."""
        zeros = -(-self.padding // self.rate)
        y = self.conv(x, zeros_right=zeros)
        y = y.reshape(y.size(0), y.size(1) * self.rate, -1)
        return y[:, : x.size(1) * self.rate - ((self.taps - 1) * self.rate - self.padding)]
