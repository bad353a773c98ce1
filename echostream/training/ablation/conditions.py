"""The same sentence spoken in several ways, each a step nearer to the system as it is heard.

Letters: D width of text states, N text states, S samples.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echostream.checkpoint import System
from echostream.config import ENCODER_FRAME_MS
from echostream.evaluation.runs.logged_instances import speech_layout
from echostream.models.decoders.hypothesis import Hypothesis
from echostream.models.decoders.vocoder_integration import StreamingVocoder
from echostream.samples import read_audio
from echostream.speaking import is_lower_case, words_in
from echostream.text import Vocabulary
from echostream.training.vocoder.data import SpeechWithUnits
from echostream.translator.pipeline import Pipeline
from echostream.translator.state import PipelineState

CONDITIONS = {
    "real": "real target speech",
    "units": "reference units, vocoded",
    "text": "reference text, teacher-forced, its units vocoded in one piece",
    "text_pieces": "the same in the pieces of the policy, without pauses",
    "units_pauses": "reference units in the same pieces, with the pauses of the policy",
    "system_whole": "the system's text, spoken in one piece",
    "system_joined": "the system without the silence between its pieces",
    "system": "the system as heard",
}


@dataclass(frozen=True)
class Sentence:
    """One sentence of a corpus.

    Attributes:
        target: its real speech with one unit per frame.
        source: sound file to be translated.
        text: what the target speech says.
    """

    target: SpeechWithUnits
    source: Path
    text: str


@dataclass(frozen=True)
class Spoken:
    """A sentence in every condition.

    Attributes:
        sounds: (S,) float32 of each condition.
        translation: text that the system wrote.
        delays_ms: source time at which each piece of the system was written.
        durations_ms: how long each piece is.
        source_ms: length of the source.
    """

    sounds: dict[str, np.ndarray]
    translation: str
    delays_ms: list[float]
    durations_ms: list[float]
    source_ms: float


def as_heard(pieces: Sequence[np.ndarray], delays_ms: Sequence[float], rate: int) -> np.ndarray:
    """Lay pieces (S,) on the time axis as SimulEval does: each when it was written or when the one
    before it ends, silence in between, none before the first."""
    durations = [1000 * len(piece) / rate for piece in pieces]
    intervals, _ = speech_layout(list(delays_ms), durations)
    heard: list[np.ndarray] = []
    end = intervals[0][0] if intervals else 0.0
    for piece, (start, duration) in zip(pieces, intervals, strict=True):
        heard += [np.zeros(int(rate * (start - end) / 1000), np.float32), piece]
        end = start + duration
    return np.concatenate(heard) if heard else np.zeros(0, np.float32)


def cuts(shares: Sequence[float], length: int) -> list[int]:
    """Places that divide ``length`` items in growing shares of the whole; the last is its end."""
    places = [min(max(round(share * length), 0), length) for share in shares]
    return [*places[:-1], length]


class _Recording(Pipeline):
    """A pipeline that keeps the text states which its speech was made from."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.written: list[Tensor] = []

    def _write_text(
        self, *args: Any
    ) -> Generator[Any, Any, tuple[Hypothesis | None, PipelineState]]:
        hypothesis, state = yield from super()._write_text(*args)
        if hypothesis is not None and hypothesis.hidden.size(1):
            self.written.append(hypothesis.hidden)
        return hypothesis, state


