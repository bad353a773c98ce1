"""One Emformer layer: attention over memory, left context, segment and right context.

Shi et al., "Emformer: Efficient Memory Transformer Based Acoustic Model for Low Latency Streaming
Speech Recognition", ICASSP 2021. A segment attends to

- a memory bank of summaries of earlier segments, made by the layer below,
- the cached keys and values of the last ``left_context`` frames,
- itself and its right context (a look-ahead that is recomputed with the next segment).

Its mean is one more query, which sees everything but the memory; its attention output is the
segment's summary for the layer above. ``forward`` computes all segments at once under a block
mask, ``step`` one segment against the cache.

A layer may have a causal depthwise convolution between attention and feed-forward, gated as
the Conformer's (Gulati et al., 2020, section 2.2). It tells the order of frames, which attention
without positions cannot, and reads the past only, which adds neither delay nor dependence on
segments.

Without it weights correspond to ``torchaudio.models.Emformer`` by name (:data:`TORCHAUDIO_NAMES`).

Shapes: B batch, T utterance frames, S segment frames, R right-context frames (of all segments in
``forward``), G segments, M memory slots, D model width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.config import EmformerConfig
from echostream.streaming import lengths_to_padding_mask

MEMORY_CLAMP = 10.0  # bounds a summary that is not squashed by tanh

TORCHAUDIO_NAMES = {
    "attention.emb_to_query": "q_proj",
    "attention.emb_to_key_value": "kv_proj",
    "attention.out_proj": "out_proj",
    "layer_norm_input": "input_layer_norm",
    "pos_ff.0": "ffn_layer_norm",
    "pos_ff.1": "fc1",
    "pos_ff.4": "fc2",
    "layer_norm_output": "output_layer_norm",
}


def from_torchaudio_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of a ``torchaudio.models.Emformer`` to ``layers.N.*``."""
    renamed = {}
    for name, tensor in state.items():
        _, index, rest = name.split(".", 2)
        stem, leaf = rest.rsplit(".", 1)
        renamed[f"layers.{index}.{TORCHAUDIO_NAMES[stem]}.{leaf}"] = tensor
    return renamed


@dataclass(frozen=True)
class EmformerLayerState:
    """What a layer remembers between segments: projected keys and values, side by side.

    Attributes:
        left: (B, L, 2D) of the last L <= ``left_context_frames`` frames.
        memory: (B, M, 2D) of the last M <= ``memory_size`` segment summaries.
        conv: (B, K - 1, D) inputs of the depthwise convolution; (B, 0, D) without one.
    """

    left: Tensor
    memory: Tensor
    conv: Tensor


@dataclass(frozen=True)
class SegmentLayout:
    """How an utterance is cut, for the block computation of ``forward``.

    Attributes:
        lengths: frames per segment.
        right: right-context frames of each segment that exist (fewer at the end).
    """

    lengths: tuple[int, ...]
    right: tuple[int, ...]

    @classmethod
    def build(cls, lengths: Sequence[int], right_context: int, available: int) -> SegmentLayout:
        """``available`` frames exist in all; those behind the segments serve as right context."""
        ends = torch.tensor(lengths).cumsum(0).tolist()
        return cls(
            tuple(lengths), tuple(max(min(right_context, available - end), 0) for end in ends)
        )

    def right_index(self) -> list[int]:
        """Indices of the frames that form the concatenated right contexts."""
        index, end = [], 0
        for length, right in zip(self.lengths, self.right, strict=True):
            end += length
            index += range(end, end + right)
        return index


def attention_mask(layout: SegmentLayout, left_context: int, memory_size: int) -> Tensor:
    """Build the block mask of ``forward``, True where a query may look.

    Rows are [right contexts | utterance | summaries], columns [memory | right contexts |
    utterance]; the memory column g is the summary of segment g, of which the last segment's is
    never used.

    Returns:
        (R + T + G, G - 1 + R + T), without memory columns and summary rows if ``memory_size`` is 0.
    """
    segments = len(layout.lengths)
    index = torch.arange(segments)
    right_segment = torch.repeat_interleave(index, torch.tensor(layout.right))
    frame_segment = torch.repeat_interleave(index, torch.tensor(layout.lengths))
    starts = torch.tensor([0, *layout.lengths]).cumsum(0)[:-1]
    frame = torch.arange(len(frame_segment))

    use_memory = memory_size > 0
    queries = torch.cat([right_segment, frame_segment, index if use_memory else index[:0]])
    own = queries[:, None]
    sees_right = right_segment[None] == own
    first = (starts[queries] - left_context)[:, None]
    sees_frame = (frame_segment[None] <= own) & (frame[None] >= first)
    columns = [sees_right, sees_frame]
    if use_memory:
        slots = torch.arange(segments - 1)[None]
        sees_memory = (slots < own) & (slots >= own - memory_size)
        # A summary must not copy older summaries into newer ones.
        sees_memory[len(right_segment) + len(frame_segment) :] = False
        columns.insert(0, sees_memory)
    return torch.cat(columns, dim=1)


