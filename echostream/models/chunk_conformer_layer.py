"""One layer of StreamSpeech's chunk Conformer, for whole inputs and for streams.

Two kinds of chunk meet here. Attention chunks: a frame attends to every earlier frame and to the
rest of its own chunk. Convolution chunks: a convolution sees earlier frames and the rest of its
own chunk, and zeros beyond it. Chunks start at frame 0 and the two lengths are independent.

An output is *final* when no later input can change it: its attention chunk and whatever its
convolutions read have arrived and are final themselves. ``step`` takes final and provisional
inputs apart, keeps what final inputs leave behind, and recomputes only the rest. The final part
of a layer may lag behind its input when attention and convolution chunks are not multiples of
each other; multiples of both are final in every layer, so the lag stays below their least common
multiple.

Letters: B batch, T frames, F final frames, P provisional frames, D width, H heads, K head width,
C channels, N queries. State-dict names and arithmetic follow StreamSpeech (Zhang et al., ACL
2024), whose attention is that of ESPnet (Dai et al., 2019, section 3.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echostream.models.chunk_conv import ChunkConv1d, ChunkConvState
from echostream.models.transformer_layer import state_like

# Projected positions are computed ahead in blocks, so that a stream does not do it every step.
POSITION_BLOCK = 128


def relative_positions(highest: int, count: int, width: int, like: Tensor) -> Tensor:
    """Sinusoids of the distances ``highest, highest - 1, ...``, (count, D), in ``like``'s dtype.

    Distance is query minus key position. Angles are computed in float32 whatever the model's
    type, because at large distances their rounding is visible and trained weights have seen it.
    """
    distance = torch.arange(highest, highest - count, -1, dtype=torch.float32, device=like.device)
    rate = torch.exp(
        torch.arange(0, width, 2, dtype=torch.float32, device=like.device)
        * -(math.log(10000.0) / width)
    )
    angles = distance[:, None] * rate
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
    return table.to(like.dtype)


@dataclass
class AttentionState:
    """Keys and values of final frames, each (B, H, F, K), and projected relative positions.

    ``positions`` (H, n, K) holds distances ``highest, highest - 1, ...``. It depends on weights
    only; a stream keeps it because projecting it anew would cost more than the attention.
    All three grow with the stream: the original attends to the whole past.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    highest: int = -1


