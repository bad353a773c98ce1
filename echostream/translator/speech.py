"""When what was written is spoken: words whole, and segments that pause as little as they can.

Text goes on as the policy allows; what is spoken of it may wait a little, so that the silence
before the next segment does not fall into a word.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from echostream.arrays import concatenate
from echostream.config import BacklogConfig, SpeechConfig
from echostream.models.decoders.ctc_decoder_policy import complete_words
from echostream.models.decoders.hypothesis import Hypothesis
from echostream.translator.backlog import BacklogState, after_write, speech_speed, waiting_ms
from echostream.translator.stages import Stages, Stopwatch

if TYPE_CHECKING:
    from torch import Tensor

    from echostream.models.echostream_model import EchoStreamState
    from echostream.voice.streaming_voice import VoiceState

MOST_HELD = 16  # subwords; a word of more is spoken in parts
MS_PER_S = 1000


@dataclass(frozen=True)
class VoicedState:
    """What a voice remembers of a stream.

    Attributes:
        voice: of the sentence under way.
        waiting: finished words that are not said yet.
        begun: the sentence has words.
    """

    voice: VoiceState
    waiting: tuple[str, ...] = ()
    begun: bool = False


@dataclass(frozen=True)
class SpeakerState:
    """What is written and not yet spoken, and what is spoken and not yet played.

    Attributes:
        states: (1, H, D) text states of a word that may go on; None: nothing waits.
        tokens: its H subwords.
        samples: (S,) speech of a segment that is too short to begin with; None: nothing waits.
        backlog: speech that waits to be played.
        voiced: what a voice remembers; None where none speaks.
    """

    states: Tensor | None = None
    tokens: tuple[int, ...] = ()
    samples: np.ndarray | None = None
    backlog: BacklogState = BacklogState()
    voiced: VoicedState | None = None


@dataclass(frozen=True)
class Written:
    """What a decision has written, and what it depended on.

    Attributes:
        hypothesis: new text; None if the policy said READ.
        tail: (1, P, D) provisional encoder frames, or None.
        ends: the sentence ends with it.
        source_ms: source read.
    """

    hypothesis: Hypothesis | None
    tail: Tensor | None
    ends: bool
    source_ms: float


class Speaker:
    """Speaks what a stream writes.

    Args:
        stages: of a model that has what speaks.
        starts_word: whether a subword begins a word.
        speech, backlog: settings.
        chunk_ms: source between decisions.
        sample_rate: of the speech, in Hz.
    """

    def __init__(
        self,
        stages: Stages,
        starts_word: Callable[[int], bool],
        *,
        speech: SpeechConfig,
        backlog: BacklogConfig,
        chunk_ms: int,
        sample_rate: int,
    ) -> None:
        self.stages = stages
        self.starts_word = starts_word
        self.speech, self.backlog = speech, backlog
        self.chunk_ms = chunk_ms
        self.sample_rate = sample_rate

    def init_state(self) -> SpeakerState:
        """Nothing was written yet."""
        return SpeakerState()

    def step(
        self, written: Written, watch: Stopwatch, model: EchoStreamState, state: SpeakerState
    ) -> Generator[Any, Any, tuple[list[int], np.ndarray, EchoStreamState, SpeakerState]]:
        """Speak what may be spoken: new units, (S,) new samples and the new states."""
        units, waveform, model, state = yield from self._say(written, watch, model, state)
        if waveform is not None:
            if state.samples is not None:
                waveform = np.concatenate([state.samples, waveform])
            state = replace(state, samples=waveform)
        if state.samples is None or self._too_short(written, state):
            return units, np.zeros(0, dtype=np.float32), model, state
        waveform = state.samples
        queue = after_write(state.backlog, len(waveform), self.sample_rate, written.source_ms)
        return units, waveform, model, replace(state, samples=None, backlog=queue)

    def _say(
        self, written: Written, watch: Stopwatch, model: EchoStreamState, state: SpeakerState
    ) -> Generator[Any, Any, tuple[list[int], np.ndarray | None, EchoStreamState, SpeakerState]]:
        """New units, (S,) their samples (None: there was nothing to say) and the new states."""
        hypothesis = written.hypothesis
        hidden = None if hypothesis is None else hypothesis.hidden
        if self.speech.whole_words:
            hidden, state = yield from self._whole_words(written, watch, model, state)
        if hidden is None or not hidden.shape[1]:
            return [], None, model, state
        assert model.speech is not None  # else a voice speaks
        units, speech = yield self.stages.speak(hidden, model.speech, watch)
        waveform = np.zeros(0, dtype=np.float32)
        if units:
            speed = self._speed(lambda: self._predicted_ms(units), written, state)
            waveform, speech = yield self.stages.vocode(units, speech, speed, watch)
        return units, waveform, replace(model, speech=speech), state

    def _too_short(self, written: Written, state: SpeakerState) -> bool:
        """Whether a segment waits for more: while speech is played, waiting would make a gap."""
        playing = waiting_ms(state.backlog, written.source_ms)
        return not (written.ends or playing) and self._held_ms(state) < self.speech.min_piece_ms

    def _held_ms(self, state: SpeakerState) -> float:
        return 0.0 if state.samples is None else MS_PER_S * len(state.samples) / self.sample_rate

    def _whole_words(
        self, written: Written, watch: Stopwatch, model: EchoStreamState, state: SpeakerState
    ) -> Generator[Any, Any, tuple[Tensor | None, SpeakerState]]:
        """The text states of words that are finished, and the state that keeps the rest."""
        hypothesis = written.hypothesis
        new = () if hypothesis is None else hypothesis.tokens
        parts = [] if state.states is None else [state.states]
        parts += [] if hypothesis is None else [hypothesis.hidden]
        if not parts:
            return None, state
        states, tokens = concatenate(parts, axis=1), (*state.tokens, *new)
        keep = states.shape[1]
        if not written.ends and tokens:
            # Does the text decoder, asked for one subword more, begin another word?
            more = yield self.stages.translate(model.mt, 1, False, written.tail, watch)
            if more.tokens and not self.starts_word(more.tokens[0]):
                keep = complete_words(tokens, self.starts_word)
                if len(tokens) - keep > MOST_HELD:
                    keep = states.shape[1]
        held = states[:, keep:] if keep < states.shape[1] else None
        return states[:, :keep], replace(state, states=held, tokens=tokens[keep:])

    def _speed(
        self, predicted_ms: Callable[[], float], written: Written, state: SpeakerState
    ) -> float:
        """Faster while too much waits, slower where a silence is sure to follow.

        Args:
            predicted_ms: how long what is to be said lasts at its own speed.
        """
        waiting = waiting_ms(state.backlog, written.source_ms) + self._held_ms(state)
        speed = speech_speed(waiting, self.backlog)
        room = self.speech.fill_chunks * self.chunk_ms - waiting
        if speed > 1 or written.ends or room <= 0 or not self._has_durations():
            return speed
        return min(max(predicted_ms() / room, self.speech.min_speed), 1.0)

    def _has_durations(self) -> bool:
        """Whether it is known how long what is to be said lasts."""
        return self.stages.dur_prediction

    def _predicted_ms(self, units: Sequence[int]) -> float:
        vocoder = self.stages.model.vocoder
        assert vocoder is not None  # as above
        frames = sum(vocoder.durations([units])[0])
        return MS_PER_S * frames * vocoder.unit_samples / self.sample_rate
