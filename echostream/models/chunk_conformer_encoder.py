"""StreamSpeech's chunk Conformer encoder behind the encoder interface of this package.

``forward`` encodes whole utterances as the original does. ``step`` encodes a stream and returns,
after any input, exactly what ``forward`` would return for all source so far, but computes
only what is not settled yet: final frames are handed out once, provisional ones (of chunks that
are still incomplete) again at every step.

Letters: B batch, T fbank frames, T' encoder frames (about T / 4), S newly final and P provisional
encoder frames, D width. See ``chunk_conformer_layer`` for what makes a frame final.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echostream.config import ENCODER_FRAME_MS, ChunkConformerConfig
from echostream.models.chunk_conformer_layer import (
    ChunkConformerLayer,
    ConformerLayerState,
    chunk_blocked,
)
from echostream.models.chunk_conv import ChunkConv1d, ChunkConvState
from echostream.models.encoder import Encoded, Features, StreamFeatures
from echostream.models.module_list import module_list
from echostream.streaming import PerRow, lengths_to_padding_mask


def s2st_conv_chunk(attention_chunk: int) -> int:
    """Convolution chunk that StreamSpeech's speech-to-speech agent pairs with an attention
    chunk: 16 frames from 16 on, else 8."""
    return 16 if attention_chunk >= 16 else 8


def text_conv_chunk(attention_chunk: int) -> int:
    """Convolution chunk of StreamSpeech's recognition and speech-to-text agents: the attention
    chunk, at most 16."""
    return min(attention_chunk, 16)


@dataclass
class ChunkConformerState:
    """State of a stream, with the chunk lengths it was opened with.

    Everything is bounded except the layers' attention keys, values and positions, which grow by
    3 D numbers per layer and encoder frame, because attention reaches back to the start.
    """

    subsample: list[ChunkConvState]
    layers: list[ConformerLayerState]
    segment_frames: int
    conv_chunk_frames: int


class Conv1dGLUSubsampler(nn.Module):
    """Chunked convolutions of stride 2, each followed by a gated linear unit."""

    def __init__(self, config: ChunkConformerConfig) -> None:
        super().__init__()
        kernels = config.conv_kernel_sizes
        last = len(kernels) - 1
        self.conv_layers = module_list(
            ChunkConv1d(
                config.input_dim if i == 0 else config.conv_channels // 2,
                config.conv_channels if i < last else 2 * config.embed_dim,
                kernel,
                stride=2,
            )
            for i, kernel in enumerate(kernels)
        )

    def num_outputs(self, frames: int) -> int:
        for conv in self.conv_layers:
            frames = conv.num_outputs(frames)
        return frames

    def forward(self, features: Tensor, chunk: int) -> Tensor:
        """(B, T, input_dim) to (B, T', D)."""
        x = features.transpose(1, 2)
        for conv in self.conv_layers:
            x = F.glu(conv(x, chunk), dim=1)
        return x.transpose(1, 2)

    def init_state(self, batch_size: int) -> list[ChunkConvState]:
        return [conv.init_state(batch_size) for conv in self.conv_layers]

    def step(
        self, features: StreamFeatures, states: list[ChunkConvState], chunk: int
    ) -> tuple[Tensor, Tensor, list[ChunkConvState]]:
        """New fbank frames to final (B, S, D) and provisional (B, P, D)."""
        final, tail = features.final.transpose(1, 2), features.tail.transpose(1, 2)
        new_states = []
        for conv, state in zip(self.conv_layers, states, strict=True):
            final, tail, state = conv.step(final, tail, state, chunk)
            final, tail = F.glu(final, dim=1), F.glu(tail, dim=1)
            new_states.append(state)
        return final.transpose(1, 2), tail.transpose(1, 2), new_states


class ChunkConformerEncoder(nn.Module):
    """Subsampler, scaling by sqrt(D), linear layer and Conformer layers."""

    def __init__(self, config: ChunkConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = math.sqrt(config.embed_dim)
        self.subsample = Conv1dGLUSubsampler(config)
        self.linear = nn.Linear(config.embed_dim, config.embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.conformer_layers = module_list(
            ChunkConformerLayer(
                config.embed_dim,
                config.ffn_dim,
                config.attention_heads,
                config.depthwise_kernel_size,
                config.dropout,
            )
            for _ in range(config.layers)
        )

    joins_rows = False
    utterances_only = True

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        segment_frames: int | Sequence[int] | None = None,
        return_all_hiddens: bool = False,
        *,
        conv_chunk_frames: int | None = None,
    ) -> dict[str, list[Tensor]]:
        """Encode padded utterances.

        As in the original, padding is hidden from attention but not from the convolutions, so
        the last frames of a row depend on how far it is padded.

        Args:
            src_tokens: (B, T, input_dim) filterbanks, zero beyond ``src_lengths``.
            src_lengths: (B,) frames.
            segment_frames: attention chunk, chunks starting at frame 0; a number beyond T' means
                the whole utterance. A sequence gives each chunk's length and must sum to T'.
                ``None`` takes the configuration's.
            return_all_hiddens: also return every layer's output.
            conv_chunk_frames: chunk of the convolutions; below 1 or from 999 on they are not
                chunked. ``None`` takes the configuration's, or :func:`s2st_conv_chunk`.

        Returns:
            fairseq's dictionary: ``encoder_out`` [(T', B, D)], ``encoder_padding_mask`` [(B, T')]
            or [] when nothing is padded, ``encoder_states`` (T', B, D) each if asked for, and
            empty ``encoder_embedding``, ``src_tokens``, ``src_lengths``.
        """
        self._check_features(src_tokens)
        if src_lengths.shape != src_tokens.shape[:1]:
            raise ValueError(
                f"src_lengths must have shape ({src_tokens.size(0)},), "
                f"got {tuple(src_lengths.shape)}"
            )
        frames = self.subsample.num_outputs(src_tokens.size(1))
        blocked, longest = self._forward_mask(segment_frames, frames, src_tokens.device)
        chunk = self._conv_chunk(longest, conv_chunk_frames)
        lengths = src_lengths
        for conv in self.subsample.conv_layers:
            lengths = torch.div(lengths - 1, conv.stride[0], rounding_mode="floor") + 1
        padding_mask = lengths_to_padding_mask(lengths, frames)
        blocked = blocked | padding_mask[:, None, None, :]
        x = self._embed(self.subsample(src_tokens, chunk))
        states = []
        for layer in self.conformer_layers:
            x = layer(x, blocked, chunk) if frames else x
            if return_all_hiddens:
                states.append(x.transpose(0, 1))
        return {
            "encoder_out": [x.transpose(0, 1)],
            "encoder_padding_mask": [padding_mask] if bool(padding_mask.any()) else [],
            "encoder_embedding": [],
            "encoder_states": states,
            "src_tokens": [],
            "src_lengths": [],
        }

    def init_state(
        self,
        batch_size: int = 1,
        *,
        segment_frames: int | None = None,
        conv_chunk_frames: int | None = None,
    ) -> ChunkConformerState:
        """Open a stream; the arguments mean what they mean in :meth:`forward`."""
        segment = self.config.segment_frames if segment_frames is None else segment_frames
        if segment < 1:
            raise ValueError(f"segment_frames must be at least 1, got {segment}")
        return ChunkConformerState(
            subsample=self.subsample.init_state(batch_size),
            layers=[layer.init_state(batch_size) for layer in self.conformer_layers],
            segment_frames=segment,
            conv_chunk_frames=self._conv_chunk(segment, conv_chunk_frames),
        )

    def open_stream(
        self,
        batch_size: int,
        chunk_ms: int,
        *,
        segment_frames: int | None = None,
        conv_chunk_frames: int | None = None,
    ) -> ChunkConformerState:
        """Open a stream whose attention chunk is the chunk of a decision, if none is given."""
        if segment_frames is None:
            segment_frames = max(chunk_ms // ENCODER_FRAME_MS, 1)
        return self.init_state(
            batch_size, segment_frames=segment_frames, conv_chunk_frames=conv_chunk_frames
        )

    def encode(
        self,
        features: Features,
        state: ChunkConformerState,
        *,
        lengths: Sequence[int] | None = None,
        final: bool | Sequence[bool] = False,
    ) -> tuple[Encoded, ChunkConformerState]:
        """:meth:`step` in the terms of :class:`~echostream.models.encoder.Encoder`; all rows
        advance by the same number of frames."""
        if lengths is not None:
            raise ValueError("rows of a chunk Conformer advance by the same number of frames")
        ends = bool(final) if isinstance(final, bool) else all(final)
        return self.step(features, state, final=ends)

    def step(
        self,
        features: Features,
        state: ChunkConformerState,
        *,
        final: bool = False,
    ) -> tuple[Encoded, ChunkConformerState]:
        """Encode new frames of a stream; every row of the batch advances by the same number.

        All completed ``frames`` so far followed by ``tail`` are the encoding of all input so far.
        Needs ``eval`` mode, where batch norm and dropout do not depend on the other frames.

        Args:
            features: (B, T, input_dim), possibly T = 0; or such frames with provisional ones.
            state: from :meth:`init_state` or the last step; not changed.
            final: no input follows, so all that is left becomes final.
        """
        if isinstance(features, Tensor):
            features = StreamFeatures(features, features[:, :0])
        self._check_features(features.final)
        self._check_features(features.tail)
        expected = state.subsample[0].inputs.size(0)
        if features.final.size(0) != expected:
            raise ValueError(
                f"this stream was opened for a batch of {expected}, got {features.final.size(0)}"
            )
        chunk = state.conv_chunk_frames
        done, tail, subsample = self.subsample.step(features, state.subsample, chunk)
        done, tail = self._embed(done), self._embed(tail)
        layers = []
        for layer, layer_state in zip(self.conformer_layers, state.layers, strict=True):
            done, tail, layer_state = layer.step(
                done, tail, layer_state, state.segment_frames, chunk
            )
            layers.append(layer_state)
        if final:
            done, tail = torch.cat([done, tail], dim=1), tail[:, :0]
        new_state = ChunkConformerState(subsample, layers, state.segment_frames, chunk)
        counts = PerRow.of(done.size(1), done.size(0))
        return Encoded(done, counts, tail), new_state

    def _embed(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear(self.scale * x))

    def _check_features(self, features: Tensor) -> None:
        if features.dim() != 3 or features.size(2) != self.config.input_dim:
            raise ValueError(
                f"features must have shape (B, T, {self.config.input_dim}), "
                f"got {tuple(features.shape)}"
            )

    def _conv_chunk(self, segment: int, override: int | None) -> int:
        if override is not None:
            return override
        if self.config.conv_chunk_frames is not None:
            return self.config.conv_chunk_frames
        return s2st_conv_chunk(segment)

    def _forward_mask(
        self, segment_frames: int | Sequence[int] | None, frames: int, device: torch.device
    ) -> tuple[Tensor, int]:
        """Attention mask (1, 1, T', T') and the length of the longest chunk."""
        if segment_frames is None:
            segment_frames = self.config.segment_frames
        if isinstance(segment_frames, int):
            if segment_frames < 1:
                raise ValueError(f"segment_frames must be at least 1, got {segment_frames}")
            return chunk_blocked(0, frames, segment_frames, device), segment_frames
        lengths = list(segment_frames)
        if sum(lengths) != frames or any(length < 1 for length in lengths):
            raise ValueError(
                f"segment_frames must be positive and sum to {frames} encoder frames, got {lengths}"
            )
        sizes = torch.tensor(lengths, device=device, dtype=torch.long)
        ends = sizes.cumsum(0).repeat_interleave(sizes)
        key = torch.arange(frames, device=device)
        return (key[None, :] >= ends[:, None])[None, None], max(lengths, default=1)
