"""Transcripts that the text decoder writes, where it does (as Whisper's does).

They have a state of their own, since their sentences end where the endpoint finder says so, while
those of the translation may end in retrospect too. Which subwords stand is decided by local
agreement: what two drafts in a row begin with (Liu et al., "Low-Latency Sequence-to-Sequence Speech
Recognition and Translation by Partial Hypothesis Selection", Interspeech 2020).

A decoder that has written all that was said so far goes on writing: what it guesses, or the
sentence once more. So it writes about as many subwords as the ASR head has heard. Those of both
vocabularies are alike long. And when most of that is written and the sentence is over, no further
word begins where the decoder half wanted to end: what it says once more begins so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from echostream.models.decoders.hypothesis import Hypothesis
from echostream.translator.judging import agreed
from echostream.translator.spans import Span
from echostream.translator.stages import Request, Stages, Stopwatch

if TYPE_CHECKING:
    from echostream.models.decoders.mt_state import MTState
    from echostream.models.echostream_model import EchoStreamModel, EchoStreamState

# Before so many times the ASR head's subwords are written, a sentence does not end, also where it
# might: people say more behind "I am sorry.".
LEAST_TIMES = 0.5
# Once so many times they are, this probability of an end is enough.
MOSTLY_TIMES, END_SHARE = 0.7, 1 / 15
# How many more subwords than the ASR head has heard are written, and that of a whole sentence.
AHEAD, MOST_TIMES, MOST_BESIDE = 2, 1.25, 4


@dataclass(frozen=True)
class TranscriptState:
    """The sentence under way.

    Attributes:
        heard: subwords of it that the ASR head has emitted.
        asked: how many those were when the text decoder was asked last.
        written: subwords.
        draft: what would have been written behind them.
        waiting: written, and not shown yet.
    """

    heard: int = 0
    asked: int = 0
    written: int = 0
    draft: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()


@dataclass(frozen=True)
class Heard:
    """That a span was read: whether the sentence ends with it, and what to ask now, if anything."""

    ends: bool
    request: Request | None


class TranscriptWriter:
    """Asks the text decoder for transcripts.

    Args:
        stages: of the pipeline.
        model: whose text decoder it is.
        first: its id of the first subword of transcripts.
        starts_word: of these, counted from there.
    """

    def __init__(
        self,
        stages: Stages,
        model: EchoStreamModel,
        first: int,
        starts_word: Callable[[int], bool],
    ) -> None:
        self.stages, self.model, self.first = stages, model, first
        self.starts_word = starts_word

    def read(
        self, span: Span, watch: Stopwatch, model: EchoStreamState, state: TranscriptState
    ) -> tuple[Heard, EchoStreamState, TranscriptState]:
        """Read a span.

        Returns:
            What is to be asked before :meth:`write`, and the new states.
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
        # Without anything new the same would be written.
        new = heard > state.asked or (span.ends and heard)
        if not new or most < 1 or not before.source_length:
            return Heard(span.ends, None), model, state
        least = min(int(LEAST_TIMES * heard) - state.written, most)
        request = self.stages.translate(
            before, most, span.ends, None, watch, guess=state.draft, least=least
        )
        return Heard(span.ends, request), model, replace(state, asked=heard)

    def write(
        self,
        heard: Heard,
        hypothesis: Hypothesis | None,
        model: EchoStreamState,
        state: TranscriptState,
    ) -> tuple[EchoStreamState, TranscriptState]:
        """Write what is sure of a span that was read; all of it where its sentence ends.

        Args:
            hypothesis: the answer.

        Returns:
            The new states; what was written waits in the second.
        """
        if hypothesis is not None:
            decoded = hypothesis.tokens
            if heard.ends:
                hypothesis = self._said_once(hypothesis, model.transcript, state)
            else:
                hypothesis = agreed(hypothesis, state.draft, model.transcript)
            new = hypothesis.tokens
            state = replace(
                state,
                written=state.written + len(new),
                draft=decoded[len(new) :],
                waiting=(*state.waiting, *(token - self.first for token in new)),
            )
            model = replace(model, transcript=hypothesis.state)
        if heard.ends:
            return self.model.next_transcript(model), TranscriptState(waiting=state.waiting)
        return model, state

    def _said_once(
        self, hypothesis: Hypothesis, before: MTState | None, state: TranscriptState
    ) -> Hypothesis:
        """Without what a decoder writes that could not end."""
        likely, mostly = math.log(END_SHARE), MOSTLY_TIMES * state.heard - state.written
        for index, (token, end) in enumerate(zip(hypothesis.tokens, hypothesis.ends, strict=False)):
            if index >= mostly and end >= likely and self.starts_word(token - self.first):
                return hypothesis.keep(index, before)
        return hypothesis

    def guessed(self, state: TranscriptState) -> tuple[int, ...]:
        """The draft, as the transcripts' vocabulary counts."""
        return tuple(token - self.first for token in state.draft)
