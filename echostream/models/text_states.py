"""Text decoder states for text that is given, not translated.

The unit decoder reads the states in which the text decoder *predicted* each subword. What a state
says of its subword comes from the source: a decoder that is merely fed the text knows what was
written before, not what is to be written now. A given text has no source, so both are made from the
model's own weights:

1. a source that says the text, one encoder frame per subword: a frame of silence, moved until the
   translation CTC head reads the subword in it (heads with layers of their own are left out, and
   the source is silence);
2. the states of the decoder that is fed the text over this source, each moved by what is missing
   until the decoder predicts its subword.

Shapes: N subwords, D width, V vocabulary, S frames.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from echostream.models.decoders.ctc_decoder import CTCDecoder
from echostream.models.decoders.mt_state import MTState
from echostream.models.echostream_model import EchoStreamModel
from echostream.streaming import PerRow

CERTAINTY = 0.9  # with which a head shall name the subword
STEP = 0.03  # of a vector's length, per move
MAX_MOVES = 300


def moved(vectors: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N, D) vectors, each moved along the gradient of its label's log-probability under a linear
    classifier (V, D) until that reaches :data:`CERTAINTY`, or for :data:`MAX_MOVES` moves."""
    step = STEP * vectors.norm(dim=-1, keepdim=True)
    for _ in range(MAX_MOVES):
        log_probs = F.linear(vectors, weight, bias).log_softmax(dim=-1)
        missing = log_probs.gather(-1, labels[:, None]).exp() < CERTAINTY
        if not missing.any():
            break
        gradient = weight[labels] - log_probs.exp() @ weight
        direction = gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-9)
        vectors = vectors + missing * step * direction
    return vectors


class TextStates:
    """Makes decoder states of given subwords.

    Args:
        model: whose states they are.
        silence: (1, S, D_source) encoder frames of silence.
    """

    def __init__(self, model: EchoStreamModel, silence: Tensor) -> None:
        self.model, self.silence = model, silence.mean(dim=1, keepdim=True)

    def init_state(self) -> MTState:
        """Before the first subword of a sentence: a frame of silence has been read."""
        decoder = self.model.target_unigram_decoder
        return decoder.read(self.silence, decoder.init_state())

    def source(self, tokens: Tensor) -> Tensor:
        """(N,) subwords to (1, N, D_source) encoder frames that say them, or to none."""
        head = self.model.ctc_target_unigram_decoder
        if not isinstance(head, CTCDecoder):
            return self.silence[:, :0]
        base = self.silence[0].expand(len(tokens), -1)
        return moved(base, tokens, head.proj.weight, head.proj.bias)[None]

    @torch.no_grad()
    def step(
        self, tokens: list[int], state: MTState, *, ends: bool = False
    ) -> tuple[Tensor, MTState]:
        """New subwords of a sentence to their states.

        Args:
            ends: the sentence ends behind them.

        Returns:
            (1, N, D) states, one more with ``ends``, and the decoder's state behind them.
        """
        decoder = self.model.target_unigram_decoder
        goals = [*tokens, decoder.eos] if ends else tokens
        if not goals:
            return self.silence.new_empty(1, 0, decoder.config.embed_dim), state
        device = self.silence.device
        if tokens:
            state = decoder.read(self.source(torch.tensor(tokens, device=device)), state)
        inputs = torch.tensor([[state.last_token, *goals[:-1]]], device=device)
        hidden, state = decoder.step(inputs, state)
        labels = torch.tensor(goals, device=device)
        hidden = moved(hidden[0], labels, decoder.embed_tokens.weight, None)[None]
        return hidden, replace(state, last_tokens=PerRow(goals[-1:]))
