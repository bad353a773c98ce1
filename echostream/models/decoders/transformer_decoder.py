"""Autoregressive text decoder over a growing encoder output.

Arithmetic and state-dict names follow StreamSpeech's first-pass decoder (fairseq's pre-norm
Transformer decoder with tied embeddings and sinusoidal positions). Streaming rule: position t,
which predicts token t, attends to the source that had been read when token t was written, and is
never recomputed. Training reproduces exactly that with ``visible_source``.

Shapes: B batch, T target positions, S source frames, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.config import MTDecoderConfig
from echostream.models.cache_limits import TRIM_SLACK
from echostream.models.decoders.hypothesis import Hypothesis, Stands
from echostream.models.decoders.mt_state import MTState, repeating, row_of, selected
from echostream.models.kv_cache import KVCache, causal_mask
from echostream.models.module_list import module_list
from echostream.models.transformer_layer import (
    TransformerLayer,
    hide_padding,
    init_cache,
    read_source,
    run_layers,
    sinusoid,
    visible_mask,
)
from echostream.streaming import PerRow, from_host, join_rows, per_row, rows_apart, take_rows


class TransformerMTDecoder(nn.Module):
    """Machine-translation decoder.

    Args:
        config: sizes.
        source_dim: encoder width.
        vocab_size: V with special symbols, of the translation. Subwords of transcripts have ids
            from V on.
        pad, eos: ids of padding and end-of-sentence; the latter also starts a sentence, unless the
            configuration names a prompt.
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
        self.min_tokens = 1  # of a sentence, before which it never ends: fairseq's min_len
        dim = config.embed_dim
        self.vocab_size = vocab_size
        rows = vocab_size + config.transcript_vocab_size
        self.embed_tokens = nn.Embedding(rows, dim, padding_idx=pad)
        nn.init.normal_(self.embed_tokens.weight, std=dim**-0.5)
        nn.init.zeros_(self.embed_tokens.weight[pad])
        self.layers = module_list(
            TransformerLayer(
                dim,
                config.attention_heads,
                config.ffn_dim,
                config.dropout,
                source_dim=source_dim,
                activation=config.activation,
            )
            for _ in range(config.layers)
        )
        self.embed_positions = None
        if config.learned_positions:
            self.embed_positions = nn.Embedding(config.learned_positions, dim)
            nn.init.normal_(self.embed_positions.weight, std=dim**-0.5)
        self.prompt = config.prompt or (eos,)
        if max(self.prompt) >= vocab_size:
            raise ValueError(
                f"mt: the prompt {list(self.prompt)} names tokens behind the vocabulary of "
                f"{vocab_size}"
            )
        self.transcript_prompt = tuple(vocab_size + token for token in config.transcript_prompt)
        self.layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        self._project: Callable[[Tensor], Tensor] | None = None

    @property
    def output(self) -> nn.Linear:
        """The projection that is tied to the embeddings."""
        rows, width = self.embed_tokens.weight.shape
        tied = nn.Linear(width, rows, bias=False, device="meta")
        tied.weight = self.embed_tokens.weight
        return tied

    def project_with(self, project: Callable[[Tensor], Tensor] | None) -> None:
        """Compute :attr:`output` in another way; None: as a plain product."""
        self._project = project

    def init_state(self, batch_size: int = 1, *, transcribes: bool = False) -> MTState:
        """Before the first token of a sentence.

        Args:
            transcribes: the rows write transcripts.

        Raises:
            ValueError: the decoder writes none.
        """
        return MTState(
            init_cache(self.layers, "self_attn", batch_size),
            init_cache(self.layers, "encoder_attn", batch_size),
            PerRow.of(self._prompt(transcribes)[-1], batch_size),
            PerRow.of((), batch_size),
            PerRow.of(transcribes, batch_size),
        )

    def _prompt(self, transcribes: bool) -> tuple[int, ...]:
        if transcribes and not self.transcript_prompt:
            raise ValueError("this text decoder writes no transcripts: it has no prompt for them")
        return self.transcript_prompt if transcribes else self.prompt

    def read(
        self, encoder_out: Tensor, state: MTState, *, lengths: Sequence[int] | None = None
    ) -> MTState:
        """Append (B, S, D_source) new encoder frames to what cross-attention sees; ``lengths`` of
        them are valid in each row (None: all). A prompt is read with a row's first frames."""
        window = self.config.source_context_frames
        sources = read_source(self.layers, encoder_out, state.sources, window, lengths)
        state = replace(state, sources=sources)
        waiting = [
            bool(frames) and not position
            for frames, position in zip(sources.lengths, state.cache.lengths, strict=True)
        ]
        if len(self.prompt) == 1 or not any(waiting):
            return state
        if all(waiting):
            return self._begin(state)
        rows = zip(rows_apart(state, len(waiting)), waiting, strict=True)
        return join_rows([self._begin(row) if waits else row for row, waits in rows])

    def _begin(self, state: MTState) -> MTState:
        """Read the prompt but for its last token, which the first position reads."""
        prompts = [self._prompt(transcribes)[:-1] for transcribes in state.transcribes]
        tokens = torch.tensor(prompts, device=self.embed_tokens.weight.device)
        return self._step(tokens, state, None)[1]

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, D) decoder states to (B, T, V), and the subwords of transcripts behind them."""
        if self._project is not None:
            return self._project(hidden)
        return F.linear(hidden, self.embed_tokens.weight)

    def _of_task(self, logits: Tensor, transcribes: Sequence[bool]) -> Tensor:
        """(B, T, V) logits without the subwords of the other task in each row."""
        if not self.transcript_prompt:
            return logits
        token = torch.arange(logits.size(-1), device=logits.device)
        other = token >= self.vocab_size
        if not any(transcribes):
            return logits.masked_fill(other, -torch.inf)
        rows = from_host(transcribes, logits.device)[:, None, None]
        hidden = torch.where(rows, ~other & (token != self.eos), other)
        return logits.masked_fill(hidden, -torch.inf)

    def _embed(self, tokens: Tensor, offsets: Sequence[int]) -> Tensor:
        """(B, T) tokens behind ``offsets`` positions of each row to (B, T, D)."""
        valid = tokens.ne(self.pad)
        # fairseq counts positions from pad + 1 and gives padding a zero vector.
        index = valid.cumsum(dim=1) + self.pad
        if any(offset != offsets[0] for offset in offsets):
            index = index + torch.tensor(offsets, device=tokens.device)[:, None]
        else:
            index = index + offsets[0]
        x = self.embed_tokens(tokens)
        if self.config.scale_embeddings:
            x = math.sqrt(self.config.embed_dim) * x
        if self.embed_positions is None:
            positions = sinusoid(index, self.config.embed_dim, dtype=x.dtype)
        else:
            index = index - self.pad - 1
            positions = self.embed_positions(index.clamp(0, self.config.learned_positions - 1))
        return self.dropout(x + positions * valid[..., None])

    def step(
        self, tokens: Tensor, state: MTState, *, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, MTState]:
        """Process new target positions against all source read so far.

        Args:
            tokens: (B, T) inputs of the new positions (the previous tokens).
            state: every row must hold at least one source frame.
            lengths: valid positions of each row; None: all T.

        Returns:
            (B, T, D) decoder states and the new state; ``last_tokens`` are the caller's to set.
        """
        return self._step(tokens, state, lengths)

    def step_attending(
        self,
        tokens: Tensor,
        state: MTState,
        layer: int,
        *,
        lengths: Sequence[int] | None = None,
    ) -> tuple[Tensor, MTState, Tensor]:
        """:meth:`step`, which also says where it looked.

        Args:
            layer: whose cross-attention, from 0; -1: the alignment heads, or all layers averaged
                where none are named.

        Returns:
            As :meth:`step`, and (B, T, K) weights, heads averaged, over the slots of the sources'
            span; each row's own are those of :meth:`KVCache.newest_slots`.
        """
        mask = state.sources.newest(self.config.source_context_frames)
        aligning: dict[int, list[int]] = {}
        if layer == -1:
            for index, head in self.config.alignment_heads:
                aligning.setdefault(index, []).append(head)
        found, counts = [], []

        def looking(index: int, query: Tensor) -> None:
            if index in aligning or (not aligning and layer in (-1, index)):
                key, _ = state.sources.layer(index)
                heads = aligning.get(index)
                counts.append(1 if heads is None else len(heads))
                weights = self.layers[index].encoder_attn.weights(query, key, mask, heads)
                found.append(counts[-1] * weights)

        hidden, state = self._step(tokens, state, lengths, looking)
        return hidden, state, torch.stack(found).sum(dim=0) / sum(counts)

    def _step(
        self,
        tokens: Tensor,
        state: MTState,
        lengths: Sequence[int] | None,
        looking: Callable[[int, Tensor], None] | None = None,
    ) -> tuple[Tensor, MTState]:
        if not min(state.sources.lengths):
            raise ValueError("the MT decoder needs at least one source frame before it can step")
        x, cache = run_layers(
            self.layers,
            self._embed(tokens, state.cache.lengths),
            state.cache,
            self.config.context_tokens,
            lengths=lengths,
            sources=state.sources,
            source_window=self.config.source_context_frames,
            looking=looking,
        )
        return self.layer_norm(x), replace(state, cache=cache)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Tensor,
        encoder_padding_mask: Tensor | None = None,
        visible_source: Tensor | None = None,
        transcribes: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Teacher-forced decoding.

        Args:
            prev_output_tokens: (B, T), padded with ``pad``; the first, which starts a sentence,
                stands for the prompt where there is one.
            encoder_out: (S, B, D_source).
            encoder_padding_mask: (B, S), True at padding.
            visible_source: (B, T) how many source frames had been read when each position's
                token was written; None: all of them.
            transcribes: all rows are transcripts.

        Returns:
            (B, T, V) logits, minus infinity at subwords of the other task, and (T, B, D) decoder
            states.
        """
        source = encoder_out.transpose(0, 1)
        ahead = len(self.prompt) - 1
        if self.config.prompt:
            start = self._prompt(transcribes)
            prompt = from_host(start, source.device).expand(len(source), -1)
            prev_output_tokens = torch.cat([prompt, prev_output_tokens[:, 1:]], dim=1)
            if visible_source is not None and visible_source.size(1) > 1:
                first = visible_source[:, :1].expand(-1, ahead)
                visible_source = torch.cat([first, visible_source], dim=1)
        if visible_source is None and encoder_padding_mask is not None:
            # A window counts back from each row's own end.
            visible_source = (~encoder_padding_mask).sum(dim=1, keepdim=True)
        source_mask = hide_padding(
            visible_mask(
                visible_source,
                source.size(1),
                self.config.source_context_frames,
                source.device,
            ),
            encoder_padding_mask,
        )
        rows, length = prev_output_tokens.shape
        padding = prev_output_tokens.eq(self.pad)
        mask = hide_padding(
            causal_mask(length, length, self.config.context_tokens, padding.device), padding
        )
        x = self._embed(prev_output_tokens, [0] * rows)
        for layer in self.layers:
            x = layer(x, mask, layer.encoder_attn.project(source), source_mask)
        hidden = self.layer_norm(x[:, ahead:])
        logits = self._of_task(self.logits(hidden), [transcribes] * rows)
        return logits, hidden.transpose(0, 1)

    def _log_probs(
        self, hidden: Tensor, first: Sequence[int], transcribes: Sequence[bool]
    ) -> Tensor:
        """(B, T, V) log-probabilities after (B, T, D) states, of which each row's first stands at
        this position; never padding, and no end of a sentence that is too short."""
        logits = self._of_task(self.logits(hidden), transcribes)
        log_probs = logits.float().log_softmax(dim=-1)
        log_probs[..., self.pad] = -torch.inf
        if self.config.prompt:
            log_probs[..., [*self.prompt, *self.transcript_prompt]] = -torch.inf
        least = self.min_tokens + len(self.prompt) - 1
        for row, position in enumerate(first):
            if position < least:
                log_probs[row, : least - position, self.eos] = -torch.inf
        return log_probs

    def _unrepeated(self, log_probs: Tensor, written: Sequence[int], transcribes: bool) -> None:
        """Take out of (V,) log-probabilities, in place, what would go round in circles behind the
        tokens of the sentence."""
        size = self.config.no_repeat_ngram
        if transcribes and self.config.transcript_no_repeat_ngram is not None:
            size = self.config.transcript_no_repeat_ngram
        if size:
            log_probs[repeating(written, size)] = -torch.inf

    def decode(
        self, state: MTState, *, max_new_tokens: int, final: bool, beam: int = 1
    ) -> Hypothesis:
        """:meth:`decode_rows` for a state of one row."""
        (hypothesis,) = self.decode_rows(state, [max_new_tokens], final, beam=beam)
        return hypothesis

    def decode_rows(
        self,
        state: MTState,
        limits: Sequence[int],
        final: bool | Sequence[bool],
        *,
        beam: int = 1,
        stands: Sequence[Stands | None] | None = None,
        attention_layer: int | None = None,
        guesses: Sequence[Sequence[int]] | None = None,
        least: Sequence[int] | None = None,
    ) -> list[Hypothesis]:
        """Write up to ``limits`` tokens in each row.

        Decoding stops at end-of-sentence. While the source goes on (``final`` false) the position
        that predicted end-of-sentence is forgotten, so that it is asked again with more source. So
        is one that predicted a token which may not stand.

        Args:
            limits: most new tokens of each row, at least 1.
            final: whether the source has ended, for all rows or each.
            beam: beam width; hypotheses of a row compete by length-normalised score, and rows are
                searched one after the other.
            stands: asked for each new token of a row whether it may stand; decoding stops before
                the first that may not. With a beam the best hypothesis is cut there.
            attention_layer: whose cross-attention ``stands`` sees, as :meth:`step_attending` takes
                it; None: it sees none, and none is computed.
            guesses: what each row may turn out to write. They change nothing but the time: those
                that are right are all computed in one step (Leviathan et al., "Fast Inference from
                Transformers via Speculative Decoding", ICML 2023). A beam does not use them.
            least: new tokens of each row before which it does not end; a beam may end.
        """
        if min(limits) < 1:
            raise ValueError(f"every row needs a limit of at least 1 new token, got {limits}")
        rows = len(limits)
        ends = per_row(final, rows)
        judges = [None] * rows if stands is None else stands
        if not any(judges):
            attention_layer = None
        if beam > 1:
            states = [take_rows(state, [row]) for row in range(rows)] if rows > 1 else [state]
            found = [
                self._decode_beam(own, limit, end, beam)
                for own, limit, end in zip(states, limits, ends, strict=True)
            ]
            return [
                one if judge is None else self._judged(one, own, judge, attention_layer)
                for one, own, judge in zip(found, states, judges, strict=True)
            ]
        # No more than can be taken back.
        shortened = [own[:TRIM_SLACK] for own in guesses or [()] * rows]
        fewest = [0] * rows if least is None else least
        return self._decode_greedy(state, limits, ends, judges, attention_layer, shortened, fewest)

    def _judged(
        self, hypothesis: Hypothesis, before: MTState, stands: Stands, layer: int | None
    ) -> Hypothesis:
        """What of one row's hypothesis may stand; ``before`` is the state that it began with."""
        tokens = hypothesis.tokens
        seen: list[list[float] | None] = [None] * len(tokens)
        if tokens and layer is not None:
            device = self.embed_tokens.weight.device
            inputs = torch.tensor([[before.last_token, *tokens[:-1]]], device=device)
            _, _, weights = self.step_attending(inputs, before, layer)
            (own,) = before.sources.newest_slots(self.config.source_context_frames)
            seen = weights[0, :, own].tolist()
        for count, attention in enumerate(seen):
            if not stands(tokens[: count + 1], attention):
                kept = hypothesis.keep(count, before)
                return replace(kept, finished=False, refused=tokens[count])
        return hypothesis

    def _decode_greedy(
        self,
        state: MTState,
        limits: Sequence[int],
        ends: Sequence[bool],
        judges: Sequence[Stands | None],
        layer: int | None,
        guesses: Sequence[Sequence[int]],
        least: Sequence[int],
    ) -> list[Hypothesis]:
        rows, device = len(limits), self.embed_tokens.weight.device
        tokens: list[list[int]] = [[] for _ in range(rows)]
        scores, finished = [0.0] * rows, [False] * rows
        refused: list[int | None] = [None] * rows
        states: list[list[Tensor]] = [[] for _ in range(rows)]  # (1, N, D)
        endings: list[list[float]] = [[] for _ in range(rows)]
        writing = [True] * rows
        guessed = [list(own[:limit]) for own, limit in zip(guesses, limits, strict=True)]
        while any(writing):
            # What follows a guess is computed along with it, and forgotten if the guess was wrong.
            inputs = [
                [last, *(own if goes else ())]
                for last, own, goes in zip(state.last_tokens, guessed, writing, strict=True)
            ]
            # Rows that have ended are computed along and kept as they are.
            counts = [len(own) * goes for own, goes in zip(inputs, writing, strict=True)]
            size = max(map(len, inputs))
            padded = [own + [own[-1]] * (size - len(own)) for own in inputs]
            new = torch.tensor(padded, device=device)
            first = state.cache.lengths
            weights: list[list[list[float]]] | None = None
            if layer is None:
                hidden, state = self.step(new, state, lengths=counts)
            else:
                hidden, state, seen = self.step_attending(new, state, layer, lengths=counts)
                slots = state.sources.newest_slots(self.config.source_context_frames)
                weights = [w[:, own].tolist() for w, own in zip(seen, slots, strict=True)]
            log_probs = self._log_probs(hidden, first, state.transcribes)
            for row, count in enumerate(counts):
                so_far = (*state.written[row], *tokens[row], *guessed[row])
                log_probs[row, : max(least[row] - len(tokens[row]), 0), self.eos] = -torch.inf
                for position in range(count):
                    end = len(so_far) - len(guessed[row]) + position
                    self._unrepeated(log_probs[row, position], so_far[:end], state.transcribes[row])
            values, best = (table.tolist() for table in log_probs.max(dim=-1))
            ended = log_probs[..., self.eos].tolist()
            last, kept = list(state.last_tokens), list(first)
            for row in range(rows):
                position = 0
                while writing[row] and position < counts[row]:
                    token, value = best[row][position], values[row][position]
                    if token == self.eos:
                        writing[row], finished[row] = False, ends[row]
                        scores[row] += value if ends[row] else 0.0
                        position += ends[row]
                        break
                    judge = judges[row]
                    if judge is not None:
                        attention = None if weights is None else weights[row][position]
                        if not judge((*tokens[row], token), attention):
                            writing[row], refused[row] = False, token
                            break
                    right = guessed[row][position : position + 1] == [token]
                    tokens[row].append(token)
                    endings[row].append(ended[row][position])
                    last[row] = token
                    scores[row] += value
                    writing[row] = len(tokens[row]) < limits[row]
                    position += 1
                    if not right:
                        break
                states[row].append(hidden[row : row + 1, :position])
                kept[row] += position
                guessed[row] = []
            # The position of an end-of-sentence or another token that was not accepted is
            # forgotten.
            cache = state.cache.truncate(kept)
            state = replace(state, cache=cache, last_tokens=PerRow(last))
        written = PerRow((*a, *b) for a, b in zip(state.written, tokens, strict=True))
        state = replace(state, written=written)
        return [
            Hypothesis(
                tuple(tokens[row]),
                torch.cat(states[row], dim=1),
                state if rows == 1 else row_of(state, row),
                finished[row],
                scores[row],
                refused[row],
                tuple(endings[row]),
            )
            for row in range(rows)
        ]

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
            so_far = [(*state.written[0], *h.tokens) for h in live]
            log_probs = self._log_probs(hidden, [start + step] * len(live), batch.transcribes)[:, 0]
            for own, written, task in zip(log_probs, so_far, batch.transcribes, strict=True):
                self._unrepeated(own, written, task)
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
            batch = selected(following, parents, state.sources)
            last = torch.tensor([[h.tokens[-1]] for h in chosen], device=device)
            live = chosen
            if len(done) >= beam:
                break
        for row, hypothesis in enumerate(live):
            own = selected(batch, [row], state.sources)
            own = replace(
                own,
                last_tokens=PerRow(hypothesis.tokens[-1:]),
                written=PerRow(((*state.written[0], *hypothesis.tokens),)),
            )
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
        sources: KVCache,
    ) -> Hypothesis:
        """A hypothesis that predicted end-of-sentence; see :meth:`decode` for ``final``."""
        so_far = PerRow(((*before.written[0], *parent.tokens),))
        if final:
            own = replace(selected(after, [row], sources), written=so_far)
            return Hypothesis(parent.tokens, grown, own, True, score)
        own = replace(selected(before, [row], sources), written=so_far)
        if parent.tokens:
            own = replace(own, last_tokens=PerRow(parent.tokens[-1:]))
        return Hypothesis(parent.tokens, parent.hidden, own, False, score)
