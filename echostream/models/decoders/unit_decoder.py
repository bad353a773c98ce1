"""Text-to-unit: the optional T2U encoder and the non-autoregressive CTC unit decoder.

StreamSpeech section 3.1: text decoder states are repeated ``upsample_ratio`` times and a causal
Transformer with cross-attention labels every copy with a unit or blank. State-dict names are
StreamSpeech's (``synthesizer_encoder``, ``decoder``).

Streaming rule: the copies of a text state see the text states that existed when it arrived, and
are never recomputed, so units already spoken cannot change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echostream.config import T2UEncoderConfig, UnitDecoderConfig
from echostream.models.kv_cache import KVCache, causal_mask
from echostream.models.module_list import module_list
from echostream.models.transformer_layer import (
    TransformerLayer,
    UnidirectionalTransformer,
    hide_padding,
    init_cache,
    read_source,
    run_layers,
    sinusoid,
    visible_mask,
)
from echostream.streaming import per_row


class T2UEncoder(UnidirectionalTransformer):
    """Unidirectional Transformer between text decoder states and unit decoder; zero layers make
    it the identity."""

    def __init__(self, config: T2UEncoderConfig, embed_dim: int) -> None:
        super().__init__(
            embed_dim,
            config.layers,
            config.attention_heads,
            config.ffn_dim,
            config.dropout,
            config.context_tokens,
        )


@dataclass(frozen=True)
class UnitState:
    """Streaming state of :class:`CTCTransformerUnitDecoder`: self-attention keys and values of unit
    frames, and cross-attention keys and values of text states."""

    cache: KVCache
    sources: KVCache

    @property
    def length(self) -> int:
        """Unit frames labelled in the only row."""
        return self.cache.length


class CTCTransformerUnitDecoder(nn.Module):
    """CTC unit decoder.

    Args:
        config: sizes; ``upsample_ratio`` is r below.
        vocab_size: units with special symbols and blank.
        pad: padding id, which places the first row of the sinusoid table.
    """

    def __init__(self, config: UnitDecoderConfig, vocab_size: int, *, pad: int = 1) -> None:
        super().__init__()
        self.config, self.pad = config, pad
        dim = config.embed_dim
        self.layers = module_list(
            TransformerLayer(
                dim, config.attention_heads, config.ffn_dim, config.dropout, source_dim=dim
            )
            for _ in range(config.layers)
        )
        self.layer_norm = nn.LayerNorm(dim)
        self.output_projection = nn.Linear(dim, vocab_size, bias=False)
        nn.init.normal_(self.output_projection.weight, std=dim**-0.5)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def _window_frames(self) -> int | None:
        context = self.config.context_tokens
        return None if context is None else context * self.config.upsample_ratio

    def init_state(self, batch_size: int = 1) -> UnitState:
        return UnitState(
            init_cache(self.layers, "self_attn", batch_size),
            init_cache(self.layers, "encoder_attn", batch_size),
        )

    def _upsample(self, text: Tensor, rows: Tensor) -> Tensor:
        """(B, N, D) text states to (B, N*r, D) decoder inputs; ``rows`` (B,) are their indices in
        the batch."""
        ratio, dim = self.config.upsample_ratio, self.config.embed_dim
        x = text.repeat_interleave(ratio, dim=1)
        if self.config.positions == "upsample":
            copy = torch.arange(ratio, device=text.device).repeat(text.size(1))
            positions = sinusoid(copy + self.pad + 1, dim, dtype=text.dtype)
        else:
            # The original looks its table up by batch row instead of time.
            positions = sinusoid(rows + self.pad + 1, dim, dtype=text.dtype)[:, None]
        return self.dropout(x + positions)

    def step(
        self, text: Tensor, state: UnitState, *, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, UnitState]:
        """(B, N, D) new text states, of which ``lengths`` are valid in each row (None: all), to
        (B, N*r, V) logits; they see all text states so far."""
        if text.size(1) == 0:
            return text.new_empty(text.size(0), 0, self.output_projection.out_features), state
        window, ratio = self.config.context_tokens, self.config.upsample_ratio
        counts = per_row(text.size(1) if lengths is None else lengths, text.size(0))
        sources = read_source(self.layers, text, state.sources, window, counts)
        # Every stream is the first row of a batch of its own.
        first = torch.zeros(text.size(0), dtype=torch.long, device=text.device)
        x, cache = run_layers(
            self.layers,
            self._upsample(text, first),
            state.cache,
            self._window_frames,
            lengths=[count * ratio for count in counts],
            sources=sources,
            source_window=window,
        )
        return self.output_projection(self.layer_norm(x)), UnitState(cache, sources)

    def forward(
        self,
        text: Tensor,
        padding_mask: Tensor | None = None,
        visible_text: Tensor | None = None,
    ) -> Tensor:
        """Label all copies of all text states.

        Args:
            text: (N, B, D).
            padding_mask: (B, N), True at padding.
            visible_text: (B, N) or (1, N) how many text states each one's copies may see; None:
                all of them.

        Returns:
            (B, N*r, V) logits.
        """
        batch_first = text.transpose(0, 1)
        ratio = self.config.upsample_ratio
        if visible_text is None and padding_mask is not None:
            # A window counts back from each row's own end.
            visible_text = (~padding_mask).sum(dim=1, keepdim=True)
        source_mask = visible_mask(
            visible_text, batch_first.size(1), self.config.context_tokens, text.device
        )
        if source_mask is not None and source_mask.size(1) > 1:
            source_mask = source_mask.repeat_interleave(ratio, dim=1)
        source_mask = hide_padding(source_mask, padding_mask)
        frame_padding = None
        if padding_mask is not None:
            frame_padding = padding_mask.repeat_interleave(ratio, dim=1)
        rows = torch.arange(batch_first.size(0), device=text.device)
        x = self._upsample(batch_first, rows)
        mask = hide_padding(
            causal_mask(x.size(1), x.size(1), self._window_frames, x.device), frame_padding
        )
        for layer in self.layers:
            x = layer(x, mask, layer.encoder_attn.project(batch_first), source_mask)
        return self.output_projection(self.layer_norm(x))


def strided_visibility(length: int, *, lagging_k2: int, stride_n2: int) -> Tensor:
    """(1, N) training form of the unit policy: text state j's copies see text states up to the end
    of its stride plus ``lagging_k2`` (StreamSpeech, section 3.2)."""
    if stride_n2 < 1:
        raise ValueError(f"stride_n2 must be at least 1, got {stride_n2}")
    index = torch.arange(length)
    visible = (index // stride_n2 + 1) * stride_n2 + lagging_k2
    return visible.clamp(1, max(length, 1))[None]