class RelativeAttention(nn.Module):
    """Multi-head attention with relative positions."""

    def __init__(self, embed_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = embed_dim // heads
        self.linear_q = nn.Linear(embed_dim, embed_dim)
        self.linear_k = nn.Linear(embed_dim, embed_dim)
        self.linear_v = nn.Linear(embed_dim, embed_dim)
        self.linear_out = nn.Linear(embed_dim, embed_dim)
        self.linear_pos = nn.Linear(embed_dim, embed_dim, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, self.head_dim))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, self.head_dim))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, blocked: Tensor) -> Tensor:
        """Self-attention over (B, T, D); ``blocked`` (B or 1, 1, T, T) is True where forbidden."""
        length = x.size(1)
        positions = self._project_positions(length - 1, 2 * length - 1, x)
        keys, values = self.project_keys(x)
        return self._attend(x, keys, values, positions, blocked)

    def init_state(self, batch_size: int) -> AttentionState:
        empty = state_like(self.linear_k).new_zeros(batch_size, self.heads, 0, self.head_dim)
        return AttentionState(empty, empty, empty.new_zeros(self.heads, 0, self.head_dim))

    def project_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) to keys and values, each (B, H, T, K)."""
        return self._split(self.linear_k(x)), self._split(self.linear_v(x))

    def step(
        self, queries: Tensor, final: Tensor, tail: Tensor, blocked: Tensor, state: AttentionState
    ) -> tuple[Tensor, AttentionState]:
        """Attend from the last frames of a stream.

        Args:
            queries: (B, N, D), the last N frames: those of earlier steps that are still open,
                then ``final``, then ``tail``.
            final: (B, F, D), new final frames.
            tail: (B, P, D), provisional frames.
            blocked: (1, 1, N, T), True where forbidden, T counting all frames.
            state: everything about earlier final frames.

        Returns:
            (B, N, D) and the state after the final frames.
        """
        keys, values = self.project_keys(torch.cat([final, tail], dim=1))
        keys = torch.cat([state.keys, keys], dim=2)
        values = torch.cat([state.values, values], dim=2)
        total, count = keys.size(2), queries.size(1)
        kept = total - tail.size(1)
        positions, highest = state.positions, state.highest
        lowest = highest - positions.size(1) + 1
        if total - 1 > highest or 1 - count < lowest:
            highest = max(highest, (total // POSITION_BLOCK + 1) * POSITION_BLOCK)
            lowest = min(lowest, 1 - count)
            positions = self._project_positions(highest, highest - lowest + 1, queries)
        new_state = AttentionState(keys[:, :, :kept], values[:, :, :kept], positions, highest)
        skip = highest - (total - 1)
        window = positions[:, skip : skip + total + count - 1]
        return self._attend(queries, keys, values, window, blocked), new_state

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, self.head_dim)).transpose(1, 2)

    def _project_positions(self, highest: int, count: int, like: Tensor) -> Tensor:
        table = relative_positions(highest, count, self.heads * self.head_dim, like)
        return self.linear_pos(table).unflatten(1, (self.heads, self.head_dim)).transpose(0, 1)

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, positions: Tensor, blocked: Tensor
    ) -> Tensor:
        """Attention of the last N of T frames; ``positions`` (H, T + N - 1, K) runs from distance
        T - 1 down to -(N - 1)."""
        query = self.linear_q(queries).unflatten(2, (self.heads, self.head_dim))  # (B, N, H, K)
        content = (query + self.pos_bias_u).transpose(1, 2) @ keys.transpose(2, 3)
        place = (query + self.pos_bias_v).transpose(1, 2) @ positions.transpose(1, 2)
        scores = content + _align_distances(place, keys.size(2))
        scores = scores / math.sqrt(self.head_dim)
        scores = scores.masked_fill(blocked, float("-inf"))
        weights = self.dropout(torch.softmax(scores, dim=-1))
        out = (weights @ values).transpose(1, 2).flatten(2)  # (B, N, D)
        return self.linear_out(out)


def _align_distances(by_distance: Tensor, keys: int) -> Tensor:
    """Turn scores by distance, (B, H, N, T + N - 1), into scores by key, (B, H, N, T).

    Row n of the last N frames needs the T columns that start at column N - 1 - n. Padding each
    row by one and reading the flat array with rows one shorter shifts row n by exactly n.
    """
    batch, heads, count, width = by_distance.shape
    flat = F.pad(by_distance, (0, 1)).flatten(2)
    flat = flat[:, :, count - 1 : count - 1 + count * width]
    return flat.reshape(batch, heads, count, width)[..., :keys]


class FeedForward(nn.Module):
    """Norm, linear, SiLU, linear."""

    def __init__(self, embed_dim: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(embed_dim)
        self.w_1 = nn.Linear(embed_dim, ffn_dim)
        self.w_2 = nn.Linear(ffn_dim, embed_dim)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout1(F.silu(self.w_1(self.layer_norm(x))))
        return self.dropout2(self.w_2(hidden))


class ConvolutionModule(nn.Module):
    """Pointwise GLU, chunked depthwise convolution, batch norm, SiLU, pointwise.

    Split in two around the depthwise convolution, the only part that looks at other frames.
    """

    def __init__(self, embed_dim: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(embed_dim)
        self.pointwise_conv1 = nn.Conv1d(embed_dim, 2 * embed_dim, 1, bias=False)
        self.depthwise_conv = ChunkConv1d(
            embed_dim, embed_dim, kernel_size, groups=embed_dim, bias=False
        )
        self.batch_norm = nn.BatchNorm1d(embed_dim)
        self.pointwise_conv2 = nn.Conv1d(embed_dim, embed_dim, 1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, chunk: int) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.after(self.depthwise_conv(self.before(x), chunk))

    def before(self, x: Tensor) -> Tensor:
        """(B, T, D) to the depthwise convolution's input (B, D, T)."""
        x = self.layer_norm(x).transpose(1, 2)
        return F.glu(self.pointwise_conv1(x), dim=1)

    def after(self, x: Tensor) -> Tensor:
        """The depthwise convolution's output (B, D, T) to (B, T, D)."""
        x = F.silu(self.batch_norm(x))
        return self.dropout(self.pointwise_conv2(x)).transpose(1, 2)


@dataclass
class ConformerLayerState:
    """What final frames leave behind in one layer.

    ``open_attention`` (B, n, D): final inputs, after the first feed-forward, whose attention
    chunk is incomplete. ``open_convolution`` (B, n, D): frames through attention that wait for
    the convolution. ``attended`` counts frames through attention. Bounded, except ``attention``.
    """

    attention: AttentionState
    conv: ChunkConvState
    open_attention: Tensor
    open_convolution: Tensor
    attended: int = 0


class ChunkConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm."""

    def __init__(
        self, embed_dim: int, ffn_dim: int, heads: int, kernel_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.ffn1 = FeedForward(embed_dim, ffn_dim, dropout)
        self.self_attn_layer_norm = nn.LayerNorm(embed_dim)
        self.self_attn_dropout = nn.Dropout(dropout)
        self.self_attn = RelativeAttention(embed_dim, heads, dropout)
        self.conv_module = ConvolutionModule(embed_dim, kernel_size, dropout)
        self.ffn2 = FeedForward(embed_dim, ffn_dim, dropout)
        self.final_layer_norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, blocked: Tensor, conv_chunk: int) -> Tensor:
        """(B, T, D) to (B, T, D); ``blocked`` (B or 1, 1, T, T) is True where forbidden."""
        x = x + 0.5 * self.ffn1(x)
        x = x + self.self_attn_dropout(self.self_attn(self.self_attn_layer_norm(x), blocked))
        x = x + self.conv_module(x, conv_chunk)
        return self._finish(x)

    def init_state(self, batch_size: int) -> ConformerLayerState:
        empty = self.final_layer_norm.weight.new_zeros(
            batch_size, 0, self.final_layer_norm.weight.numel()
        )
        return ConformerLayerState(
            attention=self.self_attn.init_state(batch_size),
            conv=self.conv_module.depthwise_conv.init_state(batch_size),
            open_attention=empty,
            open_convolution=empty,
        )

    def step(
        self,
        final: Tensor,
        tail: Tensor,
        state: ConformerLayerState,
        attention_chunk: int,
        conv_chunk: int,
    ) -> tuple[Tensor, Tensor, ConformerLayerState]:
        """Process new final frames (B, F, D), then provisional ones (B, P, D).

        Returns:
            New final outputs, provisional outputs (they replace those of the last step), state.
        """
        count = final.size(1)
        x = torch.cat([final, tail], dim=1)
        x = x + 0.5 * self.ffn1(x)
        opened = torch.cat([state.open_attention, x], dim=1)  # from frame `attended` on
        if opened.size(1) == 0:
            return final, self._waiting_outputs(state, conv_chunk), state
        normed = self.self_attn_layer_norm(opened)
        old = state.open_attention.size(1)
        total = state.attended + opened.size(1)
        total_final = total - tail.size(1)
        blocked = chunk_blocked(state.attended, total, attention_chunk, x.device)
        attended, attention = self.self_attn.step(
            normed,
            normed[:, old : old + count],
            normed[:, old + count :],
            blocked,
            state.attention,
        )
        through = opened + self.self_attn_dropout(attended)
        done = total_final // attention_chunk * attention_chunk
        ready = done - state.attended
        mixed = self.conv_module.before(through)
        conv_final, conv_tail, conv = self.conv_module.depthwise_conv.step(
            mixed[:, :, :ready], mixed[:, :, ready:], state.conv, conv_chunk
        )
        convolved = self.conv_module.after(torch.cat([conv_final, conv_tail], dim=2))
        waiting = torch.cat([state.open_convolution, through], dim=1)
        out = self._finish(waiting + convolved)
        emitted = conv_final.size(2)
        new_state = ConformerLayerState(
            attention=attention,
            conv=conv,
            open_attention=opened[:, ready : total_final - state.attended],
            open_convolution=waiting[:, emitted : state.open_convolution.size(1) + ready],
            attended=done,
        )
        return out[:, :emitted], out[:, emitted:], new_state

    def _waiting_outputs(self, state: ConformerLayerState, conv_chunk: int) -> Tensor:
        """Provisional outputs (B, n, D) of the frames that wait for the convolution, as if
        nothing followed them."""
        waiting = state.open_convolution
        if waiting.size(1) == 0:
            return waiting
        nothing = waiting[:, :0].transpose(1, 2)
        _, convolved, _ = self.conv_module.depthwise_conv.step(
            nothing, nothing, state.conv, conv_chunk
        )
        return self._finish(waiting + self.conv_module.after(convolved))

    def _finish(self, x: Tensor) -> Tensor:
        return self.final_layer_norm(x + 0.5 * self.ffn2(x))


def chunk_blocked(first: int, total: int, chunk: int, device: torch.device) -> Tensor:
    """Mask (1, 1, total - first, total) of queries from ``first`` on, True past their chunk."""
    query = torch.arange(first, total, device=device)
    key = torch.arange(total, device=device)
    return (key[None, :] >= ((query // chunk + 1) * chunk)[:, None])[None, None]
