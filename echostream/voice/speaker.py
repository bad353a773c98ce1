"""English text in, as it comes; speech out.

A sentence ends at a line's end and behind ``. ! ?``. It is spoken in pieces of a number of words,
or whole. A piece is never touched again, so speech depends on the text and the size of the pieces,
not on how the text arrived.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from echostream.models.decoders.pace import check_speed
from echostream.speaking import RUN_END, Spoken
from echostream.voice.streaming import WORD, StreamingVoice, VoiceState, ends_sentence


@dataclass(frozen=True)
class VoiceSpeakerState:
    """What speaking has to remember.

    Attributes:
        voice: of the sentence under way.
        run: characters behind the last white space.
        waiting: complete words that are not spoken yet.
        begun: the sentence has words.
        sentence: its number.
        finished: the text has ended.
    """

    voice: VoiceState
    run: str = ""
    waiting: tuple[str, ...] = ()
    begun: bool = False
    sentence: int = 0
    finished: bool = False


class VoiceSpeaker:
    """Speaks any English text; any number of streams can share it.

    Args:
        voice: what speaks.
        words: how many to speak at a time; 0: whole sentences.
        speed: how much faster than the voice was recorded.

    Raises:
        ValueError: numbers that make no sense.
    """

    def __init__(self, voice: StreamingVoice, *, words: int = 0, speed: float = 1.0) -> None:
        if words < 0:
            raise ValueError(f"words must not be negative, got {words}")
        check_speed(speed)
        self.voice, self.words, self.speed = voice, words, speed
        self.output_rate = voice.sample_rate

    def init_state(self) -> VoiceSpeakerState:
        return VoiceSpeakerState(self.voice.init_state())

    def step(
        self, text: str, state: VoiceSpeakerState, *, final: bool = False
    ) -> tuple[list[Spoken], VoiceSpeakerState]:
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

    def iterate(
        self, text: str, state: VoiceSpeakerState, *, final: bool = False
    ) -> Iterator[tuple[Spoken | None, VoiceSpeakerState]]:
        """:meth:`step`, one piece of speech at a time; always ends with a pair without one, whose
        state has taken in all of the text."""
        if state.finished:
            raise ValueError("this text has ended; start another with init_state()")
        for character in f"{text}\n" if final else text:
            if not RUN_END.match(character):
                state = replace(state, run=state.run + character)
                continue
            run, state = state.run, replace(state, run="")
            ends = character == "\n" or ends_sentence(run)
            if run:
                begun = state.begun or bool(WORD.search(run))
                state = replace(state, waiting=(*state.waiting, run), begun=begun)
            if not state.begun:
                continue
            if ends or (self.words and len(state.waiting) >= self.words):
                piece, state = self._speak(ends, state)
                yield piece, state
        yield None, replace(state, finished=final)

    def _speak(self, ends: bool, state: VoiceSpeakerState) -> tuple[Spoken, VoiceSpeakerState]:
        """Speak the words that wait; with ``ends`` also the sentence's end."""
        phrase = self.voice.phrase(state.waiting, state.voice, ends=ends)
        (prosody,) = self.voice.predict([phrase])
        units, voice = self.voice.lay_out(phrase, prosody, self.speed, state.voice)
        ((waveform, voice),) = self.voice.sound([units], [voice], [ends])
        words = tuple(word for word in state.waiting if WORD.search(word))
        samples = waveform.float().cpu().numpy()
        spoken = Spoken(words, tuple(units), samples, state.sentence, ends)
        if ends:
            sentence = state.sentence + 1
            return spoken, VoiceSpeakerState(voice, run=state.run, sentence=sentence)
        return spoken, replace(state, voice=voice, waiting=())
