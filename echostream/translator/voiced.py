"""When a voice speaks what was written: words as they are finished, some at a time.

A voice cannot say half a word, and it gives out the last of a phrase with the next one. So words
wait until they are finished and there are some of them. What the voice holds back comes out where
otherwise a silence would cut it off: at a sentence's end, and where all that was said will have
been played before the next decision.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from echostream.models.decoders.ctc_decoder_policy import complete_words
from echostream.text import Vocabulary
from echostream.translator.backlog import waiting_ms
from echostream.translator.speech import (
    MOST_HELD,
    MS_PER_S,
    Speaker,
    SpeakerState,
    VoicedState,
    Written,
)
from echostream.translator.stages import Stages, Stopwatch
from echostream.voice.streaming_voice import WORD, ends_sentence

if TYPE_CHECKING:
    from echostream.models.echostream_model import EchoStreamState


class VoicedSpeaker(Speaker):
    """Speaks what a stream writes by a voice.

    Args:
        stages: with a voice.
        vocabulary: of the target text.
        settings: of :class:`Speaker`.
    """

    def __init__(self, stages: Stages, vocabulary: Vocabulary, **settings: Any) -> None:
        super().__init__(stages, vocabulary.starts_word, **settings)
        if stages.voice is None:
            raise ValueError("a voiced speaker needs stages with a voice")
        self.vocabulary, self.voice = vocabulary, stages.voice

    def init_state(self) -> SpeakerState:
        return SpeakerState(voiced=VoicedState(self.voice.init_state()))

    def _say(
        self, written: Written, watch: Stopwatch, model: EchoStreamState, state: SpeakerState
    ) -> Generator[Any, Any, tuple[list[int], np.ndarray | None, EchoStreamState, SpeakerState]]:
        words, ahead, state = yield from self._words(written, watch, model, state)
        units: list[int] = []
        waves: list[np.ndarray] = []
        for word in words:
            state = _heard(word, state)
            if ends_sentence(word) and _voiced(state).begun:
                new, wave, state = yield from self._phrase(True, (), waves, written, watch, state)
                units += new
                waves.append(wave)
        voiced = _voiced(state)
        if voiced.begun and (written.ends or len(voiced.waiting) >= self.speech.voice_words):
            new, wave, state = yield from self._phrase(
                written.ends, ahead, waves, written, watch, state
            )
            units += new
            waves.append(wave)
        elif voiced.voice.holds and self._falls_silent(0.0, waves, written, state):
            wave, voice = yield self.stages.sound([], voiced.voice, True, watch)
            state = replace(state, voiced=replace(voiced, voice=voice))
            waves.append(wave)
        if written.ends:
            state = replace(state, voiced=VoicedState(_voiced(state).voice))
        return units, np.concatenate(waves) if waves else None, model, state

    def _words(
        self, written: Written, watch: Stopwatch, model: EchoStreamState, state: SpeakerState
    ) -> Generator[Any, Any, tuple[list[str], list[str], SpeakerState]]:
        """Words that are finished now, words that may follow them, and the state that keeps the
        rest."""
        new = () if written.hypothesis is None else written.hypothesis.tokens
        tokens, guessed = (*state.tokens, *new), ()
        keep = len(tokens)
        if tokens and not written.ends:
            keep = complete_words(tokens, self.starts_word)
            ahead = self.speech.voice_ahead
            if ahead or self.speech.whole_words:
                # What would the text decoder write next? It also tells whether a word is finished.
                more = yield self.stages.translate(
                    model.mt, max(ahead, 1), False, written.tail, watch
                )
                guessed = more.tokens
                if not guessed or self.starts_word(guessed[0]):
                    keep = len(tokens)
            if len(tokens) - keep > MOST_HELD:
                keep = len(tokens)
        follow = (*tokens[keep:], *guessed) if self.speech.voice_ahead else ()
        follow = follow[: complete_words(follow, self.starts_word)]
        return (
            self.vocabulary.decode(tokens[:keep]).split(),
            self.vocabulary.decode(follow).split(),
            replace(state, tokens=tokens[keep:]),
        )

    def _phrase(
        self,
        ends: bool,
        ahead: Sequence[str],
        before: Sequence[np.ndarray],
        written: Written,
        watch: Stopwatch,
        state: SpeakerState,
    ) -> Generator[Any, Any, tuple[list[int], np.ndarray, SpeakerState]]:
        """Say the words that wait.

        Args:
            ends: the sentence ends with them.
            ahead: words that may follow.
            before: what was said by the same decision.

        Returns:
            Units, (S,) samples, and the new state.
        """
        voiced = _voiced(state)
        with watch("units"):
            phrase = self.voice.phrase(voiced.waiting, voiced.voice, ends=ends, ahead=ahead)
        prosody = yield self.stages.pronounce(phrase, watch)
        speed = self._speed(lambda: sum(prosody.frames) * self.voice.unit_ms, written, state)
        units, voice = self.voice.lay_out(phrase, prosody, speed, voiced.voice)
        silent = self._falls_silent(len(units) * self.voice.unit_ms, before, written, state)
        wave, voice = yield self.stages.sound(units, voice, ends or silent, watch)
        voiced = VoicedState(voice) if ends else VoicedState(voice, (), True)
        return units, wave, replace(state, voiced=voiced)

    def _has_durations(self) -> bool:
        return True

    def _falls_silent(
        self, new_ms: float, before: Sequence[np.ndarray], written: Written, state: SpeakerState
    ) -> bool:
        """Whether all speech will have been played before the next decision.

        Args:
            new_ms: length of what is being said now.
            before: what was said by the same decision.
        """
        playing = waiting_ms(state.backlog, written.source_ms)
        said_ms = MS_PER_S * sum(map(len, before)) / self.sample_rate + new_ms
        held_ms = self._held_ms(state) + said_ms
        if not playing and held_ms < self.speech.min_piece_ms:
            return False  # it is not begun with
        return playing + held_ms - self.voice.held_ms < self.chunk_ms


def _voiced(state: SpeakerState) -> VoicedState:
    """What the voice remembers; :meth:`VoicedSpeaker.init_state` begins it."""
    assert state.voiced is not None
    return state.voiced


def _heard(word: str, state: SpeakerState) -> SpeakerState:
    """The state with one word more that waits."""
    voiced = _voiced(state)
    begun = voiced.begun or bool(WORD.search(word))
    return replace(state, voiced=replace(voiced, waiting=(*voiced.waiting, word), begun=begun))
