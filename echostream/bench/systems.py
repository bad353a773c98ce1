"""Systems to be timed, made to write and speak at the rate of speech.

Untrained heads emit at random, trained ones emit little on made-up audio; both would be timed on
lengths that speech does not have. So the pipelines here have a policy that goes by the clock: a
given number of subwords is decoded per second of source, sentences never end, and every subword is
spoken with a given number of units. All stages still do their work on what they are given.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echostream.acceleration.compiled import compile_encoder
from echostream.audio import CMVN
from echostream.bench.bench_options import COMPILED, RECOMPUTE
from echostream.bench.floor import NamedStages
from echostream.checkpoint import System, load_model_dir
from echostream.config import ChunkConformerConfig, EndpointConfig, preset
from echostream.config.compute import DTYPES
from echostream.hub.names import is_model_name
from echostream.models.decoders.ctc_decoder_policy import Counts, PolicyAction, PolicyState
from echostream.models.echostream_model import EchoStreamModel, SpeechState, seeded_model
from echostream.precision import convert
from echostream.streamspeech.recompute import (
    RecomputePipeline,
    RecomputeState,
    StreamSpeechPipeline,
)
from echostream.synthetic import syllables
from echostream.text import SPECIALS, WORD_START, Vocabulary
from echostream.translator.pipeline import Pipeline
from echostream.translator.stages import Clock, Stopwatch
from echostream.translator.stream import StreamPipeline

RATE = 16000  # of everything that is listened to
UNIT_FRAMES = 2  # how long every unit of a random vocoder lasts


@dataclass(frozen=True)
class Rates:
    """Per second of source."""

    tokens: float = 3.0
    units: float = 25.0

    def __post_init__(self) -> None:
        for name in ("tokens", "units"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"rate of {name} must be positive, got {value}")

    def units_up_to(self, tokens: int) -> int:
        """Units of the first ``tokens`` subwords."""
        return round(tokens * self.units / self.tokens)


def random_system(name: str) -> System:
    """Random weights in the sizes of a preset; subwords are made up to fill the vocabularies."""
    config = preset(name)
    if isinstance(config.encoder, ChunkConformerConfig):
        # As converted checkpoints are: StreamSpeech's decoders see everything.
        config = replace(
            config,
            mt=replace(config.mt, context_tokens=None, source_context_frames=None),
            t2u=replace(config.t2u, context_tokens=None),
            unit=replace(config.unit, context_tokens=None),
        )
    base = syllables(60)
    source, target = (
        Vocabulary(
            [
                (WORD_START if i % 2 else "") + base[i % 60].strip(WORD_START) + _letters(i)
                for i in range(size - len(SPECIALS))
            ]
        )
        for size in (config.source_vocab_size, config.target_vocab_size)
    )
    bins = config.frontend.num_mel_bins
    model = seeded_model(config)
    if model.vocoder is not None and model.vocoder.generator.dur_predictor is not None:
        last = model.vocoder.generator.dur_predictor.proj
        with torch.no_grad():
            last.weight.zero_()
            last.bias.fill_(math.log(1 + UNIT_FRAMES))
    cmvn = CMVN(torch.full((bins,), 12.0), torch.full((bins,), 4.0))
    return System(config, model, source, target, cmvn)


def _letters(number: int) -> str:
    """Digits as letters: a voice says letters as sounds, and numbers as many words."""
    return "".join("aeioulmnrs"[int(digit)] for digit in str(number))


@dataclass(frozen=True)
class Name:
    """A system's name taken apart: ``WEIGHTS[:DTYPE][:compiled][:recompute]``."""

    weights: str
    dtype: str = "fp32"
    compiled: bool = False
    recompute: bool = False

    @classmethod
    def parse(cls, name: str) -> Name:
        recompute, name = name.endswith(RECOMPUTE), name.removesuffix(RECOMPUTE)
        compiled, name = name.endswith(COMPILED), name.removesuffix(COMPILED)
        head, _, tail = name.rpartition(":")
        if head and tail in DTYPES:
            return cls(head, tail, compiled, recompute)
        return cls(name, "fp32", compiled, recompute)


def load_system(name: str, *, chunk_ms: int = 320, device: str = "cpu") -> System:
    """A model directory or a model of that name, otherwise a preset with random weights. Its text
    decoder never ends a sentence.

    Args:
        chunk_ms: for which a compiled encoder step is made.
        device: to compute on.
    """
    parts = Name.parse(name)
    if Path(parts.weights).is_dir() or is_model_name(parts.weights):
        system = load_model_dir(parts.weights, device=device, dtype=parts.dtype)
    else:
        system = random_system(parts.weights)
        system = replace(system, model=convert(system.model, parts.dtype, device))
    if parts.compiled:
        compile_encoder(system.model, chunk_ms=chunk_ms)
    system.model.target_unigram_decoder.min_tokens = sys.maxsize
    return system


