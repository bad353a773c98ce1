"""How long symbols of a phonemic text last and how high they are.

Text is spoken in pieces. A piece is seen whole, with ``context_symbols`` of what was said before it
and, of what comes after it, whatever is there to be seen, mostly nothing. Nothing else is
remembered, so the state of a stream is that much text.

Shapes: B pieces, N symbols, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echostream.config.checks import require, require_heads
from echostream.models.transformer_layer import sinusoid

MISSING = -1  # no symbol
Row = tuple[Sequence[int], Sequence[int], Sequence[int]]  # before, own, ahead


@dataclass(frozen=True)
class PhoneProsodyConfig:
    """Sizes.

    Attributes:
        num_symbols: of the text.
        embed_dim, layers, attention_heads, ffn_dim, dropout: of the Transformer.
        context_symbols: of the text before a piece.
        frame_ms: what durations count.
        mean_log_f0: of the voice; predictions are offsets from it.
    """

    num_symbols: int = 64
    embed_dim: int = 160
    layers: int = 3
    attention_heads: int = 4
    ffn_dim: int = 448
    dropout: float = 0.1
    context_symbols: int = 64
    frame_ms: float = 12.5
    mean_log_f0: float = 5.2

    def __post_init__(self) -> None:
        require_heads("phone prosody", self.embed_dim, self.attention_heads)
        for name in ("num_symbols", "layers", "ffn_dim", "context_symbols"):
            value = getattr(self, name)
            require(value > 0, f"phone prosody: {name} must be positive, got {value}")


@dataclass(frozen=True)
class Prosody:
    """Of the N symbols of a piece.

    Attributes:
        frames: (N,) not rounded, at least 1.
        log_f0: (N,) natural logarithm of Hz.
    """

    frames: tuple[float, ...]
    log_f0: tuple[float, ...]


class PhoneProsody(nn.Module):
    """Symbols to log durations and log pitches."""

    def __init__(self, config: PhoneProsodyConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.symbols = nn.Embedding(config.num_symbols + 1, dim)
        self.near = nn.Conv1d(dim, dim, 5, padding=2)
        layer = nn.TransformerEncoderLayer(
            dim,
            config.attention_heads,
            config.ffn_dim,
            config.dropout,
            "gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, config.layers, nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.out = nn.Linear(dim, 2)

    def forward(self, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) symbols, -1 behind the end of shorter rows, to (B, N) log frames and (B, N) log
        pitch."""
        missing = symbols == MISSING
        x = self.symbols(symbols + 1) * ~missing[..., None]
        x = x + self.near(x.transpose(1, 2)).transpose(1, 2)
        places = torch.arange(symbols.size(1), device=x.device)
        x = x + sinusoid(places, self.config.embed_dim, dtype=x.dtype)
        x = self.layers(x, src_key_padding_mask=missing if bool(missing.any()) else None)
        log_frames, pitch = self.out(x).unbind(2)
        return log_frames + 1.0, 0.2 * pitch + self.config.mean_log_f0

    def predict(self, before: Sequence[int], piece: Sequence[int]) -> Prosody:
        """:meth:`predict_rows` of one piece with nothing ahead."""
        return self.predict_rows([(before, piece, ())])[0]

    @torch.no_grad()
    def predict_rows(self, rows: Sequence[Row]) -> list[Prosody]:
        """Durations and pitch of the symbols of several pieces.

        Args:
            rows: of each, symbols of the sentence before it, of which the last
                ``context_symbols`` count; its own; and those that may follow it.
        """
        limit = self.config.context_symbols
        seen = [(before[max(len(before) - limit, 0) :], own, ahead) for before, own, ahead in rows]
        lengths = [sum(map(len, row)) for row in seen]
        longest = max(lengths, default=0)
        if not longest:
            return [Prosody((), ())] * len(rows)
        table = torch.full((len(rows), longest), MISSING)
        for place, (row, length) in enumerate(zip(seen, lengths, strict=True)):
            table[place, :length] = torch.tensor([symbol for part in row for symbol in part])
        # A row of nothing would have nothing to attend to.
        going = [place for place, length in enumerate(lengths) if length]
        log_frames, pitch = self(table[going].to(self.out.weight.device))
        frames = log_frames.double().exp().clamp(min=1.0).tolist()
        pitches = pitch.double().tolist()
        found = [Prosody((), ())] * len(rows)
        for place, one, other in zip(going, frames, pitches, strict=True):
            before, own, _ = seen[place]
            inside = slice(len(before), len(before) + len(own))
            found[place] = Prosody(tuple(one[inside]), tuple(other[inside]))
        return found