def right_windows(layout: SegmentLayout, kernel: int) -> Tensor:
    """What a causal convolution of ``kernel`` frames reads for each right-context frame.

    Returns:
        (R, K) positions in [right contexts | utterance], -1 for what precedes the utterance.
    """
    rows, end, offset = [], 0, sum(layout.right)
    start = 0
    for length, right in zip(layout.lengths, layout.right, strict=True):
        end += length
        past = [offset + t if t >= 0 else -1 for t in range(end - kernel + 1, end)]
        line = past + list(range(start, start + right))
        rows += [line[j : j + kernel] for j in range(right)]
        start += right
    return torch.tensor(rows, dtype=torch.long).view(len(rows), kernel)


class CausalConvolution(nn.Module):
    """Norm, pointwise GLU, causal depthwise convolution, SiLU, pointwise.

    Args:
        dim: width D.
        kernel: frames K that an output reads, the last one its own.
    """

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.kernel = kernel
        self.layer_norm = nn.LayerNorm(dim)
        self.pointwise_in = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, groups=dim)
        self.pointwise_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, windows: Tensor) -> Tensor:
        """Whole utterances: (B, R + T, D) to the same; ``windows`` of :func:`right_windows`.
        Right contexts take K times their memory here."""
        gated, right = self._gate(x), len(windows)
        out, _ = self._convolve(gated[:, right:], self.init_state(x.size(0)))
        if right:
            # Position -1 is the zero appended at the end.
            read = F.pad(gated, (0, 0, 0, 1))[:, windows]  # (B, R, K, D)
            looked = torch.einsum("brkd,dk->brd", read, self.depthwise.weight[:, 0])
            out = torch.cat([looked + self.depthwise.bias, out], dim=1)
        return self._finish(out)

    def init_state(self, batch_size: int) -> Tensor:
        """Silence before the first frame, (B, K - 1, D)."""
        weight = self.depthwise.weight
        return weight.new_zeros(batch_size, self.kernel - 1, weight.size(0))

    def step(self, x: Tensor, state: Tensor, right_length: int) -> tuple[Tensor, Tensor]:
        """One segment: (B, R + S, D) to the same, and the new state."""
        gated = self._gate(x)
        # In the order of time the right context comes last; the next segment brings it again.
        ordered = torch.cat([gated[:, right_length:], gated[:, :right_length]], dim=1)
        out, read = self._convolve(ordered, state)
        segment = x.size(1) - right_length
        out = torch.cat([out[:, segment:], out[:, :segment]], dim=1)
        return self._finish(out), read[:, segment : segment + self.kernel - 1].clone()

    def _gate(self, x: Tensor) -> Tensor:
        return F.glu(self.pointwise_in(self.layer_norm(x)), dim=-1)

    def _convolve(self, gated: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) behind (B, K - 1, D); returns the output and all that was read."""
        read = torch.cat([past.to(gated), gated], dim=1)
        return self.depthwise(read.transpose(1, 2)).transpose(1, 2), read

    def _finish(self, convolved: Tensor) -> Tensor:
        return self.dropout(self.pointwise_out(F.silu(convolved)))


class EmformerLayer(nn.Module):
    """One layer; see the module docstring.

    Args:
        config: sizes and context lengths.
        gain: scale of the initial query and key weights (torchaudio's "depthwise" rule, 1 over
            the root of the layer's depth, keeps deep stacks from collapsing at the start).
    """

    def __init__(self, config: EmformerConfig, gain: float = 1.0) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.q_proj = nn.Linear(dim, dim)
        self.kv_proj = nn.Linear(dim, 2 * dim)
        self.out_proj = nn.Linear(dim, dim)
        for projection in (self.q_proj, self.kv_proj):
            nn.init.xavier_uniform_(projection.weight, gain=gain)
        self.input_layer_norm = nn.LayerNorm(dim)
        self.ffn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, dim)
        self.output_layer_norm = nn.LayerNorm(dim)
        self.activation = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}[config.activation]
        self.dropout = nn.Dropout(config.dropout)
        kernel = config.depthwise_kernel_size
        self.convolution = CausalConvolution(dim, kernel, config.dropout) if kernel else None

    def init_state(self, batch_size: int = 1) -> EmformerLayerState:
        empty = self.q_proj.weight.new_empty(batch_size, 0, 2 * self.config.embed_dim)
        if self.convolution is None:
            return EmformerLayerState(empty, empty, empty[..., : self.config.embed_dim])
        return EmformerLayerState(empty, empty, self.convolution.init_state(batch_size))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(B, Q, D) queries against (B, K, D) keys and values; mask broadcasts to (B, H, Q, K)."""
        heads = self.config.attention_heads
        query, key, value = (
            x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.config.dropout if self.training else 0.0,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _summarize(self, attended: Tensor) -> Tensor:
        """Attention output of summary queries to the memory of the layer above."""
        if self.config.tanh_on_memory:
            return attended.tanh()
        return attended.clamp(-MEMORY_CLAMP, MEMORY_CLAMP)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(self.fc1(self.ffn_layer_norm(x))))
        return self.output_layer_norm(x + self.dropout(self.fc2(hidden)))

    def forward(
        self,
        frames: Tensor,
        memory: Tensor,
        mask: Tensor,
        segment_mean: Tensor,
        right_length: int,
        windows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """All segments at once.

        Args:
            frames: (B, R + T, D), the right contexts of all segments before the utterance.
            memory: (B, G - 1, D) summaries from the layer below; (B, 0, D) without memory.
            mask: visibility, broadcastable to (B, H, R + T + G, G - 1 + R + T).
            segment_mean: (G, T) averaging matrix; (0, T) without memory.
            right_length: R.
            windows: (R, K) of :func:`right_windows`; unused without a convolution.

        Returns:
            (B, R + T, D) and the summaries (B, G - 1, D) for the layer above.
        """
        normed = self.input_layer_norm(frames)
        summary = segment_mean @ normed[:, right_length:]
        query = self.q_proj(torch.cat([normed, summary], dim=1))
        key, value = self.kv_proj(torch.cat([memory, normed], dim=1)).chunk(2, dim=-1)
        attended = self._attend(query, key, value, mask)
        length = frames.size(1)
        memory = self._summarize(attended[:, length:])[:, :-1]
        x = frames + self.dropout(attended[:, :length])
        if self.convolution is not None:
            x = x + self.convolution(x, windows)
        return self._feed_forward(x), memory

    def step(
        self,
        frames: Tensor,
        memory: Tensor,
        state: EmformerLayerState,
        mask: Tensor | None,
        right_length: int,
    ) -> tuple[Tensor, Tensor, EmformerLayerState]:
        """One segment.

        Args:
            frames: (B, R + S, D), right context before the segment.
            memory: (B, 1, D) the layer below's summary of this segment, for later segments;
                (B, 0, D) without memory.
            state: what earlier segments left.
            mask: (R + S + 1, M + L + R + S), hides the memory from the summary query; None if
                there is nothing to hide.
            right_length: R.

        Returns:
            (B, R + S, D), this layer's summary of the segment, and the new state.
        """
        length = frames.size(1)
        normed = self.input_layer_norm(frames)
        queries = normed
        if memory.size(1):
            summary = normed[:, right_length:].mean(dim=1, keepdim=True)
            queries = torch.cat([normed, summary], dim=1)
        # The new memory slot is projected along; nothing looks at it before the next segment.
        projected = self.kv_proj(torch.cat([normed, memory], dim=1))
        new, slot = projected[:, :length], projected[:, length:]
        key, value = torch.cat([state.memory, state.left, new], dim=1).chunk(2, dim=-1)
        attended = self._attend(self.q_proj(queries), key, value, mask)
        x, conv = frames + self.dropout(attended[:, :length]), state.conv
        if self.convolution is not None:
            convolved, conv = self.convolution.step(x, conv, right_length)
            x = x + convolved
        following = EmformerLayerState(
            _append(state.left, new[:, right_length:], self.config.left_context_frames),
            _append(state.memory, slot, self.config.memory_size),
            conv,
        )
        summary = self._summarize(attended[:, length:])
        return self._feed_forward(x), summary, following


def _append(past: Tensor, new: Tensor, limit: int) -> Tensor:
    """The last ``limit`` positions of (B, K, C) ``past`` and ``new``, sharing no memory with what
    was dropped."""
    keep = limit - new.size(1)
    if keep <= 0:
        return new[:, new.size(1) - limit :].clone()
    return torch.cat([past[:, max(past.size(1) - keep, 0) :], new], dim=1)


class EmformerStack(nn.Module):
    """Layers without subsampling: what ``torchaudio.models.Emformer`` is.

    Args:
        config: sizes, number of layers, contexts.
    """

    def __init__(self, config: EmformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            EmformerLayer(config, gain=1 / math.sqrt(depth + 1)) for depth in range(config.layers)
        )

    def init_state(self, batch_size: int = 1) -> tuple[EmformerLayerState, ...]:
        return tuple(layer.init_state(batch_size) for layer in self.layers)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        segments: Sequence[int],
        *,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        """All segments at once.

        Args:
            x: (B, T + extra, D); frames behind the segments are right context only.
            lengths: (B,) valid frames, right context included. Frames beyond are never attended
                to.
            segments: frames per segment, summing to T.
            hidden_states: collects every layer's (B, T, D) output if given.

        Returns:
            (B, T, D); rows of padding are undefined.
        """
        config = self.config
        total = sum(segments)
        if total > x.size(1):
            raise ValueError(f"segments cover {total} frames, but there are only {x.size(1)}")
        if total == 0:
            return x[:, :0]
        layout = SegmentLayout.build(segments, config.right_context_frames, x.size(1))
        right_index = torch.tensor(layout.right_index(), dtype=torch.long, device=x.device)
        right_length = len(right_index)
        mask = attention_mask(layout, config.left_context_frames, config.memory_size)
        mask = self._hide_padding(mask.to(x.device), lengths, right_index, total)
        averaging = _segment_mean(layout.lengths).to(x)
        if config.memory_size:
            memory = (averaging @ x[:, :total])[:, :-1]
        else:
            averaging, memory = averaging[:0], x[:, :0]
        # Without right context there is nothing to gather, nor without a convolution.
        kernel = config.depthwise_kernel_size if right_length else 0
        windows = right_windows(layout, kernel).to(x.device)
        frames = torch.cat([x[:, right_index], x[:, :total]], dim=1)
        for layer in self.layers:
            frames, memory = layer(frames, memory, mask, averaging, right_length, windows)
            if hidden_states is not None:
                hidden_states.append(frames[:, right_length:])
        return frames[:, right_length:]

    def _hide_padding(
        self, mask: Tensor, lengths: Tensor, right_index: Tensor, total: int
    ) -> Tensor:
        """Add the batch's padding to a (Q, K) mask; returns (Q, K) or (B, 1, Q, K)."""
        frame = torch.cat([right_index, torch.arange(total, device=mask.device)])
        if bool((lengths > frame.max()).all()):
            return mask
        memory = mask.size(1) - len(frame)
        padding = lengths_to_padding_mask(lengths.to(mask.device), int(frame.max()) + 1)[:, frame]
        visible = F.pad(~padding, (memory, 0), value=True)
        combined = mask[None] & visible[:, None]
        # Rows of padding may be left with nothing to see: let them see something, so that their
        # (unused) outputs stay finite.
        combined |= ~combined.any(dim=-1, keepdim=True)
        return combined[:, None]

    def step(
        self, x: Tensor, state: tuple[EmformerLayerState, ...], right_length: int = 0
    ) -> tuple[Tensor, tuple[EmformerLayerState, ...]]:
        """One segment.

        Args:
            x: (B, S + R, D), the segment and ``right_length`` frames of look-ahead behind it.

        Returns:
            (B, S, D) and the new state.
        """
        segment = x.size(1) - right_length
        frames = torch.cat([x[:, segment:], x[:, :segment]], dim=1)
        memory = x[:, :0]
        if self.config.memory_size:
            memory = x[:, :segment].mean(dim=1, keepdim=True)
        mask = self._summary_mask(x, state[0]) if state else None
        following = []
        for layer, layer_state in zip(self.layers, state, strict=True):
            frames, memory, layer_state = layer.step(
                frames, memory, layer_state, mask, right_length
            )
            following.append(layer_state)
        return frames[:, right_length:], tuple(following)

    def _summary_mask(self, x: Tensor, state: EmformerLayerState) -> Tensor | None:
        """Hides the memory from the summary query, the last one; all layers share it."""
        slots = state.memory.size(1)
        if not slots:
            return None
        keys = slots + state.left.size(1) + x.size(1)
        mask = torch.ones(x.size(1) + 1, keys, dtype=torch.bool, device=x.device)
        mask[-1, :slots] = False
        return mask


def _segment_mean(lengths: Sequence[int]) -> Tensor:
    """(G, T) matrix that averages the frames of each segment."""
    count = torch.tensor(lengths)
    segment = torch.repeat_interleave(torch.arange(len(lengths)), count)
    matrix = F.one_hot(segment, len(lengths)).T.double()
    return matrix / count[:, None]
