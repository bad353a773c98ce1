"""English text in, as it comes; speech out.

A sentence ends at a line's end and behind ``. ! ?``. It is spoken in segments of a number of words,
or whole. A segment is never touched again, so speech depends on the text and the size of segments,
not on how the text arrived.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from echostream.models.decoders.pace import check_speed
from echostream.speaking import IncrementalSpeaker, Spoken, TextState
from echostream.voice.streaming_voice import WORD, StreamingVoice, VoiceState, ends_sentence


@dataclass(frozen=True)
class VoiceSpeakerState(TextState):
    """What speaking has to remember.

    Attributes:
        voice: of the sentence under way.
    """

    voice: VoiceState


class VoiceSpeaker(IncrementalSpeaker[VoiceSpeakerState]):
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

    def _split(self, run: str) -> list[str]:
        return [run] if run else []

    def _ends(self, run: str) -> bool:
        return ends_sentence(run)

    def _speak(self, ends: bool, state: VoiceSpeakerState) -> tuple[Spoken, VoiceSpeakerState]:
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
