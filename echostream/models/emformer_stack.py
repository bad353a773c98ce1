"""A stack of Emformer layers with the memory bank that runs between them.

Shapes: B batch, T utterance frames, S segment frames, R right-context frames, G segments, M memory
slots, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.config import EmformerConfig
from echostream.models.emformer_layer import EmformerLayer, EmformerLayerState
from echostream.models.emformer_masks import (
    SegmentLayout,
    attention_mask,
    right_windows,
    segment_mean,
)
from echostream.streaming import lengths_to_padding_mask

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
        averaging = segment_mean(layout.lengths).to(x)
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
        self,
        x: Tensor,
        state: tuple[EmformerLayerState, ...],
        right_length: int = 0,
        filled: Tensor | None = None,
    ) -> tuple[Tensor, tuple[EmformerLayerState, ...]]:
        """One segment.

        Args:
            x: (B, S + R, D), the segment and ``right_length`` frames of look-ahead behind it.
            filled: (B, M + L), False at slots of memory and left context that a stream has not
                filled yet; None: all are.

        Returns:
            (B, S, D) and the new state.
        """
        segment = x.size(1) - right_length
        frames = torch.cat([x[:, segment:], x[:, :segment]], dim=1)
        memory = x[:, :0]
        if self.config.memory_size:
            memory = x[:, :segment].mean(dim=1, keepdim=True)
        mask = self._step_mask(x, state[0], filled) if state else None
        if mask is not None:
            # Attention adds its mask: every layer would turn these booleans into numbers anew.
            mask = x.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        following = []
        for layer, layer_state in zip(self.layers, state, strict=True):
            frames, memory, layer_state = layer.step(
                frames, memory, layer_state, mask, right_length
            )
            following.append(layer_state)
        return frames[:, right_length:], tuple(following)

    def _step_mask(
        self, x: Tensor, state: EmformerLayerState, filled: Tensor | None
    ) -> Tensor | None:
        """Hides the memory from the summary query, the last one, and what is not filled from all
        queries; all layers share it."""
        slots, left = state.memory.size(1), state.left.size(1)
        queries = x.size(1) + (self.config.memory_size > 0)
        mask = None
        if slots:
            mask = torch.ones(queries, slots + left + x.size(1), dtype=torch.bool, device=x.device)
            mask[-1, :slots] = False
        if filled is None:
            return mask
        visible = F.pad(filled, (0, x.size(1)), value=True)[:, None, None]
        if mask is None:
            return visible.expand(-1, -1, queries, -1)
        return visible & mask
