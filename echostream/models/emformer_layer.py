"""Emformer layers and their stack: attention over memory, left context, segment, right context.

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
segments. It may also have a second feed-forward block, in front of the attention, where the
Conformer has its first one, and biases by distance in its attention (:mod:`.distance_bias`), so
that a Conformer's weights find their places (:mod:`.encoder_exchange`).

The streaming state has its full size from the start; what a row has not filled yet is hidden. So
rows at different positions step together, and those with shorter segments are padded.

Shapes: B batch, T utterance frames, S segment frames, R right-context frames (of all segments in
``forward``), L left-context frames, G segments, M memory slots, D model width, H heads, K kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.config import EmformerConfig
from echostream.models.causal_convolution import CausalConvolution
from echostream.models.distance_bias import (
    NOWHERE,
    DistanceBias,
    distance_index,
    step_distances,
)
from echostream.models.first_feed_forward import FirstFeedForward
from echostream.models.module_list import module_list
from echostream.streaming import (
    PerRow,
    filled_mask,
    from_host,
    lengths_to_padding_mask,
    per_row,
    shift_in,
    valid_mask,
    window,
)

MEMORY_CLAMP = 10.0  # bounds a summary that is not squashed by tanh
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class EmformerLayerState:
    """What a layer remembers between segments: projected keys and values, side by side.

    Attributes:
        left: (B, L, 2D) of the last frames, the newest at the end.
        memory: (B, M, 2D) of the last segments' summaries, the newest at the end.
        conv: (B, K - 1, D) inputs of the depthwise convolution; (B, 0, D) without one.
    """

    left: Tensor
    memory: Tensor
    conv: Tensor


@dataclass(frozen=True)
class EmformerState:
    """Streaming state of an :class:`EmformerStack`; shapes never change.

    Attributes:
        layers: of each layer.
        frames: frames of all segments of each row so far.
        segments: how many those were.
    """

    layers: tuple[EmformerLayerState, ...]
    frames: PerRow
    segments: PerRow


@dataclass(frozen=True)
class StepLayout:
    """How the rows of one step lie; all layers share it.

    Attributes:
        lengths: segment frames of each row; 0 where a row has no segment yet.
        right: right-context frames of each row.
        size, right_size: the most of each, S and R.
        mask: added to the attention scores, broadcastable to (B, H, Q, M + L + R + S); None if
            everything is visible.
        averaging: (B, 1, S) weights of a segment's mean; None if all rows are S long.
        summaries: 1 for rows with a segment, else 0.
    """

    lengths: PerRow
    right: PerRow
    size: int
    right_size: int
    mask: Tensor | None
    averaging: Tensor | None
    summaries: PerRow

    def mean(self, x: Tensor) -> Tensor:
        """(B, S, D) to the mean of each segment, (B, 1, D)."""
        if self.averaging is None:
            return x.mean(dim=1, keepdim=True)
        return self.averaging.to(x) @ x


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
        normalises = config.output_norm == "layers"
        self.output_layer_norm = nn.LayerNorm(dim) if normalises else nn.Identity()
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)
        kernel = config.depthwise_kernel_size
        self.convolution = CausalConvolution(dim, kernel, config.dropout) if kernel else None
        self.first_ffn = None
        if config.first_ffn_dim:
            self.first_ffn = FirstFeedForward(
                dim, config.first_ffn_dim, self.activation, config.dropout
            )
        self.distance_bias = None
        if config.distance_reach:
            self.distance_bias = DistanceBias(config.attention_heads, config.distance_reach)

    def init_state(self, batch_size: int = 1) -> EmformerLayerState:
        config, weight = self.config, self.input_layer_norm.weight
        conv = self.convolution
        return EmformerLayerState(
            weight.new_zeros(batch_size, config.left_context_frames, 2 * config.embed_dim),
            weight.new_zeros(batch_size, config.memory_size, 2 * config.embed_dim),
            conv.init_state(batch_size) if conv else weight.new_zeros(batch_size, 0, len(weight)),
        )

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

    def _biased(self, mask: Tensor | None, distances: Tensor | None) -> Tensor | None:
        """The mask with this layer's biases, if it has some."""
        if self.distance_bias is None or distances is None:
            return mask
        return self.distance_bias(distances, mask)

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
        distances: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All segments at once.

        Args:
            frames: (B, R + T, D), the right contexts of all segments before the utterance.
            memory: (B, G - 1, D) summaries from the layer below; (B, 0, D) without memory.
            mask: visibility, broadcastable to (B, H, R + T + G, G - 1 + R + T).
            segment_mean: (G, T) averaging matrix; (0, T) without memory.
            right_length: R.
            windows: (R, K) of :func:`right_windows`; unused without a convolution.
            distances: (R + T + G, G - 1 + R + T) of :func:`distance_index`; None without biases.

        Returns:
            (B, R + T, D) and the summaries (B, G - 1, D) for the layer above.
        """
        frames = frames if self.first_ffn is None else self.first_ffn(frames)
        normed = self.input_layer_norm(frames)
        summary = segment_mean @ normed[:, right_length:]
        query = self.q_proj(torch.cat([normed, summary], dim=1))
        key, value = self.kv_proj(torch.cat([memory, normed], dim=1)).chunk(2, dim=-1)
        attended = self._attend(query, key, value, self._biased(mask, distances))
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
        layout: StepLayout,
        distances: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, EmformerLayerState]:
        """One segment of each row.

        Args:
            frames: (B, R + S, D), right context before the segment.
            memory: (B, 1, D) the layer below's summary of this segment, for later segments;
                (B, 0, D) without memory.
            state: what earlier segments left.
            distances: of :func:`distance_index` between its queries and keys; None without biases.

        Returns:
            (B, R + S, D), this layer's summary of the segment, and the new state.
        """
        length, right = frames.size(1), layout.right_size
        frames = frames if self.first_ffn is None else self.first_ffn(frames)
        normed = self.input_layer_norm(frames)
        queries = normed
        if memory.size(1):
            queries = torch.cat([normed, layout.mean(normed[:, right:])], dim=1)
        # The new memory slot is projected along; nothing looks at it before the next segment.
        projected = self.kv_proj(torch.cat([normed, memory], dim=1))
        new, slot = projected[:, :length], projected[:, length:]
        key, value = torch.cat([state.memory, state.left, new], dim=1).chunk(2, dim=-1)
        mask = self._biased(layout.mask, distances)
        attended = self._attend(self.q_proj(queries), key, value, mask)
        x, conv = frames + self.dropout(attended[:, :length]), state.conv
        if self.convolution is not None:
            convolved, conv = self.convolution.step(x, conv, layout.lengths, right)
            x = x + convolved
        following = EmformerLayerState(
            shift_in(state.left, new[:, right:], layout.lengths),
            shift_in(state.memory, slot, layout.summaries),
            conv,
        )
        summary = self._summarize(attended[:, length:])
        return self._feed_forward(x), summary, following


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


class EmformerStack(nn.Module):
    """Layers without subsampling: what ``torchaudio.models.Emformer`` is.

    Args:
        config: sizes, number of layers, contexts.
    """

    def __init__(self, config: EmformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = module_list(
            EmformerLayer(config, gain=1 / math.sqrt(depth + 1)) for depth in range(config.layers)
        )

    def init_state(self, batch_size: int = 1) -> EmformerState:
        none = PerRow.of(0, batch_size)
        return EmformerState(
            tuple(layer.init_state(batch_size) for layer in self.layers), none, none
        )

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
                to. Where they lie on the host, nothing is read back from a GPU.
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
        right_index = torch.tensor(layout.right_index(), dtype=torch.long)
        right_length = len(right_index)
        mask = attention_mask(layout, config.left_context_frames, config.memory_size)
        mask = self._hide_padding(from_host(mask, x.device), lengths, right_index, total)
        right_index = from_host(right_index, x.device)
        averaging = from_host(segment_mean(layout.lengths), x.device).to(x)
        if config.memory_size:
            memory = (averaging @ x[:, :total])[:, :-1]
        else:
            averaging, memory = averaging[:0], x[:, :0]
        # Without right context there is nothing to gather, nor without a convolution.
        kernel = config.depthwise_kernel_size if right_length else 0
        windows = from_host(right_windows(layout, kernel), x.device)
        frames = torch.cat([x[:, right_index], x[:, :total]], dim=1)
        distances = None
        if config.distance_reach:
            position = torch.cat([right_index, torch.arange(total, device=x.device)])
            summaries = position.new_full((len(averaging),), NOWHERE)
            query, key = [position, summaries], [summaries[:-1], position]
            distances = distance_index(torch.cat(query), torch.cat(key), config.distance_reach)
        for layer in self.layers:
            frames, memory = layer(
                frames, memory, mask, averaging, right_length, windows, distances
            )
            if hidden_states is not None:
                hidden_states.append(frames[:, right_length:])
        return frames[:, right_length:]

    def _hide_padding(
        self, mask: Tensor, lengths: Tensor, right_index: Tensor, total: int
    ) -> Tensor:
        """Add the batch's padding to a (Q, K) mask; returns (Q, K) or (B, 1, Q, K)."""
        frame = torch.cat([right_index, torch.arange(total)])
        last = int(frame.max())
        if bool((lengths > last).all()):
            return mask
        memory = mask.size(1) - len(frame)
        padding = lengths_to_padding_mask(from_host(lengths, mask.device), last + 1)
        padding = padding[:, from_host(frame, mask.device)]
        visible = F.pad(~padding, (memory, 0), value=True)
        combined = mask[None] & visible[:, None]
        # Rows of padding may be left with nothing to see: let them see something, so that their
        # (unused) outputs stay finite.
        combined |= ~combined.any(dim=-1, keepdim=True)
        return combined[:, None]

    def step(
        self,
        x: Tensor,
        state: EmformerState,
        right: int | Sequence[int] = 0,
        *,
        lengths: Sequence[int] | None = None,
    ) -> tuple[Tensor, EmformerState]:
        """One segment of each row.

        Args:
            x: (B, N, D), in each row the segment and its look-ahead behind it, then padding.
            right: frames of look-ahead, for all rows or each.
            lengths: segment frames of each row, 0 where a row has no segment yet; None: all are
                ``N - right`` long.

        Returns:
            (B, S, D) and the new state.
        """
        rows = x.size(0)
        behind = per_row(right, rows)
        segment = per_row(x.size(1) - max(behind) if lengths is None else lengths, rows)
        layout = self.layout(segment, behind, state.frames, state.segments, x)
        out, layers = self.compute(x, state.layers, layout)
        return out, EmformerState(
            layers,
            PerRow(map(sum, zip(state.frames, segment, strict=True))),
            PerRow(map(sum, zip(state.segments, layout.summaries, strict=True))),
        )

    def compute(
        self, x: Tensor, state: tuple[EmformerLayerState, ...], layout: StepLayout
    ) -> tuple[Tensor, tuple[EmformerLayerState, ...]]:
        """:meth:`step` on tensors alone: (B, N, D) to (B, S, D), and the layers' new states."""
        segment, right = layout.size, layout.right_size
        frames = torch.cat([window(x, layout.lengths, right), x[:, :segment]], dim=1)
        memory = layout.mean(x[:, :segment]) if self.config.memory_size else x[:, :0]
        following = []
        distances = None
        if self.config.distance_reach:
            contexts = self.config.memory_size, self.config.left_context_frames
            distances = step_distances(
                layout.lengths, right, segment, *contexts, self.config.distance_reach, x.device
            )
        for layer, layer_state in zip(self.layers, state, strict=True):
            frames, memory, layer_state = layer.step(frames, memory, layer_state, layout, distances)
            following.append(layer_state)
        return frames[:, right:], tuple(following)

    def layout(
        self,
        lengths: PerRow,
        right: PerRow,
        frames: Sequence[int],
        segments: Sequence[int],
        like: Tensor,
    ) -> StepLayout:
        """How the rows of a step lie.

        Args:
            lengths, right: segment and right-context frames of each row.
            frames, segments: of each row before this step.
            like: gives the mask its device and format.
        """
        config, size, right_size = self.config, max(lengths), max(right)
        slots, left, device = config.memory_size, config.left_context_frames, like.device
        uniform = lengths.uniform and right.uniform
        visible = None
        if not uniform or min(frames) < left or min(segments) < slots:
            visible = torch.cat(
                [
                    filled_mask(segments, slots, device),
                    filled_mask(frames, left, device),
                    valid_mask(right, right_size, device),
                    valid_mask(lengths, size, device),
                ],
                dim=1,
            )
            # A row without a segment may see nothing: its outputs are not used, but stay finite.
            visible |= ~visible.any(dim=1, keepdim=True)
            visible = visible[:, None, None]
        if slots:
            # A summary must not copy older summaries into newer ones.
            queries, keys = right_size + size + 1, slots + left + right_size + size
            memory = torch.ones(queries, keys, dtype=torch.bool, device=device)
            memory[-1, :slots] = False
            visible = memory if visible is None else visible & memory
        mask = averaging = None
        if visible is not None:
            # Attention adds its mask: every layer would turn booleans into numbers anew.
            mask = like.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        if not lengths.uniform:
            averaging = valid_mask(lengths, size, device)[:, None].to(like.dtype)
            averaging = averaging / averaging.sum(dim=-1, keepdim=True).clamp(min=1)
        summaries = PerRow(int(length > 0) for length in lengths)
        return StepLayout(lengths, right, size, right_size, mask, averaging, summaries)


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
        index: list[int] = []
        end = 0
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


def segment_mean(lengths: Sequence[int]) -> Tensor:
    """(G, T) matrix that averages the frames of each segment."""
    count = torch.tensor(lengths)
    segment = torch.repeat_interleave(torch.arange(len(lengths)), count)
    matrix = F.one_hot(segment, len(lengths)).T.double()
    return matrix / count[:, None]
