"""What every pipeline does alike: cut audio into chunks, keep count, hand out decisions.

Incoming samples are cut into chunks of fixed duration, however they arrive, and each complete chunk
is taken in at once. So the result depends on the audio and the chunk size only, not on how the
audio was pushed. What a chunk leads to, subclasses say: :class:`~echostream.pipeline.Pipeline`
encodes it and goes on from what it knows; recomputing pipelines hear everything again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

import numpy as np
import torch

from echostream.audio import Resampler, check_same_rate, check_samples
from echostream.checkpoint import System
from echostream.config import PolicyConfig

Task = Literal["asr", "s2tt", "s2st"]
MAX_CHUNK_MS = 3_600_000


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """What cutting audio into chunks has to remember.

    Attributes:
        sample_rate: of the input; None before the first samples.
        received: input samples pushed.
        processed: input samples that went through the model.
        pending: (T,) samples of the chunk under way.
        finished: the stream has ended.
    """

    sample_rate: int | None = None
    received: int = 0
    processed: int = 0
    pending: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    finished: bool = False


@dataclass(frozen=True, kw_only=True)
class StreamOutput:
    """What one policy decision brought.

    Attributes:
        source_ms: source consumed.
        write: whether the policy wrote.
        final: the stream ended with this decision.
        asr_tokens, st_tokens: tokens of the CTC heads.
        mt_tokens: target subwords.
        units: speech units.
        waveform: (T,) float32 new samples.
        sample_rate: of the waveform.
        compute_ms: wall time per stage.
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
    sentence: int = 0
    sentence_end: bool = False
    backlog_ms: float = 0.0


# What stopwatches read: wall time, unless somebody wants processor time.
stage_clock: ContextVar[Callable[[], float]] = ContextVar("stage_clock", default=time.perf_counter)
# The stage that a stopwatch is timing, for whoever looks at the work from below.
current_stage: ContextVar[str | None] = ContextVar("current_stage", default=None)


class Stopwatch:
    """Time per named stage; waits for an accelerator so that its work is counted."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        outer = current_stage.set(stage)
        clock = stage_clock.get()
        start = clock()
        try:
            yield
        finally:
            current_stage.reset(outer)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ms[stage] = self.ms.get(stage, 0.0) + 1000 * (clock() - start)


StateT = TypeVar("StateT", bound=StreamState)
OutputT = TypeVar("OutputT", bound=StreamOutput)


class StreamPipeline(Generic[StateT, OutputT]):
    """Base of all pipelines; subclasses give :meth:`init_state` and :meth:`take`.

    Args:
        system: model, vocabularies and normalisation.
        chunk_ms: source per decision.
        task: ``asr`` stops behind the transcript, ``s2tt`` behind the translated text.
        policy: overrides the system's.

    Attributes:
        min_chunk_ms: shortest chunk.
        revises: outputs replace what earlier ones said, instead of adding to it.
        joins_last_chunk: a full chunk that turns out to be the last one is taken in together with
            the end of the stream, instead of the end being a decision of its own.
        joins_streams: several streams can listen together (``pipeline_batch``).
    """

    min_chunk_ms = 10
    revises = False
    joins_last_chunk = False
    joins_streams = False

    def __init__(
        self, system: System, *, chunk_ms: int, task: Task, policy: PolicyConfig | None
    ) -> None:
        if not self.min_chunk_ms <= chunk_ms <= MAX_CHUNK_MS:
            raise ValueError(
                f"chunk_ms must lie between {self.min_chunk_ms} and {MAX_CHUNK_MS}, got {chunk_ms}"
            )
        if task == "s2st" and system.model.vocoder is None:
            raise ValueError("task 's2st' needs a model with a vocoder; use 's2tt' or 'asr'")
        self.system, self.chunk_ms, self.task = system, chunk_ms, task
        self.policy_config = system.config.policy if policy is None else policy
        vocoder = system.config.vocoder
        self.output_rate = vocoder.sampling_rate if vocoder else system.config.frontend.sample_rate

    def init_state(self) -> StateT:
        """A fresh stream; weights are shared by any number of them."""
        raise NotImplementedError

    def take(self, samples: np.ndarray, state: StateT) -> tuple[Sequence[OutputT], StateT]:
        """Take in (T,) the samples of one chunk, or what is left when ``state.finished``."""
        raise NotImplementedError

    @torch.no_grad()
    def step(
        self, samples: object, sample_rate: int, state: StateT, *, final: bool = False
    ) -> tuple[list[OutputT], StateT]:
        """Push audio.

        Args:
            samples: (T,) or (T, channels), float or signed integer, any length.
            sample_rate: in Hz, the same throughout a stream.
            final: the stream ends with these samples.

        Returns:
            One output per decision (none while a chunk is filling up), and the new state.

        Raises:
            ValueError: unusable samples, a changed sample rate, or a stream that has ended.
        """
        outputs = []
        for output, following in self.iterate(samples, sample_rate, state, final=final):
            state = following
            if output is not None:
                outputs.append(output)
        return outputs, state

    @torch.no_grad()
    def iterate(
        self, samples: object, sample_rate: int, state: StateT, *, final: bool = False
    ) -> Iterator[tuple[OutputT | None, StateT]]:
        """:meth:`step`, one decision at a time; always ends with a pair (maybe without output)
        whose state has taken in all samples. Every state that is handed out holds whole chunks."""
        if state.finished:
            raise ValueError("this stream has ended; start another with init_state()")
        new = check_samples(samples, state.received)
        check_same_rate(state.sample_rate, sample_rate)
        # Rates that cannot be converted are refused before anything is taken in.
        Resampler(sample_rate, self.system.config.frontend.sample_rate)
        chunk = math.ceil(self.chunk_ms * sample_rate / 1000)
        available = np.concatenate([state.pending, new])
        state = replace(state, sample_rate=sample_rate, received=state.received + len(new))
        at_least = chunk + (final and self.joins_last_chunk)
        used = 0
        while len(available) - used >= at_least:
            piece = available[used : used + chunk]
            used += chunk
            outputs, state = self.take(piece, replace(state, pending=available[used:]))
            yield from ((output, state) for output in outputs)
        state = replace(state, pending=available[used:].copy())
        if final:
            outputs, state = self.take(
                state.pending, replace(state, pending=available[:0], finished=True)
            )
            yield from ((output, state) for output in outputs)
        else:
            yield None, state
