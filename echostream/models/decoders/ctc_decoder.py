"""CTC heads on the encoder.

StreamSpeech (section 3.1): an ASR head and a speech-to-text-translation head read the same
encoder output; the policy counts what they emit. State-dict names are StreamSpeech's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from echostream.config import CTCHeadConfig
from echostream.models.kv_cache import KVCache
from echostream.models.transformer_layer import UnidirectionalTransformer, init_cache


class CTCDecoder(nn.Module):
    """A linear CTC head.

    Args:
        embed_dim: encoder width D.
        vocab_size: V, with special symbols; the blank is one of them.
    """

    def __init__(self, embed_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(embed_dim, vocab_size)

    def init_state(self, batch_size: int = 1) -> KVCache:
        """The linear head remembers nothing; the state is empty."""
        return init_cache((), "", batch_size)

    def step(
        self, encoder_out: Tensor, state: KVCache, *, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, KVCache]:
        """(B, T, D) new encoder frames, of which ``lengths`` are valid in each row (None: all), to
        (B, T, V) logits."""
        return self.proj(encoder_out), state

    def forward(self, encoder_out: Tensor) -> Tensor:
        """(T, B, D) to (T, B, V) logits."""
        return self.proj(encoder_out)


class CTCDecoderWithTransformerLayer(UnidirectionalTransformer):
    """A CTC head with unidirectional Transformer layers before its projection.

    Zero layers make it the plain projection of StreamSpeech's recipe.
    """

    def __init__(self, config: CTCHeadConfig, embed_dim: int, vocab_size: int) -> None:
        super().__init__(
            embed_dim,
            config.layers,
            config.attention_heads,
            config.ffn_dim,
            config.dropout,
            config.context_frames,
        )
        self.proj = nn.Linear(embed_dim, vocab_size)

    def init_state(self, batch_size: int = 1) -> KVCache:
        """A head goes on as long as its stream: its memory has its full size from the start."""
        return init_cache(self.layers, "self_attn", batch_size, self.window)

    def step(
        self, encoder_out: Tensor, state: KVCache, *, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, KVCache]:
        """(B, T, D) new encoder frames, of which ``lengths`` are valid in each row (None: all), to
        (B, T, V) logits."""
        x, state = super().step(encoder_out, state, lengths=lengths)
        return self.proj(x), state

    # The layers below take batches first, a head takes time first, as fairseq's do.
    def forward(self, encoder_out: Tensor) -> Tensor:  # type: ignore[override]
        """(T, B, D) to (T, B, V) logits, what one step on a fresh state gives."""
        return self.proj(super().forward(encoder_out.transpose(0, 1))).transpose(0, 1)


def greedy_labels(logits: Tensor, forbidden: tuple[int, ...]) -> list[int]:
    """(T, V) logits to the best label of each frame, never one of ``forbidden``."""
    if logits.size(0) == 0:
        return []
    allowed = logits.clone()
    allowed[:, list(forbidden)] = -torch.inf
    labels: list[int] = allowed.argmax(dim=-1).tolist()
    return labels
