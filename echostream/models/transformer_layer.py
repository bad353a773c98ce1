"""Pre-norm Transformer layers with explicit key/value caches.

State-dict names follow fairseq's layers (``self_attn.q_proj``, ``fc1``, ``final_layer_norm``,
...), which StreamSpeech's decoders are built from, so its weights load by name. Offline and
streaming computation share every line: offline is one call on an empty cache.

Shapes: B batch, H heads, T queries, K keys, D model width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A bounded cache keeps this many positions more than its limit, so that a rollback of a few
# tokens finds the keys that were about to leave the window, and drops them in batches.
TRIM_SLACK = 64


class _Buffer:
    """Storage shared by successive caches. ``filled`` marks how far any of them has written."""

    __slots__ = ("filled", "key", "value")

    def __init__(self, key: Tensor, value: Tensor, filled: int) -> None:
        self.key, self.value, self.filled = key, value, filled


@dataclass(frozen=True)
class KVCache:
    """Attention keys and values of past positions.

    An immutable view ``[start, end)`` into a growing buffer. Appending to the newest view writes
    behind it in amortised constant time; appending to an older one (after a rollback) copies, so
    no view ever changes.

    Attributes:
        offset: how many leading positions were dropped for good.
    """

    buffer: _Buffer
    start: int
    end: int
    offset: int = 0

    @classmethod
    def empty(cls, like: Tensor, batch_size: int, heads: int, head_dim: int) -> KVCache:
        storage = like.new_empty(batch_size, heads, 0, head_dim)
        return cls(_Buffer(storage, storage, 0), 0, 0)

    @classmethod
    def of(cls, key: Tensor, value: Tensor, offset: int = 0) -> KVCache:
        """A cache that holds (B, H, K, D/H) keys and values."""
        stored = key.size(2)
        return cls(_Buffer(key, value, stored), 0, stored, offset)

    @property
    def key(self) -> Tensor:
        """(B, H, K, D/H)"""
        return self.buffer.key[:, :, self.start : self.end]

    @property
    def value(self) -> Tensor:
        """(B, H, K, D/H)"""
        return self.buffer.value[:, :, self.start : self.end]

    @property
    def stored(self) -> int:
        """Positions still held."""
        return self.end - self.start

    @property
    def length(self) -> int:
        """Positions ever appended (and not truncated)."""
        return self.offset + self.stored

    @property
    def nbytes(self) -> int:
        """Bytes of the underlying storage."""
        return 2 * self.buffer.key.numel() * self.buffer.key.element_size()

    def append(self, key: Tensor, value: Tensor) -> KVCache:
        """Return the cache with (B, H, N, D/H) new positions behind it."""
        new_end = self.end + key.size(2)
        buffer = self.buffer
        if torch.is_grad_enabled() and (key.requires_grad or buffer.key.requires_grad):
            # In-place writes would cut the graph: training takes the plain path.
            full_key = torch.cat([self.key, key], dim=2)
            full_value = torch.cat([self.value, value], dim=2)
            stored = full_key.size(2)
            return KVCache(_Buffer(full_key, full_value, stored), 0, stored, self.offset)
        if buffer.filled != self.end or new_end > buffer.key.size(2):
            batch, heads, _, head_dim = buffer.key.shape
            capacity = max(2 * (self.stored + key.size(2)), 16)
            grown_key = key.new_empty(batch, heads, capacity, head_dim)
            grown_value = key.new_empty(batch, heads, capacity, head_dim)
            grown_key[:, :, : self.stored] = self.key
            grown_value[:, :, : self.stored] = self.value
            buffer = _Buffer(grown_key, grown_value, self.stored)
            start, end = 0, self.stored
        else:
            start, end = self.start, self.end
        new_end = end + key.size(2)
        buffer.key[:, :, end:new_end] = key
        buffer.value[:, :, end:new_end] = value
        buffer.filled = new_end
        return KVCache(buffer, start, new_end, self.offset)

    def trim(self, limit: int | None) -> KVCache:
        """Drop positions that no future query of window ``limit`` can see, in batches."""
        if limit is None or self.stored <= limit + 2 * TRIM_SLACK:
            return self
        drop = self.stored - limit - TRIM_SLACK
        return replace(self, start=self.start + drop, offset=self.offset + drop)

    def truncate(self, length: int) -> KVCache:
        """Return the cache as it was when it held ``length`` positions.

        Raises:
            ValueError: ``length`` is beyond what was appended, or positions that were visible
                then have been dropped for good.
        """
        if not self.offset <= length <= self.length:
            raise ValueError(
                f"cannot truncate to {length} positions: the cache holds positions "
                f"{self.offset} to {self.length}"
            )
        return replace(self, end=self.start + length - self.offset)

    def select(self, rows: Tensor) -> KVCache:
        """Pick batch rows (beam search reorders with it)."""
        key, value = self.key.index_select(0, rows), self.value.index_select(0, rows)
        return KVCache(_Buffer(key, value, self.stored), 0, self.stored, self.offset)

    def expand(self, rows: int) -> KVCache:
        """The same single row seen ``rows`` times, without copying it."""
        key, value = (x.expand(rows, -1, -1, -1) for x in (self.key, self.value))
        return KVCache(_Buffer(key, value, self.stored), 0, self.stored, self.offset)

    def to(self, device: torch.device | str) -> KVCache:
        key, value = self.key.to(device), self.value.to(device)
        return KVCache(_Buffer(key, value, self.stored), 0, self.stored, self.offset)


def causal_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """(T, K) mask, True where query may look: the last ``queries`` of ``keys`` positions see
    themselves and what lies at most ``window - 1`` positions before. ``None`` if all is visible.
    """
    if queries == 1 and (window is None or keys <= window):
        return None
    query_index = torch.arange(keys - queries, keys, device=device)[:, None]
    key_index = torch.arange(keys, device=device)[None, :]
    visible = key_index <= query_index
    if window is not None and keys > window:
        visible &= key_index > query_index - window
    return visible


def sinusoid(index: Tensor, dim: int, *, dtype: torch.dtype) -> Tensor:
    """Sinusoidal embedding of positions ``index`` (...,) to (..., dim), fairseq's layout: all
    sines, then all cosines, frequencies from 1 to 1/10000 (tensor2tensor's variant)."""
    half = dim // 2
    scale = math.log(10000) / max(half - 1, 1)
    frequency = torch.exp(torch.arange(half, dtype=torch.float32, device=index.device) * -scale)
    angle = index[..., None].float() * frequency
    embedding = torch.cat([angle.sin(), angle.cos()], dim=-1)
    if dim % 2:
        embedding = F.pad(embedding, (0, 1))
    return embedding.to(dtype)


def state_like(projection: nn.Module) -> Tensor:
    """A tensor of the type and place that a projection's outputs have, for states made of them."""
    weight = projection.weight
    # int8 weights are no parameter; what they give is float32 on the CPU.
    return weight if isinstance(weight, Tensor) else torch.empty(0)


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention whose keys and values come from a cache."""

    def __init__(
        self, embed_dim: int, heads: int, *, key_dim: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        key_dim = embed_dim if key_dim is None else key_dim
        self.heads, self.head_dim, self.dropout = heads, embed_dim // heads, dropout
        self.k_proj = nn.Linear(key_dim, embed_dim)
        self.v_proj = nn.Linear(key_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            nn.init.xavier_uniform_(projection.weight, gain=1 / math.sqrt(2))
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def init_cache(self, batch_size: int) -> KVCache:
        return KVCache.empty(state_like(self.q_proj), batch_size, self.heads, self.head_dim)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)  # (B, H, T, D/H)

    def project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, key_dim) to keys and values, each (B, H, K, D/H)."""
        return self._split(self.k_proj(source)), self._split(self.v_proj(source))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend.

        Args:
            query: (B, T, D).
            key, value: (B, H, K, D/H).
            mask: True where visible, broadcastable to (B, H, T, K), or None.

        Returns:
            (B, T, D)
        """
        attended = F.scaled_dot_product_attention(
            self._split(self.q_proj(query)),
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; each pre-norm with residual.

    Args:
        source_dim: width of the cross-attention source, or None for no cross-attention.
    """

    def __init__(
        self,
        embed_dim: int,
        heads: int,
        ffn_dim: int,
        dropout: float,
        *,
        source_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(embed_dim, heads, dropout=dropout)
        self.self_attn_layer_norm = nn.LayerNorm(embed_dim)
        if source_dim is not None:
            self.encoder_attn = MultiheadAttention(
                embed_dim, heads, key_dim=source_dim, dropout=dropout
            )
            self.encoder_attn_layer_norm = nn.LayerNorm(embed_dim)
        self.fc1 = nn.Linear(embed_dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, embed_dim)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.final_layer_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        cache: KVCache,
        mask: Tensor | None,
        source: tuple[Tensor, Tensor] | None = None,
        source_mask: Tensor | None = None,
    ) -> tuple[Tensor, KVCache]:
        """Process new positions.

        Args:
            x: (B, T, D) new positions.
            cache: keys and values of the positions before them.
            mask: visibility among (cached + new) keys, broadcastable to (B, H, T, K).
            source: projected keys and values of the cross-attention source.
            source_mask: visibility of the source, broadcastable to (B, H, T, K_source).

        Returns:
            (B, T, D) and the cache with the new positions appended.
        """
        normed = self.self_attn_layer_norm(x)
        cache = cache.append(*self.self_attn.project(normed))
        x = x + self.dropout(self.self_attn(normed, cache.key, cache.value, mask))
        if source is not None:
            normed = self.encoder_attn_layer_norm(x)
            x = x + self.dropout(self.encoder_attn(normed, *source, source_mask))
        hidden = self.dropout(F.relu(self.fc1(self.final_layer_norm(x))))
        return x + self.dropout(self.fc2(hidden)), cache


@dataclass(frozen=True)
class UnidirectionalState:
    """Self-attention caches of a :class:`UnidirectionalTransformer`, one per layer."""

    caches: tuple[KVCache, ...]

    @property
    def length(self) -> int:
        return self.caches[0].length if self.caches else 0

    def truncate(self, length: int) -> UnidirectionalState:
        return UnidirectionalState(tuple(c.truncate(length) for c in self.caches))

    def to(self, device: torch.device | str) -> UnidirectionalState:
        return UnidirectionalState(tuple(c.to(device) for c in self.caches))


class UnidirectionalTransformer(nn.Module):
    """A stack of layers in which every position sees itself and a window before it.

    No positions are added. With zero layers it is the identity.

    Args:
        window: how many positions, itself included, a position sees; None for all.
    """

    def __init__(
        self,
        embed_dim: int,
        layers: int,
        heads: int,
        ffn_dim: int,
        dropout: float,
        window: int | None,
    ) -> None:
        super().__init__()
        self.window = window
        self.layers = nn.ModuleList(
            TransformerLayer(embed_dim, heads, ffn_dim, dropout) for _ in range(layers)
        )
        if layers:
            self.layer_norm = nn.LayerNorm(embed_dim)

    def init_state(self, batch_size: int = 1) -> UnidirectionalState:
        return UnidirectionalState(
            tuple(layer.self_attn.init_cache(batch_size) for layer in self.layers)
        )

    def step(
        self, x: Tensor, state: UnidirectionalState, *, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, UnidirectionalState]:
        """(B, T, D) new positions to (B, T, D).

        ``padding_mask`` (B, stored + T) hides keys: trailing padding of a fresh batch, or what
        stands in a cache before a stream's first position. Causality hides trailing padding from
        valid positions anyway: the mask makes padded outputs equal the reference's too.
        """
        if not self.layers or x.size(1) == 0:
            return x, state
        keys = state.caches[0].stored + x.size(1)
        mask = causal_mask(x.size(1), keys, self.window, x.device)
        mask = hide_padding(mask, padding_mask)
        caches = []
        for layer, cache in zip(self.layers, state.caches, strict=True):
            x, cache = layer(x, cache, mask)
            caches.append(cache.trim(self.window))
        return self.layer_norm(x), UnidirectionalState(tuple(caches))

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, T, D) to (B, T, D): one step on a fresh state."""
        return self.step(x, self.init_state(x.size(0)), padding_mask=padding_mask)[0]


def hide_padding(mask: Tensor | None, padding_mask: Tensor | None) -> Tensor | None:
    """Combine a visibility mask broadcastable to (B, T, K) with key padding (B, K), True at
    padding, into one broadcastable to (B, H, T, K)."""
    if mask is not None and mask.dim() == 3:
        mask = mask[:, None]
    if padding_mask is None:
        return mask
    valid = ~padding_mask[:, None, None, :]
    return valid if mask is None else mask & valid


def visible_mask(
    visible: Tensor | None, frames: int, window: int | None, device: torch.device
) -> Tensor | None:
    """(B, T) counts of visible source frames to a (B, T, S) mask, True where visible.

    The last ``window`` of the visible frames can be seen. ``None`` counts mean that all ``frames``
    are visible, and the mask may then be ``None`` too.
    """
    if visible is None:
        if window is None or frames <= window:
            return None
        visible = torch.tensor([[frames]])
    visible = visible.to(device)
    frame = torch.arange(frames, device=device)
    mask = frame < visible[..., None]
    if window is not None and frames > window:
        mask &= frame >= visible[..., None] - window
    return mask
