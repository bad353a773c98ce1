"""How long symbols of a phonemic text last and how high they are.

Text is spoken in pieces. A piece is seen whole, with ``context_symbols`` of what was said before it
and nothing of what comes after it. Nothing else is remembered, so the state of a stream is that
much text.

Shapes: B pieces, N symbols, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echostream.config.checks import require, require_heads
from echostream.models.transformer_layer import sinusoid


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
        missing = symbols < 0
        x = self.symbols(symbols + 1) * ~missing[..., None]
        x = x + self.near(x.transpose(1, 2)).transpose(1, 2)
        places = torch.arange(symbols.size(1), device=x.device)
        x = x + sinusoid(places, self.config.embed_dim, dtype=x.dtype)
        x = self.layers(x, src_key_padding_mask=missing if bool(missing.any()) else None)
        log_frames, pitch = self.out(x).unbind(2)
        return log_frames + 1.0, 0.2 * pitch + self.config.mean_log_f0

    @torch.no_grad()
    def predict(self, before: list[int], piece: list[int]) -> tuple[list[float], list[float]]:
        """Frames (not rounded, at least 1) and log pitch of every symbol of a piece.

        Args:
            before: symbols of the sentence before it, of which the last ``context_symbols`` count.
        """
        if not piece:
            return [], []
        seen = before[len(before) - min(self.config.context_symbols, len(before)) :]
        table = torch.tensor([[*seen, *piece]], device=self.out.weight.device)
        log_frames, pitch = self(table)
        frames = log_frames[0, len(seen) :].float().exp().clamp(min=1.0)
        return frames.tolist(), pitch[0, len(seen) :].float().tolist()
