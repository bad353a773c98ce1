"""CTC heads, text decoder and unit decoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from echostream.config.checks import require, require_heads, require_layers, require_window
from echostream.config.loading import MAY_BE_MISSING


@dataclass(frozen=True)
class CTCHeadConfig:
    """A CTC head on the encoder; ``layers`` 0 is a plain projection (StreamSpeech's recipe)."""

    layers: int = 0
    attention_heads: int = 4
    ffn_dim: int = 2048
    dropout: float = 0.1
    context_frames: int | None = 256

    def __post_init__(self) -> None:
        require_layers("CTC head", self.layers, least=0)
        require_window("CTC head", "context_frames", self.context_frames)


@dataclass(frozen=True)
class MTDecoderConfig:
    """Autoregressive text decoder.

    ``context_tokens`` and ``source_context_frames`` bound what attention looks back at, and with
    it the streaming state; ``None`` leaves them unbounded.

    The last fields are for weights of Whisper's decoder: GELU, learned positions (so many; what
    stands behind them shares the last), embeddings that are not scaled, and a ``prompt`` of tokens
    that every sentence starts with in place of end-of-sentence. The prompt is never written.
    ``alignment_heads`` are pairs of layer and head, from 0, whose cross-attention follows the
    speech: the AlignAtt policy looks at them, unless it is told of a layer.

    ``no_repeat_ngram`` keeps a decoder from going round in circles: no run of so many tokens is
    written twice in a sentence; 0: it may. ``transcript_no_repeat_ngram`` is the same of
    transcripts, since people do say words twice; None: as many.

    ``source`` says what cross-attention sees: the frames of the ``encoder``, as the CTC heads do,
    or those of its ``stack``, where the encoder merges neighbours. Whisper's decoder knows the
    latter, 50 a second.

    With a ``transcript_prompt`` the decoder transcribes too, as Whisper's does: with the same
    layers, behind a prompt of its own, and in a vocabulary of ``transcript_vocab_size``. Its rows
    of the embedding table stand behind those of the translation; the prompt counts from the first
    of them.
    """

    layers: int = 4
    embed_dim: int = 256
    attention_heads: int = 4
    ffn_dim: int = 2048
    dropout: float = 0.1
    context_tokens: int | None = 512
    source_context_frames: int | None = 1500
    activation: Literal["relu", "gelu"] = field(default="relu", metadata=MAY_BE_MISSING)
    learned_positions: int = field(default=0, metadata=MAY_BE_MISSING)
    scale_embeddings: bool = field(default=True, metadata=MAY_BE_MISSING)
    prompt: tuple[int, ...] = field(default=(), metadata=MAY_BE_MISSING)
    alignment_heads: tuple[tuple[int, int], ...] = field(default=(), metadata=MAY_BE_MISSING)
    no_repeat_ngram: int = field(default=0, metadata=MAY_BE_MISSING)
    transcript_no_repeat_ngram: int | None = field(default=None, metadata=MAY_BE_MISSING)
    source: Literal["encoder", "stack"] = field(default="encoder", metadata=MAY_BE_MISSING)
    transcript_prompt: tuple[int, ...] = field(default=(), metadata=MAY_BE_MISSING)
    transcript_vocab_size: int = field(default=0, metadata=MAY_BE_MISSING)

    @property
    def transcribes(self) -> bool:
        """Whether the decoder writes transcripts too."""
        return bool(self.transcript_prompt)

    def __post_init__(self) -> None:
        require_heads("mt", self.embed_dim, self.attention_heads)
        for name in ("no_repeat_ngram", "transcript_no_repeat_ngram"):
            size = getattr(self, name)
            require(size is None or size >= 0, f"mt: {name} must not be negative, got {size}")
        for layer, head in self.alignment_heads:
            require(
                0 <= layer < self.layers and 0 <= head < self.attention_heads,
                f"mt: alignment_heads names head {head} of layer {layer}; there are {self.layers} "
                f"layers of {self.attention_heads}",
            )
        require(
            self.learned_positions >= 0,
            f"mt: learned_positions must not be negative, got {self.learned_positions}",
        )
        require(
            not self.learned_positions or self.learned_positions > len(self.prompt),
            f"mt: {self.learned_positions} learned_positions must exceed the prompt of "
            f"{len(self.prompt)} tokens",
        )
        require(
            len(self.transcript_prompt) in (0, len(self.prompt)),
            f"mt: transcript_prompt must be as long as the prompt of {len(self.prompt)} tokens, "
            f"got {len(self.transcript_prompt)}",
        )
        require(
            all(4 <= token < self.transcript_vocab_size for token in self.transcript_prompt),
            f"mt: transcript_prompt {list(self.transcript_prompt)} must name subwords of the "
            f"{self.transcript_vocab_size} of transcript_vocab_size",
        )
        require(
            self.transcribes or not self.transcript_vocab_size,
            f"mt: transcript_vocab_size is {self.transcript_vocab_size} without transcript_prompt",
        )
        require_layers("mt", self.layers)
        require_window("mt", "context_tokens", self.context_tokens)
        require_window("mt", "source_context_frames", self.source_context_frames)


@dataclass(frozen=True)
class T2UEncoderConfig:
    """Unidirectional Transformer over MT decoder states (StreamSpeech's synthesizer encoder)."""

    layers: int = 0
    attention_heads: int = 4
    ffn_dim: int = 2048
    dropout: float = 0.1
    context_tokens: int | None = 512

    def __post_init__(self) -> None:
        require_layers("t2u", self.layers, least=0)
        require_window("t2u", "context_tokens", self.context_tokens)


@dataclass(frozen=True)
class UnitDecoderConfig:
    """Non-autoregressive CTC unit decoder.

    ``positions``: ``upsample`` marks each of the ``upsample_ratio`` copies of a text state with a
    sinusoid; ``streamspeech`` repeats the original's arithmetic, which adds one constant vector
    per batch row.
    """

    layers: int = 6
    upsample_ratio: int = 5
    embed_dim: int = 256
    attention_heads: int = 4
    ffn_dim: int = 2048
    dropout: float = 0.1
    positions: Literal["upsample", "streamspeech"] = "upsample"
    context_tokens: int | None = 512

    def __post_init__(self) -> None:
        require_heads("unit", self.embed_dim, self.attention_heads)
        require_layers("unit", self.layers)
        require_window("unit", "context_tokens", self.context_tokens)
        require(self.upsample_ratio > 0, "unit: upsample_ratio must be positive")
