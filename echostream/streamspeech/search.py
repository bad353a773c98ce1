"""The searches of StreamSpeech's agents, tie for tie.

Letters: S encoder frames, D width, V vocabulary, T rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from echostream.models.decoders.ctc_collapse import NEVER
from echostream.models.decoders.mt_state import MTState
from echostream.models.decoders.transformer_decoder import TransformerMTDecoder
from echostream.models.transformer_layer import run_layers
from echostream.text import Vocabulary


def best_labels(logits: Tensor) -> list[int]:
    """(T, V) logits to the best label of each row, never padding or unknown."""
    # Compared as log-probabilities in float32, so that even ties fall as in the original.
    scores = logits.float().log_softmax(dim=-1)
    scores[:, list(NEVER)] = -torch.inf
    return scores.argmax(dim=-1).tolist()


def greedy(
    predict: Callable[[list[int]], Tensor], prefix: tuple[int, ...], limit: int
) -> tuple[int, ...]:
    """fairseq's beam search with a beam of one, from a prefix, to at most ``limit`` tokens.

    Returns:
        The prefix and what follows it, without end-of-sentence. A prefix beyond the limit comes
        back as it is.
    """
    eos, tokens = Vocabulary.eos, [Vocabulary.eos, *prefix]
    total: Tensor | float = 0.0
    for step in range(len(prefix), limit + 1):
        scores = predict(tokens)
        scores = scores.masked_fill(scores.isnan(), -torch.inf)
        scores[Vocabulary.pad] = -torch.inf
        if step >= limit:
            break
        if step == 0:
            scores[eos] = -torch.inf
        # Scores accumulate, and their rounding decides between near-equal candidates.
        best, token = (scores + total).topk(2)
        if int(token[0]) == eos:
            break
        total = best[0]
        tokens.append(int(token[0]))
    return tuple(tokens[1:])


class Predictor:
    """Log-probabilities after a prefix, which is decoded as a whole each time.

    Args:
        decoder: text decoder.
        encoder_out: (S, 1, D) of all source so far.
    """

    def __init__(self, decoder: TransformerMTDecoder, encoder_out: Tensor) -> None:
        self.decoder, self.encoder_out = decoder, encoder_out

    def __call__(self, tokens: list[int]) -> Tensor:
        inputs = torch.tensor([tokens], device=self.encoder_out.device)
        logits, _ = self.decoder(inputs, self.encoder_out)
        return logits[0, -1].float().log_softmax(dim=-1)


class CachedPredictor:
    """The speech-to-text agent's search, which does keep caches, with the original's accounting.

    Each call runs the last position again and appends it once more, and source frames stay as
    they were when first seen, even if their encoding was provisional.
    """

    def __init__(
        self, decoder: TransformerMTDecoder, encoder_out: Tensor, state: MTState | None
    ) -> None:
        self.decoder = decoder
        self.state = decoder.init_state(1) if state is None else state
        source = encoder_out.transpose(0, 1)
        self.state = decoder.read(source[:, self.state.source_length :], self.state)

    def __call__(self, tokens: list[int]) -> Tensor:
        decoder, state = self.decoder, self.state
        inputs = torch.tensor([tokens[-1:]], device=decoder.embed_tokens.weight.device)
        x = decoder._embed(inputs, [len(tokens) - 1])
        x, cache = run_layers(decoder.layers, x, state.cache, None, sources=state.sources)
        self.state = replace(state, cache=cache)
        return decoder.logits(decoder.layer_norm(x))[0, -1].float().log_softmax(dim=-1)
