"""Text in, word by word; speech out before the text has ended.

Text is cut into sentences and words as its characters come: a run of characters is complete once
white space follows, a sentence ends at a line's end and behind ``. ! ?``. Every ``words`` complete
words, and what is left at a sentence's end, become decoder states, units and waveform at once, and
are never touched again. So speech depends on the text alone, not on how it arrived.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch

from echostream.checkpoint import System
from echostream.models.decoders.mt_state import MTState
from echostream.models.echostream_model import EchoStreamState
from echostream.models.encoder import with_tail
from echostream.models.text_states import TextStates
from echostream.text import SENTENCE_END, SPECIALS, Vocabulary

logger = logging.getLogger(__name__)

SILENCE_S = 1.0
RUN_END = re.compile(r"\s")
SPEAKABLE = re.compile(r"\w")
WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def is_lower_case(vocabulary: Vocabulary) -> bool:
    """Whether a vocabulary has no capital letters."""
    pieces = "".join(vocabulary.pieces[len(SPECIALS) :])
    return pieces == pieces.lower()


def words_in(text: str, lower_case: bool) -> list[str]:
    """The words of a written text, without punctuation."""
    return WORD.findall(text.lower() if lower_case else text)


@dataclass(frozen=True)
class Spoken:
    """What was spoken at once.

    Attributes:
        words: given words; none where only the end of a sentence was spoken.
        units: speech units.
        waveform: (T,) float32 new samples.
        sentence: counted from 0.
        sentence_end: nothing more of that sentence will come.
    """

    words: tuple[str, ...]
    units: tuple[int, ...]
    waveform: np.ndarray
    sentence: int
    sentence_end: bool


@dataclass(frozen=True, kw_only=True)
class TextState:
    """What is known of a text that comes character by character.

    Attributes:
        run: characters behind the last white space.
        waiting: complete words that are not spoken yet.
        begun: the sentence has words.
        sentence: its number.
        finished: the text has ended.
    """

    run: str = ""
    waiting: tuple[str, ...] = ()
    begun: bool = False
    sentence: int = 0
    finished: bool = False


TextStateT = TypeVar("TextStateT", bound=TextState)


class IncrementalSpeaker(ABC, Generic[TextStateT]):
    """Cuts a text into sentences and words and speaks them as they are complete.

    Attributes:
        words: how many to speak at a time; 0: whole sentences.
    """

    words: int

    @abstractmethod
    def _split(self, run: str) -> list[str]:
        """What waits to be spoken of a run of characters between white space."""

    @abstractmethod
    def _ends(self, run: str) -> bool:
        """Whether a sentence ends behind a run."""

    @abstractmethod
    def _speak(self, ends: bool, state: TextStateT) -> tuple[Spoken, TextStateT]:
        """Speak the words that wait; with ``ends`` also the sentence's end."""

    def step(
        self, text: str, state: TextStateT, *, final: bool = False
    ) -> tuple[list[Spoken], TextStateT]:
        """Take in text, in pieces of any length.

        Args:
            final: the text ends with it.

        Returns:
            What was spoken, and the new state.

        Raises:
            ValueError: the text has ended before.
        """
        spoken = []
        for piece, following in self.iterate(text, state, final=final):
            state = following
            if piece is not None:
                spoken.append(piece)
        return spoken, state

    @torch.no_grad()
    def iterate(
        self, text: str, state: TextStateT, *, final: bool = False
    ) -> Iterator[tuple[Spoken | None, TextStateT]]:
        """:meth:`step`, one piece of speech at a time; always ends with a pair without one, whose
        state has taken in all of the text."""
        if state.finished:
            raise ValueError("this text has ended; start another with init_state()")
        for character in f"{text}\n" if final else text:
            if not RUN_END.match(character):
                state = replace(state, run=state.run + character)
                continue
            run, state = state.run, replace(state, run="")
            ends = character == "\n" or self._ends(run)
            parts = self._split(run)
            for index, part in enumerate(parts):
                begun = state.begun or bool(SPEAKABLE.search(part))
                state = replace(state, waiting=(*state.waiting, part), begun=begun)
                last = ends and index == len(parts) - 1
                if begun and (last or self.words and len(state.waiting) >= self.words):
                    piece, state = self._speak(last, state)
                    yield piece, state
            if ends and state.begun:  # the last word had been complete before
                piece, state = self._speak(True, state)
                yield piece, state
        yield None, replace(state, finished=final)


