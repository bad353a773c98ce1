"""Ends of sentences that the recognition head missed, noticed by the text decoder.

Where two sentences touch, the head may emit no end-of-sentence symbol between them. The text
decoder, though, translates the first one and then wants to end; it would do so for ever, and what
is said next would be lost. So once it has wanted to end, and has written nothing while enough
source tokens came, the sentence is ended in retrospect: at the frame around that moment where the
head found its symbol likeliest, which is where training cuts too. What came behind it begins
the next sentence; the encoder's stream goes on unbroken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from echostream.arrays import concatenate
from echostream.models.ctc_output import CTCOutput, end_scores

if TYPE_CHECKING:
    from torch import Tensor

# Encoder frames before the decoder's wish to end that are remembered: the wish comes with the
# decision behind the sentence's last words, or with later ones.
REACH = 32


@dataclass(frozen=True)
class TextEndState:
    """The source of the sentence under way, from at most :data:`REACH` frames before the wish.

    Attributes:
        frames: (1, S, D) encoder frames; None before the first.
        scores: log probability of end-of-sentence, for each of them.
        asr, st: at which of them tokens were emitted, ascending.
        wished: how many of them had come when the decoder wanted to end and had nothing more
            to write; None where it has not.
    """

    frames: Tensor | None = None
    scores: tuple[float, ...] = ()
    asr: tuple[int, ...] = ()
    st: tuple[int, ...] = ()
    wished: int | None = None


class TextEnds:
    """Finds them.

    Args:
        tokens: source tokens behind the boundary that end the sentence; 0: none do.
        min_score: least log probability of end-of-sentence at the boundary.
    """

    def __init__(self, tokens: int, min_score: float) -> None:
        self.tokens, self.min_score = tokens, min_score

    def observe(self, emitted: CTCOutput, frames: Tensor, state: TextEndState) -> TextEndState:
        """Remember (1, S, D) new frames and what was emitted in them."""
        if not self.tokens:
            return state
        known = len(state.scores)
        new = () if emitted.asr_logits is None else tuple(end_scores(emitted.asr_logits).tolist())
        joined = frames if state.frames is None else concatenate([state.frames, frames], axis=1)
        state = TextEndState(
            joined,
            state.scores + new,
            state.asr + tuple(known + frame for frame in emitted.asr_frames),
            state.st + tuple(known + frame for frame in emitted.st_frames),
            state.wished,
        )
        now = len(state.scores) if state.wished is None else state.wished
        return _forget(max(now - REACH, 0), state)

    def decided(self, wishes: bool, state: TextEndState) -> TextEndState:
        """Note whether the decoder, asked for more, wanted to end without writing anything."""
        if not self.tokens:
            return state
        if not wishes:
            return replace(state, wished=None)
        return state if state.wished is not None else replace(state, wished=len(state.scores))

    def find(self, state: TextEndState) -> TextEndState | None:
        """The source of the next sentence, if the one under way has ended without a sign."""
        if state.wished is None:
            return None
        behind = _last_with(self.tokens, state.asr)
        if behind is None:
            return None
        # The boundary leaves enough tokens behind it.
        candidates = state.scores[: behind + 1]
        score = max(candidates)
        if score < self.min_score:
            return None
        start = len(candidates) - candidates[::-1].index(score)
        return replace(_forget(start, state), wished=None)


def _last_with(tokens: int, positions: Sequence[int]) -> int | None:
    """The last frame behind which so many tokens were emitted."""
    return positions[-tokens] - 1 if len(positions) >= tokens and positions[-tokens] else None


def _forget(frames: int, state: TextEndState) -> TextEndState:
    """Without the first so many frames."""
    if not frames or state.frames is None:
        return state
    return TextEndState(
        state.frames[:, frames:],
        state.scores[frames:],
        tuple(at - frames for at in state.asr if at >= frames),
        tuple(at - frames for at in state.st if at >= frames),
        None if state.wished is None else state.wished - frames,
    )
