"""What a text decoder has written, whatever it computes with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

# Whether the last of a row's new tokens may stand, given the weights of the source frames that the
# row sees, oldest first (None unless they were asked for).
Stands = Callable[[tuple[int, ...], Sequence[float] | None], bool]


@dataclass(frozen=True)
class Hypothesis:
    """Tokens that a decoding call added to one row.

    Attributes:
        tokens: new tokens, without end-of-sentence.
        hidden: (1, N, D) decoder states of the positions that predicted them, followed by the one
            that predicted end-of-sentence if ``finished``.
        state: the decoder state behind them, of this row alone
            (:class:`~echostream.models.decoders.mt_state.MTState`, or what takes its
            place in another runtime).
        finished: end-of-sentence was predicted (and accepted).
        score: sum of log-probabilities.
        refused: the token that decoding stopped before, since it may not stand; None: it stopped
            for another reason.
        ends: log-probability of end-of-sentence in place of each token; empty behind a beam.
    """

    tokens: tuple[int, ...]
    hidden: Any
    state: Any
    finished: bool
    score: float
    refused: int | None = None
    ends: tuple[float, ...] = ()

    def keep(self, count: int, before: Any) -> Hypothesis:
        """The first ``count`` tokens alone, as if no more had been written; ``before`` is the state
        that decoding began with. The score stays that of all."""
        last = self.tokens[count - 1] if count else before.last_token
        return replace(
            self,
            tokens=self.tokens[:count],
            ends=self.ends[:count],
            hidden=self.hidden[:, :count],
            state=self.state.truncate(before.length + count, last),
        )
