"""English text in, as it comes; speech out.

A sentence ends at a line's end and behind ``. ! ?``. It is spoken in pieces of a number of words,
or whole. A piece is never touched again, so speech depends on the text and the size of the pieces,
not on how the text arrived.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from echostream.models.decoders.codevocos_vocoder import CodeVocosStreams, StreamingCodeVocos
from echostream.models.decoders.pace import check_speed
from echostream.speaking import RUN_END, SENTENCE_END, Spoken
from echostream.voice.folder import Voice
from echostream.voice.normalize import ABBREVIATION, spoken_text
from echostream.voice.phone_units import END, START

LONGEST_START_FRAMES = 4  # the voice was recorded with a third of a second before each sentence
PHRASE_MARKS = ",;:.!?\u2014\u2026"
SENTENCE_MARKS = ".!?\u2026"
_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class VoiceState:
    """What speaking has to remember.

    Attributes:
        vocoder: of the sentence under way.
        said: its last symbols.
        owed: by how many frames what was said is too short, from rounding.
        run: characters behind the last white space.
        waiting: complete words that are not spoken yet.
        begun: the sentence has words.
        sentence: its number.
        finished: the text has ended.
    """

    vocoder: CodeVocosStreams
    said: tuple[int, ...] = ()
    owed: float = 0.0
    run: str = ""
    waiting: tuple[str, ...] = ()
    begun: bool = False
    sentence: int = 0
    finished: bool = False


class VoiceSpeaker:
    """Speaks any English text; any number of streams can share it.

    Args:
        voice: networks and inventory.
        words: how many to speak at a time; 0: whole sentences.
        speed: how much faster than the voice was recorded.
        phonemizer: text to phonemic text; by default espeak-ng.

    Raises:
        ValueError: numbers that make no sense.
    """

    def __init__(
        self,
        voice: Voice,
        *,
        words: int = 0,
        speed: float = 1.0,
        phonemizer: Callable[[str], str] | None = None,
    ) -> None:
        if words < 0:
            raise ValueError(f"words must not be negative, got {words}")
        check_speed(speed)
        if phonemizer is None:
            from echostream.voice.phonemes import Phonemizer

            phonemizer = Phonemizer()
        self.voice, self.words, self.speed, self.phonemizer = voice, words, speed, phonemizer
        self.output_rate = voice.vocoder.sample_rate
        self.front = StreamingCodeVocos(voice.vocoder, dur_prediction=False)

    def init_state(self) -> VoiceState:
        return VoiceState(self.front.init_state())

    def step(
        self, text: str, state: VoiceState, *, final: bool = False
    ) -> tuple[list[Spoken], VoiceState]:
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
        self, text: str, state: VoiceState, *, final: bool = False
    ) -> Iterator[tuple[Spoken | None, VoiceState]]:
        """:meth:`step`, one piece of speech at a time; always ends with a pair without one, whose
        state has taken in all of the text."""
        if state.finished:
            raise ValueError("this text has ended; start another with init_state()")
        for character in f"{text}\n" if final else text:
            if not RUN_END.match(character):
                state = replace(state, run=state.run + character)
                continue
            run, state = state.run, replace(state, run="")
            ends = character == "\n" or bool(
                SENTENCE_END.search(run) and not ABBREVIATION.fullmatch(run)
            )
            if run:
                begun = state.begun or bool(_WORD.search(run))
                state = replace(state, waiting=(*state.waiting, run), begun=begun)
            if not state.begun:
                continue
            if ends or (self.words and len(state.waiting) >= self.words):
                piece, state = self._speak(ends, state)
                yield piece, state
        yield None, replace(state, finished=final)

    def phonemes(self, text: str) -> str:
        """What of a text is said, in the symbols of the voice."""
        return self.voice.inventory.known(self.phonemizer(spoken_text(text)))

    def _speak(self, ends: bool, state: VoiceState) -> tuple[Spoken, VoiceState]:
        """Speak the words that wait; with ``ends`` also the sentence's end."""
        inventory, prosody = self.voice.inventory, self.voice.prosody
        said = self.phonemes(" ".join(state.waiting))
        glue = START if not state.said else " " if said and said[0] not in PHRASE_MARKS else ""
        if ends:
            last = said or inventory.symbols[state.said[-1]] if state.said or said else ""
            mark = "" if last.endswith(tuple(SENTENCE_MARKS)) else "."
            said = f"{said}{inventory.known(mark)}{END}"
        symbols = inventory.indices(glue + said) if said else []
        frames, pitch = prosody.predict(list(state.said), symbols)
        if symbols and glue == START:
            frames[0] = min(frames[0], LONGEST_START_FRAMES)
        whole, owed = _rounded([length / self.speed for length in frames], state.owed)
        units = [
            unit
            for unit, count in zip(inventory.units(symbols, pitch), whole, strict=True)
            for _ in range(count)
        ]
        waveform, _, vocoder = self.front.step(units, state.vocoder, final=ends)
        samples = waveform.float().cpu().numpy()
        words = tuple(word for word in state.waiting if _WORD.search(word))
        spoken = Spoken(words, tuple(units), samples, state.sentence, ends)
        if ends:
            following = VoiceState(vocoder, run=state.run, sentence=state.sentence + 1)
            return spoken, following
        kept = (*state.said, *symbols)
        kept = kept[max(len(kept) - prosody.config.context_symbols, 0) :]
        return spoken, replace(state, vocoder=vocoder, said=kept, owed=owed, waiting=())


def _rounded(frames: list[float], owed: float) -> tuple[list[int], float]:
    """Whole frames, at least one each, whose sum stays close to the sum of ``frames``."""
    whole = []
    for length in frames:
        count = max(int(length + owed + 0.5), 1)
        owed = min(max(length + owed - count, -1.0), 1.0)
        whole.append(count)
    return whole, owed
