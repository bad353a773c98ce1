"""Transcripts that the text decoder writes, where it does (as Whisper's does).

They have a state of their own, since their sentences end where the endpoint finder says so, while
those of the translation may end in retrospect too. Which subwords stand is decided by local
agreement: what two drafts in a row begin with (Liu et al., "Low-Latency Sequence-to-Sequence Speech
Recognition and Translation by Partial Hypothesis Selection", Interspeech 2020).

A decoder that has written all that was said so far goes on writing: what it guesses, or the
sentence once more. So it writes about as many subwords as the ASR head has heard. Those of both
vocabularies are alike long.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from echostream.translator.judging import agreed
from echostream.translator.spans import Span
from echostream.translator.stages import Stages, Stopwatch

if TYPE_CHECKING:
    from echostream.models.echostream_model import EchoStreamModel, EchoStreamState

# How many more subwords than the ASR head has heard are written, and that of a whole sentence.
AHEAD, MOST_TIMES, MOST_BESIDE = 2, 1.25, 4


@dataclass(frozen=True)
class TranscriptState:
    """The sentence under way.

    Attributes:
        heard: subwords of it that the ASR head has emitted.
        written: subwords.
        draft: what would have been written behind them.
        waiting: written, and not shown yet.
    """

    heard: int = 0
    written: int = 0
    draft: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()


class TranscriptWriter:
    """Asks the text decoder for transcripts.

    Args:
        stages: of the pipeline.
        model: whose text decoder it is.
        first: its id of the first subword of transcripts.
    """

    def __init__(self, stages: Stages, model: EchoStreamModel, first: int) -> None:
        self.stages, self.model, self.first = stages, model, first

    def step(
        self, span: Span, watch: Stopwatch, model: EchoStreamState, state: TranscriptState
    ) -> Generator[Any, Any, tuple[EchoStreamState, TranscriptState]]:
        """Read a span, and write what is sure of it; all of it where its sentence ends.

        Yields:
            Requests.

        Returns:
            The new states; what was written waits in the second.
        """
        emitted = span.emitted
        with watch("mt"):
            model = self.model.hear(span.frames, model)
        before = model.transcript
        assert before is not None  # the model transcribes
        state = replace(state, heard=state.heard + len(emitted.asr_tokens))
        heard = state.heard + len(emitted.asr_tail)
        most = int(MOST_TIMES * heard) + MOST_BESIDE if span.ends else heard + AHEAD
        most -= state.written
        if heard and most > 0 and before.source_length:
            hypothesis = yield self.stages.translate(
                before, most, span.ends, None, watch, guess=state.draft
            )
            decoded = hypothesis.tokens
            if not span.ends:
                hypothesis = agreed(hypothesis, state.draft, before)
            new = hypothesis.tokens
            state = replace(
                state,
                written=state.written + len(new),
                draft=decoded[len(new) :],
                waiting=(*state.waiting, *(token - self.first for token in new)),
            )
            model = replace(model, transcript=hypothesis.state)
        if span.ends:
            return self.model.next_transcript(model), TranscriptState(waiting=state.waiting)
        return model, state

    def guessed(self, state: TranscriptState) -> tuple[int, ...]:
        """The draft, as the transcripts' vocabulary counts."""
        return tuple(token - self.first for token in state.draft)
