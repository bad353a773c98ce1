"""Autoregressive text decoder over a growing encoder output.

Arithmetic and state-dict names follow StreamSpeech's first-pass decoder (fairseq's pre-norm
Transformer decoder with tied embeddings and sinusoidal positions). Streaming rule: position t,
which predicts token t, attends to the source that had been read when token t was written, and is
never recomputed. Training reproduces exactly that with ``visible_source``.

Shapes: B batch, T target positions, S source frames, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.config import MTDecoderConfig
from echostream.models.transformer_layer import (
    KVCache,
    TransformerLayer,
    causal_mask,
    hide_padding,
    sinusoid,
    visible_mask,
)


@dataclass(frozen=True)
class MTState:
    """Streaming state of :class:`TransformerMTDecoder`.

    Attributes:
        caches: self-attention keys and values per layer; their length is the number of positions
            processed.
        sources: cross-attention keys and values per layer of all source frames read.
        last_token: the token that the next position reads.
    """

    caches: tuple[KVCache, ...]
    sources: tuple[KVCache, ...]
    last_token: int

    @property
    def length(self) -> int:
        """Target positions processed."""
        return self.caches[0].length

    @property
    def source_length(self) -> int:
        """Source frames read."""
        return self.sources[0].length

    def truncate(self, length: int, last_token: int) -> MTState:
        """Forget target positions from ``length`` on; the source stays."""
        caches = tuple(cache.truncate(length) for cache in self.caches)
        return replace(self, caches=caches, last_token=last_token)

    def select(self, rows: Tensor, sources: tuple[KVCache, ...]) -> MTState:
        """Pick batch rows of the target side; all rows share the one-row ``sources``."""
        return replace(
            self,
            caches=tuple(cache.select(rows) for cache in self.caches),
            sources=tuple(cache.expand(len(rows)) for cache in sources),
        )

    def to(self, device: torch.device | str) -> MTState:
        return replace(
            self,
            caches=tuple(cache.to(device) for cache in self.caches),
            sources=tuple(cache.to(device) for cache in self.sources),
        )


@dataclass(frozen=True)
class Hypothesis:
    """Tokens that a decoding call added.

    Attributes:
        tokens: new tokens, without end-of-sentence.
        hidden: (1, N, D) decoder states of the positions that predicted them, followed by the one
            that predicted end-of-sentence if ``finished``.
        state: the decoder state behind them.
        finished: end-of-sentence was predicted (and accepted).
        score: sum of log-probabilities.
    """

    tokens: tuple[int, ...]
    hidden: Tensor
    state: MTState
    finished: bool
    score: float


class TransformerMTDecoder(nn.Module):
    """Machine-translation decoder.

    Args:
        config: sizes.
        source_dim: encoder width.
        vocab_size: V with special symbols.
        pad, eos: ids of padding and end-of-sentence; the latter also starts a sentence.
    """

    def __init__(
        self,
        config: MTDecoderConfig,
        source_dim: int,
        vocab_size: int,
        *,
        pad: int = 1,
        eos: int = 2,
    ) -> None:
        super().__init__()
        self.config, self.pad, self.eos = config, pad, eos
        dim = config.embed_dim
        self.embed_tokens = nn.Embedding(vocab_size, dim, padding_idx=pad)
        nn.init.normal_(self.embed_tokens.weight, std=dim**-0.5)
        nn.init.zeros_(self.embed_tokens.weight[pad])
        self.layers = nn.ModuleList(
            TransformerLayer(
                dim, config.attention_heads, config.ffn_dim, config.dropout, source_dim=source_dim
            )
            for _ in range(config.layers)
        )
        self.layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def init_state(self, batch_size: int = 1) -> MTState:
        return MTState(
            tuple(layer.self_attn.init_cache(batch_size) for layer in self.layers),
            tuple(layer.encoder_attn.init_cache(batch_size) for layer in self.layers),
            self.eos,
        )

    def read(self, encoder_out: Tensor, state: MTState) -> MTState:
        """Append (B, S, D_source) new encoder frames to what cross-attention sees."""
        if encoder_out.size(1) == 0:
            return state
        window = self.config.source_context_frames
        sources = tuple(
            source.append(*layer.encoder_attn.project(encoder_out)).trim(window)
            for layer, source in zip(self.layers, state.sources, strict=True)
        )
        return replace(state, sources=sources)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, D) decoder states to (B, T, V)."""
        return F.linear(hidden, self.embed_tokens.weight)

    def _embed(self, tokens: Tensor, offset: int) -> Tensor:
        valid = tokens.ne(self.pad)
        # fairseq counts positions from pad + 1 and gives padding a zero vector.
        index = (valid.cumsum(dim=1) + offset) + self.pad
        positions = sinusoid(index, self.config.embed_dim, dtype=self.embed_tokens.weight.dtype)
        x = math.sqrt(self.config.embed_dim) * self.embed_tokens(tokens)
        return self.dropout(x + positions * valid[..., None])

    def _run(
        self, tokens: Tensor, state: MTState, source_mask: Tensor | None
    ) -> tuple[Tensor, MTState]:
        x = self._embed(tokens, state.length)
        window = self.config.context_tokens
        keys = state.caches[0].stored + tokens.size(1)
        padding = tokens.eq(self.pad)
        # Padding occurs in training batches only, which start from an empty cache.
        mask = hide_padding(
            causal_mask(tokens.size(1), keys, window, tokens.device),
            padding if bool(padding.any()) else None,
        )
        caches = []
        for layer, cache, source in zip(self.layers, state.caches, state.sources, strict=True):
            x, cache = layer(x, cache, mask, (source.key, source.value), source_mask)
            caches.append(cache.trim(window))
        return self.layer_norm(x), replace(state, caches=tuple(caches))

    def step(self, tokens: Tensor, state: MTState) -> tuple[Tensor, MTState]:
        """Process new target positions against all source read so far.

        Args:
            tokens: (B, T) inputs of the new positions (the previous tokens).
            state: must hold at least one source frame.

        Returns:
            (B, T, D) decoder states and the new state; ``last_token`` is the caller's to set.
        """
        source = state.sources[0]
        if source.length == 0:
            raise ValueError("the MT decoder needs at least one source frame before it can step")
        window = self.config.source_context_frames
        mask = None
        if window is not None and source.stored > window:
            frame = torch.arange(source.stored, device=tokens.device)
            mask = (frame >= source.stored - window)[None, None, None, :]
        return self._run(tokens, state, mask)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Tensor,
        encoder_padding_mask: Tensor | None = None,
        visible_source: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Teacher-forced decoding.

        Args:
            prev_output_tokens: (B, T), padded with ``pad``.
            encoder_out: (S, B, D_source).
            encoder_padding_mask: (B, S), True at padding.
            visible_source: (B, T) how many source frames had been read when each position's
                token was written; None: all of them.

        Returns:
            (B, T, V) logits and (T, B, D) decoder states.
        """
        source = encoder_out.transpose(0, 1)
        fresh = self.init_state(source.size(0))
        sources = tuple(
            cache.append(*layer.encoder_attn.project(source))
            for layer, cache in zip(self.layers, fresh.sources, strict=True)
        )
        if visible_source is None and encoder_padding_mask is not None:
            # A window counts back from each row's own end.
            visible_source = (~encoder_padding_mask).sum(dim=1, keepdim=True)
        mask = hide_padding(
            visible_mask(
                visible_source,
                source.size(1),
                self.config.source_context_frames,
                source.device,
            ),
            encoder_padding_mask,
        )
        hidden, _ = self._run(prev_output_tokens, replace(fresh, sources=sources), mask)
        return self.logits(hidden), hidden.transpose(0, 1)

    def _log_probs(self, hidden: Tensor, position: int) -> Tensor:
        """(B, V) log-probabilities after the last of (B, T, D) states; never padding, and no
        empty sentence (fairseq's min_len 1)."""
        log_probs = self.logits(hidden[:, -1]).float().log_softmax(dim=-1)
        log_probs[:, self.pad] = -torch.inf
        if position == 0:
            log_probs[:, self.eos] = -torch.inf
        return log_probs

    def decode(
        self, state: MTState, *, max_new_tokens: int, final: bool, beam: int = 1
    ) -> Hypothesis:
        """Write up to ``max_new_tokens`` tokens for one stream (B = 1).

        Decoding stops at end-of-sentence. While the source goes on (``final`` false) the position
        that predicted end-of-sentence is forgotten, so that it is asked again with more source.

        Args:
            beam: beam width; hypotheses compete by length-normalised score.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if beam > 1:
            return self._decode_beam(state, max_new_tokens, final, beam)
        tokens: list[int] = []
        states: list[Tensor] = []
        score = 0.0
        device = self.embed_tokens.weight.device
        while len(tokens) < max_new_tokens:
            inputs = torch.tensor([[state.last_token]], device=device)
            hidden, following = self.step(inputs, state)
            best, token = self._log_probs(hidden, state.length).max(dim=-1)
            finished = int(token) == self.eos
            if finished and not final:
                break
            states.append(hidden)
            score += float(best)
            if finished:
                return Hypothesis(tuple(tokens), torch.cat(states, 1), following, True, score)
            tokens.append(int(token))
            state = replace(following, last_token=int(token))
        hidden = torch.cat(states, dim=1) if states else self._no_hidden()
        return Hypothesis(tuple(tokens), hidden, state, False, score)

    def _no_hidden(self) -> Tensor:
        weight = self.embed_tokens.weight
        return weight.new_empty(1, 0, self.config.embed_dim)

    def _decode_beam(
        self, state: MTState, max_new_tokens: int, final: bool, beam: int
    ) -> Hypothesis:
        device = self.embed_tokens.weight.device
        start = state.length
        live = [Hypothesis((), self._no_hidden(), state, False, 0.0)]
        last = torch.tensor([[state.last_token]], device=device)
        done: list[Hypothesis] = []
        batch = state
        for step in range(max_new_tokens):
            hidden, following = self.step(last, batch)
            log_probs = self._log_probs(hidden, start + step)
            scores = log_probs + log_probs.new_tensor([h.score for h in live])[:, None]
            width = min(2 * beam, scores.numel())
            values, flat = scores.flatten().topk(width)
            rows, tokens = flat // scores.size(1), flat % scores.size(1)
            chosen: list[Hypothesis] = []
            parents: list[int] = []
            for value, row, token in zip(
                values.tolist(), rows.tolist(), tokens.tolist(), strict=True
            ):
                parent = live[row]
                if value == -math.inf:
                    continue
                grown = torch.cat([parent.hidden, hidden[row : row + 1]], dim=1)
                if token == self.eos:
                    if len(chosen) < beam:
                        done.append(
                            self._ended(
                                parent, grown, batch, following, row, final, value, state.sources
                            )
                        )
                    continue
                if len(chosen) < beam:
                    chosen.append(Hypothesis((*parent.tokens, token), grown, state, False, value))
                    parents.append(row)
            order = torch.tensor(parents, device=device)
            batch = following.select(order, state.sources)
            last = torch.tensor([[h.tokens[-1]] for h in chosen], device=device)
            live = chosen
            if len(done) >= beam:
                break
        for row, hypothesis in enumerate(live):
            own = batch.select(torch.tensor([row], device=device), state.sources)
            own = replace(own, last_token=hypothesis.tokens[-1])
            live[row] = replace(hypothesis, state=own)
        # Unfinished hypotheses compete only when nothing finished or the source goes on.
        candidates = done if done and final else [*done, *live]
        return max(candidates, key=lambda h: h.score / max(len(h.tokens) + h.finished, 1))

    def _ended(
        self,
        parent: Hypothesis,
        grown: Tensor,
        before: MTState,
        after: MTState,
        row: int,
        final: bool,
        score: float,
        sources: tuple[KVCache, ...],
    ) -> Hypothesis:
        """A hypothesis that predicted end-of-sentence; see :meth:`decode` for ``final``."""
        index = torch.tensor([row], device=grown.device)
        if final:
            return Hypothesis(parent.tokens, grown, after.select(index, sources), True, score)
        own = before.select(index, sources)
        last_token = parent.tokens[-1] if parent.tokens else before.last_token
        own = replace(own, last_token=last_token)
        return Hypothesis(parent.tokens, parent.hidden, own, False, score)