class Ablation:
    """Speaks sentences in all conditions.

    Args:
        system: must have a vocoder with predicted durations.
        chunk_ms: source per decision of the policy.
    """

    def __init__(self, system: System, *, chunk_ms: int = 320) -> None:
        vocoder = system.model.vocoder
        if vocoder is None or vocoder.generator.dur_predictor is None:
            raise ValueError("needs a model with a vocoder that predicts durations")
        self.system, self.vocoder, self.chunk_ms = system, vocoder, chunk_ms
        self.rate = vocoder.sample_rate
        self.pipeline = _Recording(system, chunk_ms=chunk_ms)

    @torch.no_grad()
    def speak(self, sentence: Sentence) -> Spoken:
        """One sentence in every condition."""
        samples, rate = read_audio(sentence.source)
        self.pipeline.written = []
        outputs, _ = self.pipeline.step(samples, rate, self.pipeline.init_state(), final=True)
        spoken = [output for output in outputs if len(output.waveform)]
        pieces = [output.waveform for output in spoken]
        delays = [output.source_ms for output in spoken]
        lengths = np.cumsum([len(piece) for piece in pieces])
        subwords = np.cumsum([states.size(1) for states in self.pipeline.written])
        units = sentence.target.reduced[0].tolist()
        states = self.teacher_forced(samples, rate, sentence.text)
        sounds = {
            "real": sentence.target.waveform,
            "units": self.vocoder.generate(units)[0].numpy(),
            "text": self.say(states, [states.size(1)]),
            "text_pieces": self.say(states, self._shares(subwords, states.size(1))),
            "units_pauses": as_heard(
                self.vocode(units, self._shares(lengths, len(units))), delays, self.rate
            ),
            "system_whole": self.say_written(),
            "system_joined": np.concatenate(pieces) if pieces else np.zeros(0, np.float32),
            "system": as_heard(pieces, delays, self.rate),
        }
        words = [word for output in outputs for word in output.translation]
        return Spoken(
            sounds,
            " ".join(words),
            delays,
            [1000 * len(piece) / self.rate for piece in pieces],
            1000 * len(samples) / rate,
        )

    @staticmethod
    def _shares(ends: np.ndarray, length: int) -> list[int]:
        return cuts((ends / ends[-1]).tolist(), length) if len(ends) else [length]

    def teacher_forced(self, samples: np.ndarray, rate: int, text: str) -> Tensor:
        """(1, N, D) states of the text decoder that reads the whole source and writes ``text``,
        with the one behind its last subword."""
        system, model = self.system, self.system.model
        frontend = system.frontend()
        features, _ = frontend.step(samples, rate, frontend.init_state(), final=True)
        segment = max(self.chunk_ms // ENCODER_FRAME_MS, 1)
        lengths = torch.tensor([features.size(1)])
        encoded = model.encoder(features, lengths, segment_frames=segment)["encoder_out"][0]
        vocabulary = system.target_vocabulary
        # As text targets are: capitals and punctuation would be unknown pieces.
        words = words_in(text, is_lower_case(vocabulary))
        tokens = [Vocabulary.eos, *vocabulary.encode(" ".join(words))]
        _, hidden = model.target_unigram_decoder(torch.tensor([tokens]), encoded)
        return hidden.transpose(0, 1)

    def say(self, states: Tensor, ends: Sequence[int]) -> np.ndarray:
        """(1, N, D) text states to (S,) speech, in pieces that end at ``ends``; no pauses."""
        model, state = self.system.model, self.system.model.init_speech()
        pieces = [np.zeros(0, np.float32)]
        for start, end in pairwise([0, *ends]):
            (units,), state = model.speak([states[:, start:end]], state)
            if units:
                (speech,), state = model.vocode([units], state, [1.0])
                pieces.append(speech.numpy())
        return np.concatenate(pieces)

    def say_written(self) -> np.ndarray:
        """What the system has written, (S,) in one piece."""
        written = self.pipeline.written
        if not written:
            return np.zeros(0, np.float32)
        states = torch.cat(written, dim=1)
        return self.say(states, [states.size(1)])

    def vocode(self, units: Sequence[int], ends: Sequence[int]) -> list[np.ndarray]:
        """Units to speech in as many pieces as ``ends``."""
        streaming = StreamingVocoder(self.vocoder)
        state, pieces = streaming.init_state(), []
        for start, end in pairwise([0, *ends]):
            samples, _, state = streaming.step(units[start:end], state)
            pieces.append(samples.numpy())
        return pieces
