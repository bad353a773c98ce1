"""The streaming speech encoder: convolutional subsampling and an Emformer.

Filterbank frames become encoder frames at a quarter of the rate (40 ms). Work per step depends on
the new frames and the bounded contexts only, never on how much was said before.

Shapes: B batch, T filterbank frames, S encoder frames, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.config import EmformerConfig
from echostream.models.emformer_layer import EmformerStack, EmformerState
from echostream.models.encoder import Encoded
from echostream.models.module_list import module_list
from echostream.models.transformer_layer import sinusoid
from echostream.models.whisper_stem import WhisperStem
from echostream.streaming import (
    PerRow,
    from_host,
    lengths_to_padding_mask,
    per_row,
    segment_lengths,
    shift_in,
    valid_mask,
    window,
)

STRIDE = 2  # of each of the two convolutions
SUBSAMPLING = STRIDE * STRIDE


class _StridedStack(nn.Module):
    """Two stride-2 convolutions over time, offline and streaming.

    Subclasses give the arithmetic; padding, buffering and masks live here. Output k reads input
    frames up to 4k + 3, so at most 3 frames of look-ahead are waited for.
    """

    left: int
    right: int
    kernels: tuple[int, ...]
    lookahead = 0  # frames behind a group of four that are waited for

    def _shape_input(self, features: Tensor) -> Tensor:
        raise NotImplementedError

    def _convolve(self, index: int, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _shape_output(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _pad(self, x: Tensor, left: int, right: int) -> Tensor:
        """Zeros around dimension 2."""
        return F.pad(x, (0, 0) * (x.dim() - 3) + (left, right))

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, bins) and (B,) to (B, S, D) and (B,). Padding is treated as the silence behind
        a stream's end, whatever it holds."""
        x = self._shape_input(features)
        if not features.size(1):
            return self._shape_output(self._empty(len(self.kernels) - 1, x)), lengths
        for index in range(len(self.kernels)):
            if bool((lengths < x.size(2)).any()):
                padding = lengths_to_padding_mask(lengths, x.size(2))
                padding = padding.view(x.size(0), 1, x.size(2), *[1] * (x.dim() - 3))
                x = x.masked_fill(padding, 0.0)
            x = self._convolve(index, self._pad(x, self.left, self.right))
            lengths = (lengths + 1) // STRIDE
        return self._shape_output(x), lengths

    def init_state(self, batch_size: int = 1) -> tuple[Tensor, ...]:
        """The inputs that each convolution reads before its next one, (B, left, ...)."""
        probe = next(self.parameters())
        return tuple(
            probe.new_zeros(shape).transpose(1, 2) for shape in self._buffer_shapes(batch_size)
        )

    def _buffer_shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        raise NotImplementedError

    def step(
        self, features: Tensor, state: tuple[Tensor, ...], lengths: Sequence[int]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """New frames to the encoder frames that they complete.

        Args:
            features: (B, 4 S, bins).
            lengths: valid frames of each row, a multiple of 4 but at the end of its stream.

        Returns:
            (B, S, D), of which each row's first quarter of its length, rounded up, is valid, and
            the new state.
        """
        x, buffers, size = self._shape_input(features), [], features.size(1)
        if not size:
            return self._shape_output(self._empty(len(self.kernels) - 1, x)), state
        for index, buffer in enumerate(state):
            if min(lengths) < size:
                # What stands behind a stream's end is silence, whatever the padding holds.
                valid = valid_mask(lengths, size, x.device)
                valid = valid.view(x.size(0), 1, size, *[1] * (x.dim() - 3))
                x = x.masked_fill(~valid, 0.0)
            past = buffer.transpose(1, 2)
            buffers.append(shift_in(buffer, x.transpose(1, 2), lengths))
            x = self._convolve(index, torch.cat([past, x], dim=2))
            lengths, size = [(length + 1) // STRIDE for length in lengths], size // STRIDE
        return self._shape_output(x), tuple(buffers)

    def _empty(self, index: int, x: Tensor) -> Tensor:
        """Zero frames in the shape that ``_convolve`` gives."""
        shape = self._buffer_shapes(x.size(0))
        following = shape[index + 1] if index + 1 < len(shape) else self._output_shape(x.size(0))
        return x.new_empty(following[0], following[1], 0, *following[3:])

    def _output_shape(self, batch_size: int) -> tuple[int, ...]:
        raise NotImplementedError


class Conv2dSubsampler(_StridedStack):
    """Two 3x3 Conv2d of stride 2 with ReLU, and a linear layer (the default)."""

    left, right, kernels = 1, 1, (3, 3)

    def __init__(self, config: EmformerConfig) -> None:
        super().__init__()
        channels = config.conv_channels
        self.bins = [config.input_dim, (config.input_dim + 1) // 2]
        self.out_bins = (self.bins[1] + 1) // 2
        self.channels = channels
        # Time is padded by the streaming code, frequency here.
        self.conv = module_list(
            [
                nn.Conv2d(1, channels, 3, STRIDE, padding=(0, 1)),
                nn.Conv2d(channels, channels, 3, STRIDE, padding=(0, 1)),
            ]
        )
        self.out = nn.Linear(channels * self.out_bins, config.embed_dim)

    def _shape_input(self, features: Tensor) -> Tensor:
        return features[:, None]  # (B, 1, T, bins)

    def _convolve(self, index: int, x: Tensor) -> Tensor:
        return F.relu(self.conv[index](x))

    def _shape_output(self, x: Tensor) -> Tensor:
        return self.out(x.transpose(1, 2).flatten(2))

    def _buffer_shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        return [
            (batch_size, 1, self.left, self.bins[0]),
            (batch_size, self.channels, self.left, self.bins[1]),
        ]

    def _output_shape(self, batch_size: int) -> tuple[int, ...]:
        return (batch_size, self.channels, 0, self.out_bins)


class Conv1dSubsampler(_StridedStack):
    """Two Conv1d of stride 2 with gated linear units, as StreamSpeech's subsampler is built.

    A kernel of 5 looks one frame ahead and three back here, where the original centres it and
    cuts it at chunk borders: the look-ahead of the pair stays within 3 filterbank frames, and no
    output depends on how the stream is cut. ``conv1d_glu_linear`` puts a linear layer behind
    them, which the original has too.
    """

    right = 1

    def __init__(self, config: EmformerConfig) -> None:
        super().__init__()
        if len(config.conv_kernel_sizes) != 2 or len(set(config.conv_kernel_sizes)) != 1:
            raise ValueError(
                "encoder: conv1d_glu needs two equal conv_kernel_sizes, "
                f"got {config.conv_kernel_sizes}"
            )
        self.kernels = config.conv_kernel_sizes
        self.left = self.kernels[0] - 2
        self.channels = [config.input_dim, config.conv_channels // 2]
        self.embed_dim = config.embed_dim
        self.conv_layers = module_list(
            [
                nn.Conv1d(config.input_dim, config.conv_channels, self.kernels[0], STRIDE),
                nn.Conv1d(self.channels[1], 2 * config.embed_dim, self.kernels[1], STRIDE),
            ]
        )
        linear = config.subsampler == "conv1d_glu_linear"
        self.out = nn.Linear(config.embed_dim, config.embed_dim) if linear else nn.Identity()

    def _shape_input(self, features: Tensor) -> Tensor:
        return features.transpose(1, 2)  # (B, bins, T)

    def _convolve(self, index: int, x: Tensor) -> Tensor:
        return F.glu(self.conv_layers[index](x), dim=1)

    def _shape_output(self, x: Tensor) -> Tensor:
        return self.out(x.transpose(1, 2))

    def _buffer_shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        return [(batch_size, channels, self.left) for channels in self.channels]

    def _output_shape(self, batch_size: int) -> tuple[int, ...]:
        return (batch_size, self.embed_dim, 0)


@dataclass(frozen=True)
class EncoderState:
    """Streaming state of :class:`EchoStreamSpeechEncoder`; shapes never change.

    Attributes:
        pending: (B, 3, bins) features that do not make up an encoder frame yet, at the end; with
            Whisper's stem (B, 4, bins).
        subsampler: inputs that the convolutions still read.
        lookahead: (B, R, D) subsampled frames held back as right context, at the end.
        emformer: caches and memory banks.
        waiting: how many frames of ``pending`` each row holds.
        held: and of ``lookahead``.
        stack_frames: frames of the stack in one encoder frame.
    """

    pending: Tensor
    subsampler: tuple[Tensor, ...]
    lookahead: Tensor
    emformer: EmformerState
    waiting: PerRow
    held: PerRow
    stack_frames: int = 1

    @property
    def frames(self) -> PerRow:
        """Encoder frames handed out in each row."""
        if self.stack_frames == 1:
            return self.emformer.frames
        return PerRow(frames // self.stack_frames for frames in self.emformer.frames)


class EchoStreamSpeechEncoder(nn.Module):
    """Filterbank to encoder output.

    The weights serve any segment length, so one checkpoint serves every chunk size: ``step``
    encodes whatever its input completes as one segment, ``forward`` takes the partition to use.
    Streams are unbounded: there are no positions, since the convolutions mark local order, or
    positions come round again.

    Args:
        config: sizes and contexts.
    """

    def __init__(self, config: EmformerConfig) -> None:
        super().__init__()
        self.config = config
        subsampler: dict[str, type[Conv2dSubsampler | Conv1dSubsampler | WhisperStem]] = {
            "conv2d": Conv2dSubsampler,
            "conv1d_glu": Conv1dSubsampler,
            "conv1d_glu_linear": Conv1dSubsampler,
            "whisper": WhisperStem,
        }
        # Any: each has a state of its own kind.
        self.subsample: Any = subsampler[config.subsampler](config)
        self.emformer = EmformerStack(config)
        self.dropout = nn.Dropout(config.dropout)
        dim, self.stack_frames = config.embed_dim, config.stack_frames
        self.layer_norm = nn.LayerNorm(dim) if config.output_norm == "stack" else nn.Identity()
        self.merge = nn.Identity() if self.stack_frames == 1 else FrameMerge(dim, self.stack_frames)

    joins_rows = True
    utterances_only = False

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    def segments(self, frames: int, segment_frames: int | None = None) -> list[int]:
        """The partition of ``frames`` encoder frames that a stream in chunks of
        ``segment_frames`` (default: the configured ones) has."""
        segment = self.config.segment_frames if segment_frames is None else segment_frames
        right = self.config.right_context_frames // self.stack_frames
        return segment_lengths(frames, segment, right)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        segment_frames: int | Sequence[int] | None = None,
        return_all_hiddens: bool = False,
        position_offsets: Tensor | None = None,
    ) -> dict[str, list[Tensor]]:
        """Encode whole utterances, segment by segment under a mask.

        Args:
            src_tokens: (B, T, bins) features.
            src_lengths: (B,) valid frames; on the host, so that a GPU need not be waited for.
            segment_frames: frames per segment, or the lengths of all segments; None: the
                configured default.
            return_all_hiddens: collect every layer's output.
            position_offsets: (B,) frames of the stack that each row stands behind the beginning of
                its stream, for training; None: 0. Without positions nothing depends on it.

        Returns:
            fairseq's encoder dictionary: ``encoder_out`` [(S, B, D)], ``encoder_padding_mask``
            [(B, S)] (empty without padding), ``encoder_embedding`` [], ``encoder_states``
            [(S, B, D), ...] of frames of the stack, ``src_tokens`` [], ``src_lengths`` []; and
            where frames of the stack are merged, ``stack_out`` [(k S, B, D)], those before.
        """
        if src_tokens.dim() != 3 or src_tokens.size(2) != self.config.input_dim:
            raise ValueError(
                f"features must be (batch, frames, {self.config.input_dim}), "
                f"got {tuple(src_tokens.shape)}"
            )
        x, lengths = self.subsample(src_tokens, src_lengths)
        frames = x.size(1) // self.stack_frames
        if segment_frames is None or isinstance(segment_frames, int):
            segments = self.segments(frames, segment_frames)
        else:
            segments = list(segment_frames)
            if sum(segments) != frames:
                raise ValueError(f"segments cover {sum(segments)} frames, but there are {frames}")
        x = self._positioned(
            x, [0] * len(x) if position_offsets is None else position_offsets.tolist()
        )
        states: list[Tensor] | None = [] if return_all_hiddens else None
        segments = [segment * self.stack_frames for segment in segments]
        stack = self.emformer(self.dropout(x), lengths, segments, hidden_states=states)
        stack = self.layer_norm(stack)
        out = self.merge(stack)
        padding_mask = lengths_to_padding_mask(lengths // self.stack_frames, frames)
        return {
            "encoder_out": [out.transpose(0, 1)],
            "encoder_padding_mask": (
                [from_host(padding_mask, x.device)] if bool(padding_mask.any()) else []
            ),
            "encoder_embedding": [],
            "encoder_states": [state.transpose(0, 1) for state in states or []],
            "src_tokens": [],
            "src_lengths": [],
            **({"stack_out": [stack.transpose(0, 1)]} if self.stack_frames > 1 else {}),
        }

    def init_state(self, batch_size: int = 1) -> EncoderState:
        config, probe, none = self.config, next(self.parameters()), PerRow.of(0, batch_size)
        return EncoderState(
            probe.new_zeros(batch_size, self._pending_frames, config.input_dim),
            self.subsample.init_state(batch_size),
            probe.new_zeros(batch_size, config.right_context_frames, config.embed_dim),
            self.emformer.init_state(batch_size),
            waiting=none,
            held=none,
            stack_frames=self.stack_frames,
        )

    @property
    def _pending_frames(self) -> int:
        return SUBSAMPLING - 1 + self.subsample.lookahead

    def _positioned(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(B, S, D) frames of the stack, behind so many others, with their positions."""
        if self.config.positions == "none":
            return x
        index = torch.arange(x.size(1), device=x.device) + from_host(offsets, x.device)[:, None]
        index = index % self.config.position_period
        return x + sinusoid(index, x.size(2), dtype=x.dtype)

    def step(
        self,
        features: Tensor,
        state: EncoderState,
        *,
        lengths: Sequence[int] | None = None,
        final: bool | Sequence[bool] = False,
    ) -> tuple[Tensor, EncoderState]:
        """Encode what new features complete, as one segment of each row.

        Args:
            features: (B, T, bins), T may be 0.
            lengths: valid features of each row; None: all T.
            final: whether the stream ends, for all rows or each; frames waiting for look-ahead
                are encoded without it.

        Returns:
            (B, S, D), S possibly 0, and the new state. A row's first frames, as many as its
            ``frames`` has grown by, are valid.
        """
        stack, following = self._step(features, state, lengths=lengths, final=final)
        return self.merge(stack), following

    def _step(
        self,
        features: Tensor,
        state: EncoderState,
        *,
        lengths: Sequence[int] | None,
        final: bool | Sequence[bool],
    ) -> tuple[Tensor, EncoderState]:
        """:meth:`step`, to (B, k S, D) frames of the stack."""
        rows = features.size(0)
        new = per_row(features.size(1) if lengths is None else lengths, rows)
        ends = per_row(final, rows)
        x, used, state = self._complete(features, new, ends, state)
        x, subsampler = self.subsample.step(x, state.subsampler, used)
        arrived = PerRow(-(-length // SUBSAMPLING) * self.stack_frames for length in used)
        x = self._positioned(
            x, [a + b for a, b in zip(state.emformer.frames, state.held, strict=True)]
        )
        right = self.config.right_context_frames
        total, kept = arrived, state.lookahead
        if right:
            total = PerRow(map(sum, zip(state.held, arrived, strict=True)))
            known = torch.cat([state.lookahead, x], dim=1)
            kept = shift_in(state.lookahead, x, arrived)
            x = window(known, [right - held for held in state.held], max(total))
        segment = PerRow(
            count if end else max(count - right, 0) for count, end in zip(total, ends, strict=True)
        )
        held = PerRow(a - b for a, b in zip(total, segment, strict=True))
        out, emformer = x[:, :0], state.emformer
        if max(segment):
            # Rows without a segment bring nothing that others could see.
            behind = [h if s else 0 for h, s in zip(held, segment, strict=True)]
            out, emformer = self.emformer.step(x, emformer, behind, lengths=segment)
        following = replace(
            state, subsampler=subsampler, lookahead=kept, emformer=emformer, held=held
        )
        return self.layer_norm(out), following

    def open_stream(self, batch_size: int, chunk_ms: int) -> EncoderState:
        """Fresh state; steps bring chunks of any length."""
        return self.init_state(batch_size)

    def encode(
        self,
        features: Tensor,
        state: EncoderState,
        *,
        lengths: Sequence[int] | None = None,
        final: bool | Sequence[bool] = False,
    ) -> tuple[Encoded, EncoderState]:
        """:meth:`step` in the terms of :class:`~echostream.models.encoder.Encoder`."""
        stack, following = self._step(features, state, lengths=lengths, final=final)
        counts = PerRow(b - a for a, b in zip(state.frames, following.frames, strict=True))
        if self.stack_frames == 1:
            return Encoded(stack, counts), following
        folded = stack.unflatten(1, (-1, self.stack_frames)).flatten(2)
        return Encoded(self.merge(stack), counts, stack=folded), following

    def _complete(
        self, features: Tensor, new: PerRow, ends: PerRow, state: EncoderState
    ) -> tuple[Tensor, list[int], EncoderState]:
        """Join new features to those that wait: (B, 4 S, bins) whole encoder frames' worth, padded,
        how many of them are valid, and the state that keeps the rest."""
        held, ahead = self._pending_frames, self.subsample.lookahead
        available = [a + b for a, b in zip(state.waiting, new, strict=True)]
        used = [
            count if end else max(count - ahead, 0) // SUBSAMPLING * SUBSAMPLING
            for count, end in zip(available, ends, strict=True)
        ]
        known = torch.cat([state.pending, features], dim=1)
        size = -(-max(used) // SUBSAMPLING) * SUBSAMPLING + ahead
        x = window(known, [held - count for count in state.waiting], size)
        if ahead and min(available) < size:
            x = x.masked_fill(~valid_mask(available, size, x.device)[..., None], 0.0)
        rest = PerRow(a - b for a, b in zip(available, used, strict=True))
        return x, used, replace(state, pending=shift_in(state.pending, features, new), waiting=rest)


class FrameMerge(nn.Module):
    """Neighbouring frames of the stack to one encoder frame; at first their mean."""

    def __init__(self, dim: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.linear = nn.Linear(frames * dim, dim)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(dim).repeat(1, frames) / frames)
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(B, frames * S, D) to (B, S, D)."""
        return self.linear(x.unflatten(1, (-1, self.frames)).flatten(2))
