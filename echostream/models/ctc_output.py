"""What the CTC heads emit: tokens, and at which encoder frames they stand.

Shapes: P provisional encoder frames, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from echostream.arrays import log_softmax
from echostream.text import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor


def end_scores(logits: Tensor) -> Tensor:
    """(..., V) logits of the ASR head to the (...) log probability of end-of-sentence."""
    return log_softmax(logits)[..., Vocabulary.eos]


@dataclass(frozen=True)
class CTCOutput:
    """What new features of one stream brought.

    Attributes:
        asr_tokens, st_tokens: newly emitted CTC tokens.
        asr_frames, st_frames: at which of the completed frames each was emitted.
        asr_tail, st_tail: tokens of encoder frames that will still change (chunk Conformer only);
            they replace the previous call's.
        tail: (1, P, D) those encoder frames, or None.
        frames: encoder frames completed by this call.
        asr_logits, st_logits: (S, V) of the heads at the completed frames; None where there are
            none.
    """

    asr_tokens: tuple[int, ...]
    st_tokens: tuple[int, ...]
    asr_tail: tuple[int, ...]
    st_tail: tuple[int, ...]
    tail: Tensor | None
    frames: int
    asr_frames: tuple[int, ...] = ()
    st_frames: tuple[int, ...] = ()
    asr_logits: Tensor | None = None
    st_logits: Tensor | None = None

    def cut(self, start: int, stop: int | None, sentence_end: int | None = None) -> CTCOutput:
        """What frames ``start`` to ``stop`` brought (None: to the end, with what is provisional),
        without the symbol ``sentence_end``."""
        end = self.frames if stop is None else stop
        parts = []
        for tokens, frames in (
            (self.asr_tokens, self.asr_frames),
            (self.st_tokens, self.st_frames),
        ):
            kept = [
                (token, frame - start)
                for token, frame in zip(tokens, frames, strict=True)
                if start <= frame < end and token != sentence_end
            ]
            parts.append((tuple(t for t, _ in kept), tuple(f for _, f in kept)))
        (asr, asr_frames), (st, st_frames) = parts
        asr_tail, st_tail = (
            tuple(token for token in tail if token != sentence_end and stop is None)
            for tail in (self.asr_tail, self.st_tail)
        )
        return CTCOutput(
            asr,
            st,
            asr_tail,
            st_tail,
            self.tail if stop is None else None,
            end - start,
            asr_frames,
            st_frames,
            None if self.asr_logits is None else self.asr_logits[start:end],
            None if self.st_logits is None else self.st_logits[start:end],
        )
