"""What every pipeline does alike: cut audio into chunks, keep count, hand out decisions.

Incoming samples are cut into chunks of fixed duration, however they arrive, and each complete chunk
is taken in at once. So the result depends on the audio and the chunk size only, not on how the
audio was pushed. What a chunk leads to, subclasses say: :class:`~echostream.translator.pipeline.
Pipeline` encodes it and goes on from what it knows; recomputing pipelines hear everything again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from echostream.config import PolicyConfig, Task
from echostream.models.decoders.policies import POLICIES
from echostream.samples import Resampler, check_same_rate, check_samples
from echostream.translator.judging import attention_layer
from echostream.translator.stages import Clock, Stages, Steps, drive

if TYPE_CHECKING:
    from echostream.checkpoint import System
    from echostream.voice.streaming_voice import StreamingVoice

MAX_CHUNK_MS = 3_600_000


def chunk_samples(chunk_ms: float, sample_rate: int) -> int:
    """Samples that complete one chunk."""
    return math.ceil(chunk_ms * sample_rate / 1000)


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """What cutting audio into chunks has to remember.

    Attributes:
        sample_rate: of the input; None before the first samples.
        received: input samples pushed.
        processed: input samples that went through the model.
        pending: (T,) samples that wait for the model.
        ended: no more samples will come.
        finished: everything was taken in, and nothing more will be decided.
    """

    sample_rate: int | None = None
    received: int = 0
    processed: int = 0
    pending: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    ended: bool = False
    finished: bool = False

    @property
    def rate(self) -> int:
        """``sample_rate`` of a stream that has samples."""
        assert self.sample_rate is not None
        return self.sample_rate


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What one policy decision brought: everything is new, unless the pipeline revises.

    Attributes:
        source_ms: source consumed.
        write: whether the policy wrote.
        final: the stream ended with this decision.
        asr_tokens, st_tokens: tokens of the CTC heads; all so far where the pipeline revises.
        asr_tail, st_tail: provisional tokens behind them.
        mt_tokens, units: target subwords and speech units; all so far where the pipeline revises.
        transcript, translation: newly completed words.
        transcript_tail, translation_tail: what may still change behind them.
        text: what a text agent as published writes, subwords and all; None for others.
        waveform: (T,) float32 new samples.
        sample_rate: of the waveform.
        compute_ms: time per stage; of what several streams computed together, an equal share.
        encoder_frames: frames encoded for this decision.
        sentence: index of the sentence in the stream that all this belongs to.
        sentence_end: nothing more of that sentence will come.
        backlog_ms: speech that waits to be played if it is played as it is written.
    """

    source_ms: float
    write: bool
    final: bool
    asr_tokens: tuple[int, ...]
    st_tokens: tuple[int, ...]
    mt_tokens: tuple[int, ...]
    units: tuple[int, ...]
    waveform: np.ndarray
    sample_rate: int
    compute_ms: dict[str, float]
    asr_tail: tuple[int, ...] = ()
    st_tail: tuple[int, ...] = ()
    transcript: tuple[str, ...] = ()
    translation: tuple[str, ...] = ()
    transcript_tail: str = ""
    translation_tail: str = ""
    text: str | None = None
    encoder_frames: int = 0
    sentence: int = 0
    sentence_end: bool = False
    backlog_ms: float = 0.0


StateT = TypeVar("StateT", bound=StreamState)
Taken = tuple[Sequence[Decision], StateT]


