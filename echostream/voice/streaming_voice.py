"""Phrases to sound, phrase by phrase: what everything that speaks by a voice does alike.

A phrase is some words of a sentence. It is pronounced (text to symbols), then durations and pitch
are predicted, then its units are laid out in whole frames, then they become samples. The two
networks take phrases of many streams at once; all else is a stream's own. A phrase is never touched
again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from echostream.models.decoders.codevocos_vocoder import CodeVocosStreams, StreamingCodeVocos
from echostream.models.decoders.phone_prosody import Prosody
from echostream.streaming import join_rows, rows_apart
from echostream.text import SENTENCE_END
from echostream.voice.folder import Voice
from echostream.voice.normalize import ABBREVIATION, spoken_text
from echostream.voice.phone_units import END, START

LONGEST_START_FRAMES = 4  # the voice was recorded with a third of a second before each sentence
PHRASE_MARKS = ",;:.!?\u2014\u2026"
SENTENCE_MARKS = ".!?\u2026"
WORD = re.compile(r"\w")


def ends_sentence(word: str) -> bool:
    """Whether a sentence ends behind a word, as it is written."""
    return bool(SENTENCE_END.search(word)) and not ABBREVIATION.fullmatch(word)


@dataclass(frozen=True)
class VoiceState:
    """What the next phrase of a stream depends on.

    Attributes:
        vocoder: of one row; every shape is fixed.
        said: the last symbols of the sentence, at most as many as the prosody network looks at.
        owed: by how many frames what was said is too short, from rounding.
        holds: the vocoder holds something back.
    """

    vocoder: CodeVocosStreams
    said: tuple[int, ...] = ()
    owed: float = 0.0
    holds: bool = False


@dataclass(frozen=True)
class Phrase:
    """Words as symbols.

    Attributes:
        before: symbols of the sentence before it.
        symbols: its own.
        ahead: those of words that may follow; they are not said.
        ends: the sentence ends with it.
    """

    before: tuple[int, ...]
    symbols: tuple[int, ...]
    ahead: tuple[int, ...]
    ends: bool

    def __len__(self) -> int:
        return len(self.before) + len(self.symbols) + len(self.ahead)


class StreamingVoice:
    """Speaks the phrases of any number of streams.

    Args:
        voice: networks, inventory and phonemizer.

    Raises:
        ValueError: the voice has no phonemizer.
    """

    def __init__(self, voice: Voice) -> None:
        if voice.phonemizer is None:
            raise ValueError("this voice was loaded without a phonemizer; it cannot read text")
        self.voice, self.phonemizer = voice, voice.phonemizer
        self.front = StreamingCodeVocos(voice.vocoder, dur_prediction=False)
        config = voice.vocoder.config
        self.sample_rate = config.sampling_rate
        self.unit_ms = 1000 * config.unit_samples / config.sampling_rate
        # What a stream's last spectrum and its look-ahead wait for.
        self.held_ms: float = config.lookahead_frames * self.unit_ms + 1000 * (
            config.hop_samples / config.sampling_rate
        )

    def init_state(self) -> VoiceState:
        return VoiceState(self.front.init_state())

    def phonemes(self, text: str) -> str:
        """What of a text is said, in the symbols of the voice."""
        return self.voice.inventory.known(self.phonemizer(spoken_text(text)))

    def phrase(
        self, words: Sequence[str], state: VoiceState, *, ends: bool, ahead: Sequence[str] = ()
    ) -> Phrase:
        """Pronounce some words of a sentence.

        Args:
            ends: the sentence ends with them.
            ahead: words that may follow.
        """
        inventory = self.voice.inventory
        said = self._joined(self.phonemes(" ".join(words)), first=not state.said)
        if ends:
            last = said or inventory.symbols[state.said[-1]] if state.said or said else ""
            mark = "" if last.endswith(tuple(SENTENCE_MARKS)) else "."
            said = f"{said}{inventory.known(mark)}{END}"
            if not state.said and not said.startswith(START):
                said = START + said
        following = ""
        if ahead and said and not ends:
            following = self._joined(self.phonemes(" ".join(ahead)), first=False)
        return Phrase(
            state.said,
            tuple(inventory.indices(said)),
            tuple(inventory.indices(following)),
            ends,
        )

    @staticmethod
    def _joined(phonemes: str, *, first: bool) -> str:
        """Phonemes with what goes before them in a sentence."""
        if not phonemes:
            return ""
        if first:
            return START + phonemes
        return phonemes if phonemes[0] in PHRASE_MARKS else " " + phonemes

    def predict(self, phrases: Sequence[Phrase]) -> list[Prosody]:
        """Durations and pitch of the phrases of several streams."""
        prosody = self.voice.prosody
        return prosody.predict_rows([(one.before, one.symbols, one.ahead) for one in phrases])

    def lay_out(
        self, phrase: Phrase, prosody: Prosody, speed: float, state: VoiceState
    ) -> tuple[list[int], VoiceState]:
        """Units of a phrase, one a frame, and the state that knows them as said.

        Args:
            speed: how much faster than predicted.
        """
        frames = list(prosody.frames)
        if phrase.symbols and not phrase.before:
            frames[0] = min(frames[0], LONGEST_START_FRAMES)
        whole, owed = rounded([length / speed for length in frames], state.owed)
        each = self.voice.inventory.units(phrase.symbols, prosody.log_f0)
        units = [unit for unit, count in zip(each, whole, strict=True) for _ in range(count)]
        if phrase.ends:
            return units, replace(state, said=(), owed=0.0, holds=state.holds or bool(units))
        kept = (*state.said, *phrase.symbols)
        kept = kept[max(len(kept) - self.voice.prosody.config.context_symbols, 0) :]
        return units, replace(state, said=kept, owed=owed, holds=state.holds or bool(units))

    def sound(
        self,
        units: Sequence[Sequence[int]],
        states: Sequence[VoiceState],
        final: Sequence[bool],
    ) -> list[tuple[Tensor, VoiceState]]:
        """Samples of several streams.

        Args:
            units: of each, also none.
            final: what a stream holds back is given out too, and its sound begins anew.

        Returns:
            (samples,) of each, and its new state.
        """
        joined = join_rows([state.vocoder for state in states])
        waves, _, joined = self.front.step_rows(units, joined, [1.0] * len(units), final=final)
        return [
            (wave, replace(state, vocoder=vocoder, holds=state.holds and not end))
            for wave, state, vocoder, end in zip(
                waves, states, rows_apart(joined, len(states)), final, strict=True
            )
        ]


def rounded(frames: Sequence[float], owed: float) -> tuple[list[int], float]:
    """Whole frames, at least one each, whose sum stays close to the sum of ``frames``.

    Args:
        owed: by how much what went before is too short.

    Returns:
        Them, and by how much they and what went before are too short.
    """
    whole = []
    for length in frames:
        count = max(int(length + owed + 0.5), 1)
        owed = min(max(length + owed - count, -1.0), 1.0)
        whole.append(count)
    return whole, owed
