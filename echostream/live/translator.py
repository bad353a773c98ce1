"""One stream's way through a model, in the terms of the live protocol.

:class:`StreamTranslator` runs the incremental :class:`~echostream.translator.pipeline.Pipeline`;
:class:`RecomputeTranslator` runs StreamSpeech as published, which computes everything again at
every chunk. Both take chunk after chunk and return :class:`Update` objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from echostream.pipeline_batch import Push, iterate_batch
from echostream.streamspeech.recompute import RecomputeOutput, RecomputePipeline
from echostream.translator.pipeline import ChunkOutput, Pipeline, PipelineState


@dataclass(frozen=True)
class Update:
    """What one decision brought to the listener.

    Attributes:
        source_ms: source consumed.
        transcript, translation: newly completed words.
        transcript_tail, translation_tail: provisional words behind them.
        sentence: number of the sentence they belong to, from 0.
        sentence_end: the sentence is complete.
        waveform: (T,) float32 new speech.
        backlog_ms: speech that a listener who heard everything at once still has to hear when this
            update arrives, this update's included.
        final: nothing follows.
        compute_ms: wall time per stage.
    """

    source_ms: float
    transcript: tuple[str, ...]
    translation: tuple[str, ...]
    transcript_tail: str
    translation_tail: str
    sentence: int
    sentence_end: bool
    waveform: np.ndarray
    backlog_ms: float
    final: bool
    compute_ms: dict[str, float] = field(default_factory=dict)


class Translator(Protocol):
    """A stream that takes one chunk at a time."""

    def push(self, samples: np.ndarray, sample_rate: int, *, final: bool = False) -> list[Update]:
        """(T,) float32 samples of the next chunk; fewer than a chunk only with ``final``."""


def chunk_samples(chunk_ms: int, sample_rate: int) -> int:
    """Samples that complete one chunk; the pipelines cut at the same places."""
    return math.ceil(chunk_ms * sample_rate / 1000)


@dataclass
class Playback:
    """How far speech lags behind if each piece is played as soon as it arrives and all before it
    has been heard; time is source time."""

    end_ms: float = 0.0

    def add(self, now_ms: float, duration_ms: float) -> float:
        """Take in a piece that arrives at ``now_ms``; returns what is left to hear then."""
        if duration_ms:
            self.end_ms = max(self.end_ms, now_ms) + duration_ms
        return max(self.end_ms - now_ms, 0.0)


class StreamTranslator:
    """A stream on an incremental pipeline.

    Args:
        pipeline: shared with other streams.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.state: PipelineState = pipeline.init_state()
        self.playback = Playback()

    def push(self, samples: np.ndarray, sample_rate: int, *, final: bool = False) -> list[Update]:
        outputs, self.state = self.pipeline.step(samples, sample_rate, self.state, final=final)
        return self.updates(outputs)

    def updates(self, outputs: list[ChunkOutput]) -> list[Update]:
        """Outputs of steps that led to ``self.state``."""
        system = self.pipeline.system
        return [
            self._update(
                output,
                # Only the last output's tails are of the present state.
                (*self.state.transcript.pending, *output.asr_tail) if last else (),
                self.state.translation.pending if last else (),
                system,
            )
            for output, last in ((o, o is outputs[-1]) for o in outputs)
        ]

    def _update(self, output, transcript_pending, translation_pending, system) -> Update:
        duration_ms = 1000 * len(output.waveform) / output.sample_rate
        backlog_ms = self.playback.add(output.source_ms, duration_ms)
        return Update(
            source_ms=output.source_ms,
            transcript=output.transcript,
            translation=output.translation,
            transcript_tail=system.source_vocabulary.decode(transcript_pending),
            translation_tail=system.target_vocabulary.decode(translation_pending),
            sentence=getattr(output, "sentence", 0),
            sentence_end=getattr(output, "sentence_end", output.final),
            waveform=output.waveform,
            backlog_ms=backlog_ms,
            final=output.final,
            compute_ms=output.compute_ms,
        )


@dataclass
class AgreedWords:
    """Words of a text that is computed again at every chunk: what two calls in a row agree on is
    taken as said."""

    said: int = 0
    before: tuple[str, ...] = ()

    def add(self, words: tuple[str, ...], final: bool) -> tuple[tuple[str, ...], str]:
        """The whole text as of now to newly agreed words and the rest."""
        agreed = 0
        while agreed < min(len(words), len(self.before)) and words[agreed] == self.before[agreed]:
            agreed += 1
        upto = len(words) if final else max(agreed - 1, 0)  # the last one may still grow
        new = words[self.said : upto]
        self.said, self.before = max(self.said, upto), words
        return new, " ".join(words[self.said :])


class RecomputeTranslator:
    """A stream of StreamSpeech as published. It knows one sentence, and its cost grows with what it
    has heard, so the server bounds its length.

    Args:
        pipeline: shared with other streams.
    """

    def __init__(self, pipeline: RecomputePipeline) -> None:
        self.pipeline = pipeline
        self.state = pipeline.init_state()
        self.playback = Playback()
        self.transcript, self.translation = AgreedWords(), AgreedWords()

    def push(self, samples: np.ndarray, sample_rate: int, *, final: bool = False) -> list[Update]:
        outputs, self.state = self.pipeline.step(samples, sample_rate, self.state, final=final)
        return [self._update(output) for output in outputs]

    def _update(self, output: RecomputeOutput) -> Update:
        system = self.pipeline.system
        heard = tuple(system.source_vocabulary.decode(output.asr_tokens).split())
        transcript, transcript_tail = self.transcript.add(heard, output.final)
        written = () if self.pipeline.task == "asr" else output.mt_tokens
        translated = tuple(system.target_vocabulary.decode(written).split())
        translation, translation_tail = self.translation.add(translated, output.final)
        duration_ms = 1000 * len(output.waveform) / output.sample_rate
        return Update(
            source_ms=output.source_ms,
            transcript=transcript,
            translation=translation,
            transcript_tail=transcript_tail,
            translation_tail=translation_tail,
            sentence=0,
            sentence_end=output.final,
            waveform=output.waveform,
            backlog_ms=self.playback.add(output.source_ms, duration_ms),
            final=output.final,
            compute_ms=output.compute_ms,
        )


@dataclass(frozen=True)
class Chunk:
    """What one stream is to take in next; see :meth:`Translator.push`."""

    translator: Translator
    samples: np.ndarray
    sample_rate: int
    final: bool


def push_together(chunks: Sequence[Chunk]) -> Iterator[tuple[int, list[Update] | Exception]]:
    """Push chunks to several translators, those on one incremental pipeline as a batch; each
    one's index and what its ``push`` returns or raises, as soon as it is there, in any order."""
    batches: dict[int, list[int]] = {}
    for index, chunk in enumerate(chunks):
        translator = chunk.translator
        if isinstance(translator, StreamTranslator):
            batches.setdefault(id(translator.pipeline), []).append(index)
            continue
        try:
            result = translator.push(chunk.samples, chunk.sample_rate, final=chunk.final)
        except Exception as error:  # noqa: BLE001  (handed to the stream's owner)
            result = error
        yield index, result
    for indices in batches.values():
        streams = [chunks[index].translator for index in indices]
        pushes = [
            Push(chunk.samples, chunk.sample_rate, stream.state, chunk.final)
            for chunk, stream in zip((chunks[index] for index in indices), streams, strict=True)
        ]
        for row, result in iterate_batch(streams[0].pipeline, pushes):
            if not isinstance(result, Exception):
                outputs, streams[row].state = result
                result = streams[row].updates(outputs)
            yield indices[row], result
