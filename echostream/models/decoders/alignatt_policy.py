"""AlignAtt: the text decoder's own attention says when to wait.

Papi, Turchi, Negri: "AlignAtt: Using Attention-based Audio-Translation Alignments as a Guide for
Simultaneous Speech Translation" (Interspeech 2023). With every chunk the decoder goes on from what
is written. A subword is aligned to the source frame that it attends to most. If that is one of the
newest ``attention_frames`` frames, the subword rests on source that may not be complete, and
decoding stops before it until more has been read. Fewer frames write sooner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echostream.config import PolicyConfig
from echostream.models.decoders.ctc_decoder_policy import (
    Counts,
    Draft,
    Evidence,
    PolicyAction,
    PolicyState,
)


def aligned_frame(attention: Sequence[float]) -> int:
    """The frame that gets most weight; of equal ones the newest, the cautious choice."""
    return max(range(len(attention)), key=lambda frame: (attention[frame], frame))


@dataclass(frozen=True)
class AlignAttPolicy:
    """The rule above. It has no use for lags and strides: how far writing stays behind is said by
    ``attention_frames`` alone."""

    evidence: frozenset[Evidence] = frozenset({"attention"})
    counts_translation: bool = True

    def decide(
        self, counts: Counts, state: PolicyState, config: PolicyConfig, whole_word: bool
    ) -> tuple[PolicyAction, PolicyState]:
        if counts.source_finished:
            return PolicyAction(config.max_len, until_eos=True), state
        # The decoder is asked at every chunk, whether there is anything to write or not.
        expected = counts.st > counts.written
        return PolicyAction(config.max_len, drop_last_word=whole_word, expected=expected), state

    def stands(self, draft: Draft, config: PolicyConfig) -> bool:
        if draft.attention is None:
            raise ValueError("alignatt judges by attention, and the draft brings none")
        newest = len(draft.attention) - config.attention_frames
        return aligned_frame(draft.attention) < newest