class ForcedStages(NamedStages):
    """Stages that speak every subword with as many units as they are told."""

    rates: Rates

    def _speak(
        self, hidden: Sequence[Tensor], states: Sequence[SpeechState], watch: Stopwatch
    ) -> list[tuple[list[int], SpeechState]]:
        ratio = self.model.config.unit.upsample_ratio
        spoken = [length // ratio for state in states for length in state.unit.cache.lengths]
        answers = super()._speak(hidden, states, watch)
        return [
            (forced_units(self.rates, self.model, first, own.size(1)), state)
            for first, own, (_, state) in zip(spoken, hidden, answers, strict=True)
        ]


def forced_units(rates: Rates, model: EchoStreamModel, first: int, tokens: int) -> list[int]:
    """Units of ``tokens`` subwords from the ``first`` of a sentence on."""
    begin, end = rates.units_up_to(first), rates.units_up_to(first + tokens)
    return [7 * unit % model.config.num_units for unit in range(begin, end)]


class _AtForcedRates(Pipeline):
    """What turns a pipeline into one of forced rates; the stream is one sentence."""

    def __init__(self, system: System, rates: Rates, **options: Any) -> None:
        self.rates = rates
        super().__init__(system, endpoint=EndpointConfig("off"), **options)
        self.decide, self.whole_word = self.by_the_clock, False

    def build_stages(self, **options: Any) -> ForcedStages:
        stages = ForcedStages(**options)
        stages.rates = self.rates
        return stages

    def by_the_clock(
        self, counts: Counts, state: PolicyState, config: object, whole_word: bool
    ) -> tuple[PolicyAction, PolicyState]:
        """The policy of forced rates."""
        due = int(self.rates.tokens * counts.source_ms / 1000 + 1e-6) - counts.written
        return PolicyAction(max_new_tokens=max(due, 0)), state


class ForcedPipeline(_AtForcedRates):
    """The pipeline at forced rates."""


class ForcedStreamSpeechPipeline(_AtForcedRates, StreamSpeechPipeline):
    """StreamSpeech's agents, going on from what they know, at forced rates."""


class ForcedRecomputePipeline(RecomputePipeline):
    """StreamSpeech's agents computing everything again at every chunk, at forced rates."""

    def __init__(self, system: System, rates: Rates, **options: Any) -> None:
        super().__init__(system, **options)
        self.rates = rates

    def build_stages(self, **options: Any) -> NamedStages:
        return NamedStages(**options)

    def _new_tokens(self, final: bool, state: RecomputeState) -> tuple[int, RecomputeState]:
        seconds = state.processed / state.rate
        due = int(self.rates.tokens * seconds + 1e-6) - len(state.prefix or ())
        return max(due, 0), state

    def _units(self, inputs: Tensor, encoder_out: Tensor, watch: Stopwatch) -> tuple[int, ...]:
        super()._units(inputs, encoder_out, watch)
        return self._spoken(inputs.size(1) - 1)

    def _spoken(self, tokens: int) -> tuple[int, ...]:
        return tuple(forced_units(self.rates, self.system.model, 0, tokens))

    def skip(self, samples: np.ndarray, sample_rate: int, state: RecomputeState) -> RecomputeState:
        """What :meth:`step` would remember of (T,) samples, without its work: hearing all of a
        stream this way would take the square of its length."""
        heard = np.concatenate([state.samples, samples])
        tokens = int(self.rates.tokens * len(heard) / sample_rate + 1e-6)
        missing = tokens - len(state.prefix or ())
        prefix = (state.prefix or ()) + (len(SPECIALS),) * missing
        return replace(
            state,
            samples=heard,
            sample_rate=sample_rate,
            received=len(heard),
            processed=len(heard),
            prefix=prefix or None,
            fed=tokens + 1 if tokens else None,
            units=self._spoken(tokens) or None,
        )


def forced_pipeline(
    name: str,
    system: System,
    rates: Rates,
    *,
    chunk_ms: int,
    task: str = "s2st",
    clock: Clock = time.perf_counter,
) -> StreamPipeline:
    """The pipeline that a name asks for, at forced rates.

    Args:
        system: as :func:`load_system` returns it.
        clock: what stages are timed with.

    Raises:
        ValueError: recomputing is asked of a system that is no StreamSpeech.
    """
    kind: Callable[..., StreamPipeline[Any]] = ForcedPipeline
    if Name.parse(name).recompute:
        kind = ForcedRecomputePipeline
    elif isinstance(system.config.encoder, ChunkConformerConfig):
        kind = ForcedStreamSpeechPipeline
    return kind(system, rates, chunk_ms=chunk_ms, task=task, clock=clock)
