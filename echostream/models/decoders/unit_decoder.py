"""Text-to-unit: the optional T2U encoder and the non-autoregressive CTC unit decoder.

StreamSpeech section 3.1: text decoder states are repeated ``upsample_ratio`` times and a causal
Transformer with cross-attention labels every copy with a unit or blank. State-dict names are
StreamSpeech's (``synthesizer_encoder``, ``decoder``).

Streaming rule: the copies of a text state see the text states that existed when it arrived, and
are never recomputed, so units already spoken cannot change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echostream.config import T2UEncoderConfig, UnitDecoderConfig
from echostream.models.transformer_layer import (
    KVCache,
    TransformerLayer,
    UnidirectionalTransformer,
    causal_mask,
    hide_padding,
    sinusoid,
    visible_mask,
)


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
    """Streaming state of :class:`CTCTransformerUnitDecoder`: self-attention caches over unit
    frames and cross-attention caches over text states, one per layer."""

    caches: tuple[KVCache, ...]
    sources: tuple[KVCache, ...]

    @property
    def length(self) -> int:
        """Unit frames labelled."""
        return self.caches[0].length

    def to(self, device: torch.device | str) -> UnitState:
        return UnitState(
            tuple(cache.to(device) for cache in self.caches),
            tuple(cache.to(device) for cache in self.sources),
        )


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
        self.layers = nn.ModuleList(
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
            tuple(layer.self_attn.init_cache(batch_size) for layer in self.layers),
            tuple(layer.encoder_attn.init_cache(batch_size) for layer in self.layers),
        )

    def _upsample(self, text: Tensor) -> Tensor:
        """(B, N, D) text states to (B, N*r, D) decoder inputs."""
        ratio, dim = self.config.upsample_ratio, self.config.embed_dim
        x = text.repeat_interleave(ratio, dim=1)
        if self.config.positions == "upsample":
            copy = torch.arange(ratio, device=text.device).repeat(text.size(1))
            positions = sinusoid(copy + self.pad + 1, dim, dtype=text.dtype)
        else:
            # The original looks its table up by batch row instead of time.
            row = torch.arange(text.size(0), device=text.device)
            positions = sinusoid(row + self.pad + 1, dim, dtype=text.dtype)[:, None]
        return self.dropout(x + positions)

    def _run(
        self,
        text: Tensor,
        state: UnitState,
        source_mask: Tensor | None,
        padding_mask: Tensor | None,
    ) -> tuple[Tensor, UnitState]:
        x = self._upsample(text)
        window = self._window_frames
        mask = hide_padding(
            causal_mask(x.size(1), state.caches[0].stored + x.size(1), window, x.device),
            padding_mask,
        )
        caches, sources = [], []
        for layer, cache, source in zip(self.layers, state.caches, state.sources, strict=True):
            source = source.append(*layer.encoder_attn.project(text))
            x, cache = layer(x, cache, mask, (source.key, source.value), source_mask)
            caches.append(cache.trim(window))
            sources.append(source.trim(self.config.context_tokens))
        logits = self.output_projection(self.layer_norm(x))
        return logits, UnitState(tuple(caches), tuple(sources))

    def step(self, text: Tensor, state: UnitState) -> tuple[Tensor, UnitState]:
        """(B, N, D) new text states to (B, N*r, V) logits; they see all text states so far."""
        if text.size(1) == 0:
            return text.new_empty(text.size(0), 0, self.output_projection.out_features), state
        stored, window = state.sources[0].stored + text.size(1), self.config.context_tokens
        mask = None
        if window is not None and stored > window:
            index = torch.arange(stored, device=text.device)
            mask = (index >= stored - window)[None, None, None, :]
        return self._run(text, state, mask, None)

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
        frame_padding = None
        if padding_mask is not None:
            frame_padding = padding_mask.repeat_interleave(ratio, dim=1)
        logits, _ = self._run(
            batch_first,
            self.init_state(batch_first.size(0)),
            hide_padding(source_mask, padding_mask),
            frame_padding,
        )
        return logits


def strided_visibility(length: int, *, lagging_k2: int, stride_n2: int) -> Tensor:
    """(1, N) training form of the unit policy: text state j's copies see text states up to the end
    of its stride plus ``lagging_k2`` (StreamSpeech, section 3.2)."""
    if stride_n2 < 1:
        raise ValueError(f"stride_n2 must be at least 1, got {stride_n2}")
    index = torch.arange(length)
    visible = (index // stride_n2 + 1) * stride_n2 + lagging_k2
    return visible.clamp(1, max(length, 1))[None]
