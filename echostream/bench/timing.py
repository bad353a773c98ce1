"""Time systems in turns over one stream."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from echostream.acceleration.steady_state import plain_steps
from echostream.bench.bench_options import CLOCKS, FORCED_SECTIONS, RECOMPUTE
from echostream.bench.floor import recording, time_calls
from echostream.bench.systems import (
    RATE,
    ForcedRecomputePipeline,
    Rates,
    forced_pipeline,
    load_system,
)
from echostream.checkpoint import System
from echostream.config import Settings, overlay
from echostream.streaming import state_bytes
from echostream.synthetic import synthetic_clip
from echostream.translator.stages import Clock
from echostream.translator.stream import StreamPipeline

WINDOW_MS = 2000  # source before a position whose chunks count for it
STAGES = ("features", "encoder", "ctc", "mt", "units", "vocoder")
TOTAL = "total"
STARTUP = """
import sys, time
begin = time.perf_counter()
from echostream.bench.systems import Rates, forced_pipeline, load_system
from echostream.bench.timing import speech
import torch
torch.set_num_threads(int(sys.argv[3]))
chunk_ms = int(sys.argv[2])
system = load_system(sys.argv[1], chunk_ms=chunk_ms)
pipeline = forced_pipeline(sys.argv[1], system, Rates(), chunk_ms=chunk_ms)
pipeline.step(speech(chunk_ms / 1000), 16000, pipeline.init_state())
print(time.perf_counter() - begin)
"""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        systems: model directories or presets, with ``:recompute`` behind them for StreamSpeech's
            way; the first is what others are compared with.
        seconds: positions in the stream, ascending.
        chunk_ms: source per decision.
        threads: cores that torch may use, and that the process is pinned to.
        repeats: runs of every measured step, of which the quickest counts.
        clock: ``wall``, or ``cpu``: time that this process computed, whatever else did meanwhile.
        settings: of backlog and speech, by key, instead of the model directories' values.
    """

    systems: tuple[str, ...]
    seconds: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0)
    chunk_ms: int = 320
    threads: int = 1
    repeats: int = 3
    task: str = "s2st"
    clock: str = "wall"
    rates: Rates = field(default_factory=Rates)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in self.settings:
            if key.partition(".")[0] in FORCED_SECTIONS:
                raise ValueError(
                    f"bench writes and speaks at forced rates, which {key} does not change, got "
                    f"{key}={self.settings[key]}"
                )
        if self.clock not in CLOCKS:
            raise ValueError(f"--clock must be one of {', '.join(CLOCKS)}, got {self.clock!r}")
        if self.clock == "cpu" and self.threads > 1:
            raise ValueError(
                "--clock cpu adds up the time of all threads: it needs --threads 1, got "
                f"{self.threads}"
            )
        if self.chunk_ms < 1:
            raise ValueError(f"--chunk-ms must be at least 1, got {self.chunk_ms}")
        if list(self.seconds) != sorted(set(self.seconds)):
            raise ValueError(f"--seconds must ascend, got {self.seconds}")
        for name in ("threads", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if len(set(self.systems)) != len(self.systems):
            raise ValueError(f"systems must differ from each other, got {self.systems}")
        for second in self.seconds:
            if self.chunks(second) < self.window:
                raise ValueError(
                    f"--seconds must cover the {self.window} x {self.chunk_ms} ms that are "
                    f"measured before each position, got {second:g}"
                )

    @property
    def window(self) -> int:
        """Chunks that are measured before each position."""
        return max(WINDOW_MS // self.chunk_ms, 1)

    def chunks(self, second: float) -> int:
        return int(1000 * second) // self.chunk_ms


@dataclass(frozen=True)
class Sample:
    """One measured chunk.

    Attributes:
        ms: wall time by stage, and in total.
        floor_ms: of its products and convolutions alone, likewise.
        state_mib, resident_mib: sizes after it.
        tokens, units: written and spoken with it.
    """

    ms: dict[str, float]
    floor_ms: dict[str, float]
    state_mib: float
    resident_mib: float
    tokens: int
    units: int


@dataclass(frozen=True)
class Measured:
    """Samples by system and position, what else was measured (``sessions``: the figures of
    :mod:`echostream.bench.crowd` by system), and how quiet the machine was."""

    plan: Plan
    samples: dict[str, dict[float, list[Sample]]]
    startup_s: dict[str, float | None]
    noise: list[float]
    load: float
    cores: tuple[int, ...]
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)


def speech(seconds: float) -> np.ndarray:
    """The same made-up speech at every call."""
    return synthetic_clip(seconds, RATE, seed=0)


def pin(threads: int) -> tuple[int, ...]:
    """Keep this process on so many cores; returns those it may use."""
    torch.set_num_threads(threads)
    if not hasattr(os, "sched_setaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    cores = allowed[-threads:] if threads <= len(allowed) else allowed
    os.sched_setaffinity(0, cores)
    return tuple(cores)


def resident_mib() -> float:
    """Memory of this process that is in RAM; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


def load_planned(name: str, plan: Plan) -> System:
    """A system with the plan's settings."""
    system = load_system(name, chunk_ms=plan.chunk_ms)
    return system.with_settings(overlay(Settings.of(system.config), plan.settings))


def measure(plan: Plan, progress: Callable[[], None] = lambda: None) -> Measured:
    """Take one chunk after another through all systems, in turns."""
    clock = CLOCKS[plan.clock]
    cores = pin(plan.threads)
    pipelines: dict[str, StreamPipeline] = {}
    loaded: dict[str, System] = {}
    for name in plan.systems:
        weights = name.removesuffix(RECOMPUTE)
        if weights not in loaded:
            loaded[weights] = load_planned(weights, plan)
        pipelines[name] = forced_pipeline(
            name,
            loaded[weights],
            plan.rates,
            chunk_ms=plan.chunk_ms,
            task=plan.task,
            clock=clock,
        )
    states = {name: pipeline.init_state() for name, pipeline in pipelines.items()}
    marks = {plan.chunks(second): second for second in plan.seconds}
    where = {n: s for mark, s in marks.items() for n in range(mark - plan.window, mark)}
    samples: dict[str, dict[float, list[Sample]]] = {
        name: {second: [] for second in plan.seconds} for name in plan.systems
    }
    clip = speech(min(max(plan.seconds), 20.0))
    size = RATE * plan.chunk_ms // 1000
    noise = []
    for number in range(max(marks)):
        piece = np.take(clip, range(number * size, (number + 1) * size), mode="wrap")
        for name, pipeline in pipelines.items():
            second = where.get(number)
            if second is not None:
                noise.append(_reference_ms(clock))
                sample, states[name] = _sample(pipeline, piece, states[name], plan)
                samples[name][second].append(sample)
            elif isinstance(pipeline, ForcedRecomputePipeline):
                states[name] = pipeline.skip(piece, RATE, states[name])
            else:
                _, states[name] = pipeline.step(piece, RATE, states[name])
        progress()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return Measured(plan, samples, {}, noise, load, cores)


def startup_s(name: str, plan: Plan) -> float:
    """Seconds from the start of a Python process to the first chunk's end."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", STARTUP, name, str(plan.chunk_ms), str(plan.threads)],
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - start


def _sample(
    pipeline: StreamPipeline, piece: np.ndarray, state: Any, plan: Plan
) -> tuple[Sample, Any]:
    """Step from one state some times and keep the quickest; then its floor."""
    best: dict[str, float] = {}
    clock = CLOCKS[plan.clock]
    for _ in range(plan.repeats):
        start = clock()
        outputs, following = pipeline.step(piece, RATE, state)
        total = 1000 * (clock() - start)
        if not best or total < best[TOTAL]:
            spent = {s: sum(o.compute_ms.get(s, 0.0) for o in outputs) for s in STAGES}
            best = {**spent, TOTAL: total}
    with plain_steps(pipeline.system.model), recording(pipeline) as calls:
        pipeline.step(piece, RATE, state)
    floor = {stage: time_calls(calls.get(stage, []), plan.repeats, clock=clock) for stage in STAGES}
    floor[TOTAL] = sum(floor.values())
    revised = pipeline.revises
    return Sample(
        best,
        floor,
        state_bytes(following) / 2**20,
        resident_mib(),
        sum(len(o.mt_tokens) for o in outputs) - (len(state.prefix or ()) if revised else 0),
        sum(len(o.units) for o in outputs) - (len(state.units or ()) if revised else 0),
    ), following


_operands: list[torch.Tensor] = []


def _reference_ms(clock: Clock) -> float:
    """One fixed product: how much it varies is how much the machine does."""
    if not _operands:
        _operands.extend(torch.ones(192, 192) for _ in range(2))
    start = clock()
    for _ in range(4):
        torch.mm(*_operands)
    return 1000 * (clock() - start)


def percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(list(values), percent)) if values else float("nan")


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")
