"""Pre-norm Transformer layers with explicit key/value caches.

State-dict names follow fairseq's layers (``self_attn.q_proj``, ``fc1``, ``final_layer_norm``,
...), which StreamSpeech's decoders are built from, so its weights load by name. Offline and
streaming computation share every line of a layer; a stream brings the keys of its past along.

Shapes: B batch, H heads, T queries, K keys, C capacity, D model width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.models.kv_cache import KVCache, causal_mask
from echostream.models.module_list import module_list
from echostream.streaming import per_row


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

    def weights(
        self, query: Tensor, key: Tensor, mask: Tensor | None, heads: Sequence[int] | None = None
    ) -> Tensor:
        """The weights that :meth:`forward` attends with, 0 where hidden, averaged over ``heads``
        (None: all): (B, T, K). Other arguments as there."""
        scaled = self._split(self.q_proj(query)) / math.sqrt(self.head_dim)
        scores = scaled @ key.transpose(-2, -1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(dim=-1)
        return (weights if heads is None else weights[:, list(heads)]).mean(dim=1)


class TransformerLayer(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; each pre-norm with residual.

    Args:
        source_dim: width of the cross-attention source, or None for no cross-attention.
        activation: ``relu`` or ``gelu``.
    """

    def __init__(
        self,
        embed_dim: int,
        heads: int,
        ffn_dim: int,
        dropout: float,
        *,
        source_dim: int | None = None,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        activations: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
        self.activation = activations[activation]
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
        mask: Tensor | None,
        source: tuple[Tensor, Tensor] | None = None,
        source_mask: Tensor | None = None,
        *,
        past: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        looking: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Process new positions.

        Args:
            x: (B, T, D) new positions.
            mask: visibility among the keys, broadcastable to (B, H, T, K).
            source: projected keys and values of the cross-attention source.
            source_mask: visibility of the source, broadcastable to (B, H, T, K_source).
            past: takes the new positions' keys and values, and returns all that may be looked at;
                None: there are only these.
            looking: is told the (B, T, D) queries of cross-attention.

        Returns:
            (B, T, D)
        """
        normed = self.self_attn_layer_norm(x)
        key, value = self.self_attn.project(normed)
        if past is not None:
            key, value = past(key, value)
        x = x + self.dropout(self.self_attn(normed, key, value, mask))
        if source is not None:
            normed = self.encoder_attn_layer_norm(x)
            if looking is not None:
                looking(normed)
            x = x + self.dropout(self.encoder_attn(normed, *source, source_mask))
        hidden = self.dropout(self.activation(self.fc1(self.final_layer_norm(x))))
        return x + self.dropout(self.fc2(hidden))


def init_cache(
    layers: Sequence[nn.Module], name: str, batch_size: int, window: int | None = None
) -> KVCache:
    """An empty cache for attention ``name`` of each layer, as :meth:`KVCache.empty` makes it."""
    if not layers:
        return KVCache.empty(0, torch.empty(0), batch_size, 0, 0)
    attention = getattr(layers[0], name)
    like, heads, dim = state_like(attention.q_proj), attention.heads, attention.head_dim
    return KVCache.empty(len(layers), like, batch_size, heads, dim, window=window)


def read_source(
    layers: Sequence[TransformerLayer],
    source: Tensor,
    cache: KVCache,
    window: int | None,
    lengths: Sequence[int] | None = None,
) -> KVCache:
    """Append (B, S, D_source) new frames to what the layers' cross-attention sees; ``lengths`` of
    them are valid in each row (None: all)."""
    counts = per_row(source.size(1) if lengths is None else lengths, source.size(0))
    if not max(counts):
        return cache
    appending = cache.extend(counts)
    for index, layer in enumerate(layers):
        appending.write(index, *layer.encoder_attn.project(source))
    return appending.cache.trim(window)


def run_layers(
    layers: Sequence[TransformerLayer],
    x: Tensor,
    cache: KVCache,
    window: int | None,
    *,
    lengths: Sequence[int] | None = None,
    sources: KVCache | None = None,
    source_window: int | None = None,
    looking: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, KVCache]:
    """New positions (B, T, D) of a stream through a stack.

    Args:
        lengths: valid positions of each row; None: all T.
        window: how many positions, itself included, a position sees; None: all.
        sources: of the cross-attention, of which the last ``source_window`` are seen.
        looking: is told each layer's index and its (B, T, D) queries of cross-attention.
    """
    counts = per_row(x.size(1) if lengths is None else lengths, x.size(0))
    appending = cache.extend(counts)
    mask = appending.cache.visible(counts, x.size(1), window)
    source_mask = None if sources is None else sources.newest(source_window)
    for index, layer in enumerate(layers):
        source = None if sources is None else sources.layer(index)
        past = functools.partial(appending.write, index)
        looks = None if looking is None else functools.partial(looking, index)
        x = layer(x, mask, source, source_mask, past=past, looking=looks)
    return x, appending.cache.trim(window)


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
        self.layers = module_list(
            TransformerLayer(embed_dim, heads, ffn_dim, dropout) for _ in range(layers)
        )
        if layers:
            self.layer_norm = nn.LayerNorm(embed_dim)

    def init_state(self, batch_size: int = 1) -> KVCache:
        return init_cache(self.layers, "self_attn", batch_size)

    def step(
        self, x: Tensor, state: KVCache, *, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, KVCache]:
        """(B, T, D) new positions, of which ``lengths`` are valid in each row (None: all), to
        (B, T, D)."""
        if not self.layers or x.size(1) == 0:
            return x, state
        x, state = run_layers(self.layers, x, state, self.window, lengths=lengths)
        return self.layer_norm(x), state

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, T, D) to (B, T, D), what one step on a fresh state gives.

        ``padding_mask`` (B, T) is True at trailing padding. Causality hides that from valid
        positions anyway: the mask makes padded outputs equal the reference's too.
        """
        if not self.layers or x.size(1) == 0:
            return x
        mask = hide_padding(causal_mask(x.size(1), x.size(1), self.window, x.device), padding_mask)
        for layer in self.layers:
            x = layer(x, mask)
        return self.layer_norm(x)


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
