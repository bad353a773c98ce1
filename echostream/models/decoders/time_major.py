"""Convolutions over time-major signals.

Signals are (B, T, C): slices of a stretch of time are contiguous and cost nothing, and the same
memory read as (B, C, 1, T) is what channels-last kernels take without rearranging it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A short stretch of zeros on the left is cheaper to convolve than to avoid by copying the signal.
CHEAP_PADDING = 1 / 16


class TimeMajorConv:
    """One convolution of stride 1 whose output is as long as its input is to the right.

    Args:
        weight: (C_out, C_in, K).
        bias: (C_out,).
        dilation: distance of taps.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int = 1) -> None:
        self.weight = weight.detach()[:, :, None].contiguous(memory_format=torch.channels_last)
        self.bias, self.dilation = bias, dilation
        self.reach = dilation * (weight.size(2) - 1)  # samples before the last tap

    def __call__(self, x: Tensor, *, zeros_right: int) -> Tensor:
        """Convolve.

        Args:
            x: (B, T, C_in).
            zeros_right: the signal goes on with so many zeros.

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
        y = F.conv2d(
            image, self.weight, self.bias, padding=(0, padding), dilation=(1, self.dilation)
        )
        return y.squeeze(2).transpose(1, 2)[:, padding:]


def time_major(conv: nn.Conv1d) -> TimeMajorConv:
    """A :class:`TimeMajorConv` with the weights of ``conv``."""
    if conv.bias is None:
        raise ValueError("a time-major convolution needs a bias")
    return TimeMajorConv(conv.weight, conv.bias, conv.dilation[0])


class Upsampling:
    """A transposed convolution as a plain one that writes ``rate`` samples at a time.

    Output sample q of the transposed convolution before its padding is cut reads inputs
    ``q // rate`` and the ``taps - 1`` before it. So the outputs of one input step are ``rate *
    C_out`` channels of a causal convolution, and in time-major layout those channels already lie
    in the order of the samples.
    """

    def __init__(self, conv: nn.ConvTranspose1d) -> None:
        if conv.bias is None or isinstance(conv.padding, str):
            raise ValueError("an upsampling needs a bias, and its padding as a number")
        self.rate, self.padding = conv.stride[0], conv.padding[0]
        weight = conv.weight.detach()  # (C_in, C_out, K)
        inputs, outputs, kernel = weight.shape
        self.taps = -(-kernel // self.rate)
        padded = F.pad(weight, (0, self.taps * self.rate - kernel))
        # Tap t counts from the oldest input: it reads kernel positions rate * (taps - 1 - t) on.
        phases = padded.view(inputs, outputs, self.taps, self.rate).flip(2)
        phases = phases.permute(3, 1, 0, 2).reshape(self.rate * outputs, inputs, self.taps)
        self.conv = TimeMajorConv(phases, conv.bias.detach().repeat(self.rate))

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, C_in) to all outputs whose inputs lie on ``x`` or, past its end, on zeros:
        (B, T', C_out), from output ``(taps - 1) * rate - padding`` on, up to ``T * rate``."""
        zeros = -(-self.padding // self.rate)
        y = self.conv(x, zeros_right=zeros)
        y = y.reshape(y.size(0), y.size(1) * self.rate, -1)
        return y[:, : x.size(1) * self.rate - ((self.taps - 1) * self.rate - self.padding)]
