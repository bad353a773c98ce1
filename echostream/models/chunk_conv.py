"""Convolution over time in chunks of input frames, for whole inputs and for streams.

Letters: B batch, C channels, T frames, F final frames, P provisional frames (see
``chunk_conformer_layer``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# From this chunk length on (and for lengths below 1) a convolution is an ordinary centred one.
UNCHUNKED_FRAMES = 999


@dataclass
class ChunkConvState:
    """What final inputs leave behind for a :class:`ChunkConv1d`.

    ``inputs`` (B, C, n) are the final inputs from position ``start`` on, all that outputs from
    ``emitted`` on can still read.
    """

    inputs: Tensor
    start: int = 0
    emitted: int = 0


class ChunkConv1d(nn.Conv1d):
    """Convolution over time that never looks past the end of its chunk of input frames.

    With kernel ``2 p + 1`` the output for frame ``t`` reads ``t - p .. t + p``; positions past
    the chunk of ``t`` count as zero. The kernel's stride starts anew in every chunk, so an odd
    chunk with stride 2 gives one output more than half its length, and the surplus is cut at the
    end of the input only. StreamSpeech does the same.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"chunk convolution needs an odd kernel_size, got {kernel_size}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=bias
        )
        self.reach = kernel_size // 2

    def num_outputs(self, inputs: int) -> int:
        """Outputs for ``inputs`` frames."""
        return (inputs - 1) // self.stride[0] + 1 if inputs > 0 else 0

    def num_final(self, final_inputs: int, chunk: int) -> int:
        """How many outputs no input after the first ``final_inputs`` can change."""
        stride = self.stride[0]
        if not _is_chunked(chunk):
            return max(0, (final_inputs - self.reach - 1) // stride + 1)
        per_chunk = (chunk - 1) // stride + 1
        complete, rest = divmod(final_inputs, chunk)
        inside = max(0, (rest - self.reach - 1) // stride + 1)
        return min(complete * per_chunk + inside, self.num_outputs(final_inputs))

    def first_input(self, output: int, chunk: int) -> int:
        """First input position that outputs from ``output`` on need."""
        if not _is_chunked(chunk):
            return max(0, output * self.stride[0] - self.reach)
        per_chunk = (chunk - 1) // self.stride[0] + 1
        return max(0, output // per_chunk * chunk - self.reach)

    def forward(self, x: Tensor, chunk: int) -> Tensor:  # type: ignore[override]  # needs a chunk
        """Convolve a whole input, (B, C, T) to (B, C', T')."""
        return self._outputs(x, 0, 0, chunk)

    def init_state(self, batch_size: int) -> ChunkConvState:
        return ChunkConvState(self.weight.new_zeros(batch_size, self.in_channels, 0))

    def step(
        self, final: Tensor, tail: Tensor, state: ChunkConvState, chunk: int
    ) -> tuple[Tensor, Tensor, ChunkConvState]:
        """Convolve new final inputs (B, C, F) followed by provisional ones (B, C, P).

        Returns:
            New final outputs, provisional outputs, and the state after the final inputs.
        """
        kept = torch.cat([state.inputs, final], dim=2)
        total_final = state.start + kept.size(2)
        emitted = self.num_final(total_final, chunk)
        outputs = self._outputs(torch.cat([kept, tail], dim=2), state.start, state.emitted, chunk)
        start = min(self.first_input(emitted, chunk), total_final)
        new_state = ChunkConvState(kept[:, :, start - state.start :], start, emitted)
        count = emitted - state.emitted
        return outputs[:, :, :count], outputs[:, :, count:], new_state

    def _outputs(self, x: Tensor, start: int, first_output: int, chunk: int) -> Tensor:
        """Outputs from ``first_output`` on; ``x`` (B, C, n) holds the inputs from ``start`` on."""
        batch, channels, count = x.shape
        total = self.num_outputs(start + count)
        if total <= first_output:
            return x.new_zeros(batch, self.out_channels, 0)
        reach, stride = self.reach, self.stride[0]
        if not _is_chunked(chunk):
            left = first_output * stride - reach
            padded = F.pad(x[:, :, max(left, 0) - start :], (max(-left, 0), reach))
            return super().forward(padded)
        per_chunk = (chunk - 1) // stride + 1
        first_chunk = first_output // per_chunk
        left = first_chunk * chunk - reach
        padded = F.pad(x[:, :, max(left, 0) - start :], (max(-left, 0), 0))
        padded = F.pad(padded, (0, -(padded.size(2) - reach) % chunk))
        windows = padded.unfold(2, reach + chunk, chunk)  # (B, C, n, reach + chunk)
        n = windows.size(2)
        windows = windows.transpose(1, 2).reshape(batch * n, channels, reach + chunk)
        out = super().forward(F.pad(windows, (0, reach)))  # (B n, C', per_chunk)
        out = out.reshape(batch, n, self.out_channels, per_chunk).transpose(1, 2)
        out = out.reshape(batch, self.out_channels, n * per_chunk)
        skipped = first_chunk * per_chunk
        return out[:, :, first_output - skipped : total - skipped]


def _is_chunked(chunk: int) -> bool:
    return 0 < chunk < UNCHUNKED_FRAMES