class StreamPipeline(Generic[StateT]):
    """Base of all pipelines; subclasses give :meth:`init_state` and :meth:`take`.

    Args:
        system: model, vocabularies and normalisation.
        chunk_ms: source per decision.
        task: ``asr`` stops behind the transcript, ``s2tt`` behind the translated text.
        policy: overrides the system's.
        beam: beam width of the text decoder.
        dur_prediction: let the vocoder predict how long units last, if it can.
        clock: what the stages of a decision are timed with, in seconds.
        voice: speaks instead of the model's unit decoder and vocoder.

    Attributes:
        min_chunk_ms: shortest chunk.
        revises: decisions replace what earlier ones said, instead of adding to it.
        joins_last_chunk: a full chunk that turns out to be the last one is taken in together with
            the end of the stream, instead of the end being a decision of its own.
    """

    min_chunk_ms = 10
    revises = False
    joins_last_chunk = False

    def __init__(
        self,
        system: System,
        *,
        chunk_ms: int,
        task: Task,
        policy: PolicyConfig | None,
        beam: int = 1,
        dur_prediction: bool = True,
        clock: Clock = time.perf_counter,
        voice: StreamingVoice | None = None,
    ) -> None:
        if not self.min_chunk_ms <= chunk_ms <= MAX_CHUNK_MS:
            raise ValueError(
                f"chunk_ms must lie between {self.min_chunk_ms} and {MAX_CHUNK_MS}, got {chunk_ms}"
            )
        vocoder = system.model.vocoder
        if task == "s2st" and vocoder is None and voice is None:
            raise ValueError(
                "task 's2st' needs a model with a vocoder or a voice; use 's2tt' or 'asr', or set "
                "speech.voice"
            )
        if beam < 1:
            raise ValueError(f"beam must be at least 1, got {beam}")
        self.system, self.chunk_ms, self.task = system, chunk_ms, task
        self.policy_config = system.config.policy if policy is None else policy
        self.policy = POLICIES[self.policy_config.name]
        self.output_rate = system.config.frontend.sample_rate
        speaks = vocoder if voice is None else voice
        if speaks is not None:
            self.output_rate = speaks.sample_rate
        self.stages = self.build_stages(
            model=system.model,
            clock=clock,
            transcribe_only=task == "asr",
            beam=beam,
            dur_prediction=dur_prediction and vocoder is not None and vocoder.predicts_durations,
            attention_layer=attention_layer(self.policy, self.policy_config, system.config.mt),
            voice=voice,
        )

    def build_stages(self, **options: Any) -> Stages:
        """What this pipeline's streams ask the model with."""
        # torch is loaded only where it computes.
        from echostream.translator.model_stages import ModelStages

        return ModelStages(**options)

    def init_state(self) -> StateT:
        """A fresh stream; weights are shared by any number of them."""
        raise NotImplementedError

    def take(self, samples: np.ndarray, state: StateT) -> Generator[Any, Any, Taken[StateT]]:
        """Take in (T,) the samples of one chunk, or what is left when ``state.finished``.

        Yields:
            What it asks of :attr:`stages`.

        Returns:
            Decisions, and the new state.
        """
        raise NotImplementedError

    def accept(
        self, samples: object, sample_rate: int, state: StateT, *, final: bool = False
    ) -> StateT:
        """Queue audio; nothing is computed.

        Args:
            samples: (T,) or (T, channels), float or signed integer, any length.
            sample_rate: in Hz, the same throughout a stream.
            final: the stream ends with these samples.

        Raises:
            ValueError: unusable samples, a changed sample rate, or a stream that has ended.
        """
        if state.ended:
            raise ValueError("this stream has ended; start another with init_state()")
        new = check_samples(samples, state.received)
        check_same_rate(state.sample_rate, sample_rate)
        if state.sample_rate is None:
            # Rates that cannot be converted are refused before anything is taken in.
            Resampler(sample_rate, self.system.config.frontend.sample_rate)
        return replace(
            state,
            sample_rate=sample_rate,
            received=state.received + len(new),
            pending=np.concatenate([state.pending, new]),
            ended=final,
        )

    def ready(self, state: StateT) -> bool:
        """Whether a whole chunk waits, or what is left of a stream that has ended."""
        if state.sample_rate is None or state.finished:
            return False
        return state.ended or len(state.pending) >= chunk_samples(self.chunk_ms, state.sample_rate)

    def advance(self, state: StateT, chunks: int | None = None) -> Steps:
        """Take in the whole chunks that wait, and what is left if the stream has ended.

        Args:
            chunks: at most so many; None: all. An end behind the last of them is taken in with it.

        Yields:
            Requests, and a decision with a state for each decision; last a pair without one, whose
            state has taken in everything. Every state that is handed out holds whole chunks.
        """
        taken = 0
        while self.ready(state) and (taken != chunks or not len(state.pending)):
            assert state.sample_rate is not None  # else nothing would be ready
            chunk = chunk_samples(self.chunk_ms, state.sample_rate)
            samples, rest = state.pending[:chunk], state.pending[chunk:]
            last = state.ended and len(state.pending) < chunk + self.joins_last_chunk
            outputs, state = yield from self.take(
                samples, replace(state, pending=rest, finished=last)
            )
            yield from ((output, state) for output in outputs)
            taken += 1
        # A slice would keep all of the audio alive.
        yield None, replace(state, pending=state.pending.copy())

    def step(
        self, samples: object, sample_rate: int, state: StateT, *, final: bool = False
    ) -> tuple[list[Decision], StateT]:
        """Push audio, as :meth:`accept` takes it.

        Returns:
            One output per decision (none while a chunk is filling up), and the new state.
        """
        outputs = []
        for output, following in self.iterate(samples, sample_rate, state, final=final):
            state = following
            if output is not None:
                outputs.append(output)
        return outputs, state

    def iterate(
        self, samples: object, sample_rate: int, state: StateT, *, final: bool = False
    ) -> Iterator[tuple[Decision | None, StateT]]:
        """:meth:`step`, one decision at a time; always ends with a pair without one whose state
        has taken in all samples."""
        return self.decide_queued(self.accept(samples, sample_rate, state, final=final))

    def decide_queued(self, state: StateT) -> Iterator[tuple[Decision | None, StateT]]:
        """What :meth:`advance` decides for a single stream."""
        for _, item in drive(self.stages, [self.advance(state)]):
            if isinstance(item, Exception):
                raise item
            yield item

    def step_states(
        self, states: Sequence[StateT], chunks: int | None = None
    ) -> Iterator[tuple[int, tuple[list[Decision], StateT] | Exception]]:
        """:meth:`advance` several streams, computed together where the model can.

        Args:
            chunks: of each, at most so many.

        Returns:
            Each stream's index, with its decisions and its new state, or with the exception that
            it raised: a stream that cannot go on does not keep the others from it. As soon as they
            are there, in any order.
        """
        outputs: list[list[Decision]] = [[] for _ in states]
        for index, item in drive(self.stages, [self.advance(state, chunks) for state in states]):
            if isinstance(item, Exception):
                yield index, item
            elif item[0] is None:
                yield index, (outputs[index], item[1])
            else:
                outputs[index].append(item[0])