@dataclass(frozen=True)
class SpeakingState(TextState):
    """What speaking has to remember.

    Attributes:
        model, text: of the sentence under way.
    """

    model: EchoStreamState
    text: MTState


class TextSpeaker(IncrementalSpeaker[SpeakingState]):
    """Speaks target text with a system's text-to-unit model and vocoder; any number of streams can
    share it.

    Args:
        system: model and vocabularies.
        words: how many to speak at a time.

    Raises:
        ValueError: the system has no vocoder, or no SentencePiece model for its target text.
    """

    def __init__(self, system: System, *, words: int = 2) -> None:
        if words < 1:
            raise ValueError(f"words must be at least 1, got {words}")
        vocoder = system.config.vocoder
        if system.model.vocoder is None or vocoder is None:
            raise ValueError("speaking needs a model with a vocoder")
        if system.target_vocabulary.processor is None:
            raise ValueError("speaking needs the SentencePiece model of the target text")
        self.system, self.words = system, words
        self.output_rate = vocoder.sampling_rate
        self.dur_prediction = vocoder.dur_predictor_params is not None
        self.lower_case = is_lower_case(system.target_vocabulary)
        self.states = TextStates(system.model, self._hear_silence())

    @torch.no_grad()
    def _hear_silence(self) -> torch.Tensor:
        """(1, S, D) encoder frames of a second without sound."""
        frontend, model = self.system.frontend(), self.system.model
        rate = self.system.config.frontend.sample_rate
        silence = np.zeros(int(SILENCE_S * rate), dtype=np.float32)
        features, _ = frontend.step(silence, rate, frontend.init_state(), final=True)
        features = features.to(next(model.parameters()))
        encoded, _ = model.encode(features, model.init_listening(), final=True)
        return with_tail(encoded.frames, encoded.tail)

    def init_state(self) -> SpeakingState:
        return SpeakingState(self.system.model.init_state(), self.states.init_state())

    def _split(self, run: str) -> list[str]:
        return words_in(run, self.lower_case)

    def _ends(self, run: str) -> bool:
        return bool(SENTENCE_END.search(run))

    def _speak(self, ends: bool, state: SpeakingState) -> tuple[Spoken, SpeakingState]:
        model = self.system.model
        tokens = [token for word in state.waiting for token in self._spell(word)]
        hidden, text = self.states.step(tokens, state.text, ends=ends)
        units: list[int] = []
        inner, waveform = state.model, np.zeros(0, dtype=np.float32)
        if hidden.size(1):
            assert inner.speech is not None  # a vocoder comes with a unit decoder
            (units,), speech = model.speak([hidden], inner.speech)
            if units:
                (samples,), speech = model.vocode(
                    [units], speech, [1.0], dur_prediction=self.dur_prediction
                )
                waveform = samples.float().cpu().numpy()
            inner = replace(inner, speech=speech)
        spoken = Spoken(state.waiting, tuple(units), waveform, state.sentence, ends)
        state = replace(state, model=inner, text=text, waiting=())
        if ends:
            state = replace(
                state,
                model=model.next_sentence(inner),
                text=self.states.init_state(),
                begun=False,
                sentence=state.sentence + 1,
            )
        return spoken, state

    def _spell(self, word: str) -> list[int]:
        """Subwords of a word, without those that the vocabulary does not have."""
        vocabulary = self.system.target_vocabulary
        tokens = vocabulary.encode(word.replace("\u2019", "'"))
        known = [token for token in tokens if not vocabulary.is_special(token)]
        if len(known) < len(tokens):
            logger.warning("the vocabulary cannot spell all of %r", word)
        return known
