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

Shapes: B batch, T utterance frames, S segment frames, R right-context frames (of all segments in
``forward``), G segments, M memory slots, D model width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.config import EmformerConfig
from echostream.models.causal_convolution import CausalConvolution

MEMORY_CLAMP = 10.0  # bounds a summary that is not squashed by tanh


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
        empty = self.input_layer_norm.weight.new_empty(batch_size, 0, 2 * self.config.embed_dim)
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
            mask: (R + S + 1, M + L + R + S), added to the scores: hides the memory from the summary
                query; None if there is nothing to hide.
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
            append_bounded(state.left, new[:, right_length:], self.config.left_context_frames),
            append_bounded(state.memory, slot, self.config.memory_size),
            conv,
        )
        summary = self._summarize(attended[:, length:])
        return self._feed_forward(x), summary, following


def append_bounded(past: Tensor, new: Tensor, limit: int) -> Tensor:
    """The last ``limit`` positions of (B, K, C) ``past`` and ``new``, sharing no memory with what
    was dropped."""
    keep = limit - new.size(1)
    if keep <= 0:
        return new[:, new.size(1) - limit :].clone()
    return torch.cat([past[:, max(past.size(1) - keep, 0) :], new], dim=1)
