"""How many sessions a GPU carries in real time, by simulation from the times of shared steps.

No session is run. A step of B streams is timed in parts: the encoder's step with full caches, plain
and as a CUDA graph; listening, which adds the CTC heads; and a whole chunk of B streams at forced
rates of subwords and units. B sessions fit in real time if the step that they share takes no longer
than the chunk that each of them brings; between two measured B the time is taken to grow evenly.
What real sessions add is left out: network, uneven arrival, and waiting for each other.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from echostream.bench.measure import STAGES, TOTAL, median, percentile, speech
from echostream.bench.systems import RATE, Rates, forced_pipeline, load_system
from echostream.checkpoint import System
from echostream.cuda_graphs import graph_encoder
from echostream.models.batched import listen, stack_states, unstack_states
from echostream.models.echostream_model import EchoStreamModel
from echostream.models.transformer_layer import KVCache, UnidirectionalState
from echostream.pipeline_batch import Push, step_batch
from echostream.usual_step import plain_steps, unflatten, usual_inputs

WARM_CHUNKS = 16  # behind them caches are full, and a sentence is under way
WARM_RUNS = 2
UNBOUNDED_FRAMES = 256  # that a head without a limit has heard
# What is timed, and what the report calls it.
KINDS = {
    "plain": "encoder",
    "graphed": "encoder, graph",
    "heard": "encoder and CTC",
    "gathered": "with gathering",
    "whole": "whole chunk",
}


@dataclass(frozen=True)
class Load:
    """What is measured.

    Attributes:
        batches: streams that share a step of the encoder or of listening, ascending.
        gathered: most streams whose states are put side by side and taken apart for it.
        whole: streams that share a whole chunk, ascending; none behind the first that takes longer
            than a chunk lasts.
        repeats: of every step; ``alone`` of an encoder's step of one stream.
        chunk_ms: source per decision.
        until_s: nothing more is begun so many seconds after the start.
    """

    batches: tuple[int, ...] = (1, 8, 32, 128, 512, 1024)
    gathered: int = 128
    whole: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    repeats: int = 8
    alone: int = 100
    chunk_ms: int = 320
    until_s: float = 40.0
    rates: Rates = field(default_factory=Rates)

    def __post_init__(self) -> None:
        for name in ("batches", "whole"):
            sizes = getattr(self, name)
            if list(sizes) != sorted(set(sizes)) or not sizes or sizes[0] < 1:
                raise ValueError(f"{name} must be positive and ascend, got {sizes}")


@dataclass(frozen=True)
class Carried:
    """What was measured.

    Attributes:
        times: by kind and number of streams, milliseconds of every repetition. ``plain`` and
            ``graphed``: the encoder's step, the latter on a GPU alone; ``heard``: encoder (graphed
            if there are graphs) and CTC heads on states that lie side by side; ``gathered``: with
            states put side by side before and taken apart behind; ``whole``: audio to audio.
        stages: the whole chunk of one stream, by stage.
        capture_s: seconds it took to capture the graphs.
    """

    times: dict[str, dict[int, list[float]]]
    stages: dict[str, list[float]]
    capture_s: float | None


def sessions_in_time(times: dict[int, float], chunk_ms: float) -> tuple[float, bool]:
    """The largest number of streams whose step takes no longer than a chunk lasts.

    Args:
        times: milliseconds by number of streams, at least one.

    Returns:
        That number, between two measured ones by a straight line, and whether it was measured:
        beyond the largest number it goes on with the slope of the last two.
    """
    sizes = sorted(times)
    fitting = [size for size in sizes if times[size] <= chunk_ms]
    if not fitting:
        return 0.0, True
    if fitting[-1] != sizes[-1]:
        below, above = fitting[-1], sizes[sizes.index(fitting[-1]) + 1]
    elif len(sizes) > 1:
        below, above = sizes[-2:]
    else:
        return float(sizes[0]), False
    slope = (times[above] - times[below]) / (above - below)
    if slope <= 0:
        return float(sizes[-1]), False
    return below + (chunk_ms - times[below]) / slope, fitting[-1] != sizes[-1]


class _Timer:
    """Times calls on a device, until the time is up."""

    def __init__(self, device: torch.device, load: Load) -> None:
        self.device, self.end = device, time.monotonic() + load.until_s

    @property
    def over(self) -> bool:
        return time.monotonic() > self.end

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def __call__(self, call: Callable[[], Any]) -> float:
        """Milliseconds of one call, and of what it starts on the device."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return 1000 * (time.perf_counter() - start)

    def often(self, call: Callable[[], Any], repeats: int) -> list[float]:
        """The same of every repetition, behind a few to warm up."""
        return [self(call) for _ in range(WARM_RUNS + repeats)][WARM_RUNS:]


@torch.no_grad()
def measure_load(name: str, load: Load, *, device: str) -> Carried:
    """Time a system's shared steps.

    Args:
        name: model directory or preset, as ``echostream bench`` takes it, with an Emformer.
        device: ``cuda``; on ``cpu`` there are no graphs.

    Raises:
        ValueError: the system's encoder is no Emformer.
    """
    system = load_system(name, chunk_ms=load.chunk_ms, device=device)
    model = system.model
    timer = _Timer(next(model.parameters()).device, load)
    usual = usual_inputs(model, load.chunk_ms)
    capture_s = None
    if timer.device.type == "cuda":
        sizes = (*load.batches, *load.whole)
        options = {"chunk_ms": load.chunk_ms, "batch_sizes": sizes}
        capture_s = timer(lambda: graph_encoder(model, **options)) / 1000
    times: dict[str, dict[int, list[float]]] = {kind: {} for kind in KINDS}
    for size in load.batches:
        if timer.over:
            break
        for kind, found in _shared_steps(model, usual, size, load, timer).items():
            times[kind][size] = found
    times["whole"], stages = _whole_chunks(name, system, load, timer)
    return Carried(times, stages, capture_s)


def _shared_steps(
    model: EchoStreamModel, usual: tuple[Tensor, ...], size: int, load: Load, timer: _Timer
) -> dict[str, list[float]]:
    """Steps of ``size`` streams with full caches."""
    # Zeros may compute faster than speech does.
    features, *tensors = (
        torch.randn(size, *x.shape[1:], dtype=x.dtype, device=x.device) for x in usual
    )
    encoder = unflatten(tensors, 0)
    repeats = load.alone if size == 1 else load.repeats
    found = {}
    with plain_steps(model.encoder):
        found["plain"] = timer.often(lambda: model.encoder.step(features, encoder), repeats)
    if model.encoder.usual_step is not None:
        found["graphed"] = timer.often(lambda: model.encoder.step(features, encoder), repeats)
    fresh = model.init_state()
    heads = {
        "asr": _full_caches(fresh.asr, model.config.asr_ctc.context_frames),
        "st": _full_caches(fresh.st, model.config.st_ctc.context_frames),
    }
    rows = (unflatten([x[row : row + 1] for x in tensors], 0) for row in range(size))
    states = [replace(fresh, encoder=row, **heads) for row in rows]
    batched = stack_states(states)
    found["heard"] = timer.often(lambda: listen(model, features, batched), load.repeats)
    if size <= load.gathered:
        found["gathered"] = timer.often(
            lambda: unstack_states(listen(model, features, stack_states(states))[2]), load.repeats
        )
    return found


def _full_caches(state: UnidirectionalState, window: int | None) -> UnidirectionalState:
    """Caches of a head that has heard as much as it looks back to."""
    caches = []
    for cache in state.caches:
        batch, heads, _, width = cache.key.shape
        key = cache.key.new_empty(batch, heads, window or UNBOUNDED_FRAMES, width).normal_()
        caches.append(KVCache.of(key, key.clone()))
    return UnidirectionalState(tuple(caches))


def _whole_chunks(
    name: str, system: System, load: Load, timer: _Timer
) -> tuple[dict[int, list[float]], dict[str, list[float]]]:
    """Chunks of B streams in the middle of a sentence, at forced rates."""
    pipeline = forced_pipeline(name, system, load.rates, chunk_ms=load.chunk_ms)
    size = RATE * load.chunk_ms // 1000
    measured = WARM_RUNS + load.repeats
    clip = speech((WARM_CHUNKS + measured) * load.chunk_ms / 1000 + 1)
    pieces = [clip[n * size : (n + 1) * size] for n in range(WARM_CHUNKS + measured)]
    state = pipeline.init_state()
    for piece in pieces[:WARM_CHUNKS]:
        _, state = pipeline.step(piece, RATE, state)
    whole: dict[int, list[float]] = {}
    stages: dict[str, list[float]] = {}
    for streams in load.whole:
        if timer.over:
            break
        # Copies: streams that share a cache would copy it at their next step.
        states = [copy.deepcopy(state) for _ in range(streams)]
        spent = []
        for piece in pieces[WARM_CHUNKS:]:
            results: list[Any] = []
            pushes = [Push(piece, RATE, own) for own in states]
            spent.append(timer(lambda r=results, p=pushes: r.extend(step_batch(pipeline, p))))
            for result in results:
                if isinstance(result, Exception):
                    raise result
            states = [following for _, following in results]
            if streams == 1:
                for stage in STAGES:
                    parts = [output.compute_ms.get(stage, 0.0) for output in results[0][0]]
                    stages.setdefault(stage, []).append(sum(parts))
        whole[streams] = spent[WARM_RUNS:]
        if median(whole[streams]) > load.chunk_ms:
            break
    return whole, {stage: values[WARM_RUNS:] for stage, values in stages.items()}


def capacity_figures(carried: Carried, load: Load) -> dict[str, Any]:
    """Medians, 95th percentiles and numbers of sessions, for JSON."""
    found: dict[str, Any] = {"steps": {}, "sessions": {}, "capture_s": carried.capture_s}
    for kind, by_size in carried.times.items():
        found["steps"][kind] = {
            str(size): {"median": median(values), "p95": percentile(values, 95)}
            for size, values in by_size.items()
        }
        if by_size:
            medians = {size: median(values) for size, values in by_size.items()}
            count, measured = sessions_in_time(medians, load.chunk_ms)
            found["sessions"][kind] = {"count": int(count), "measured": measured}
    found["stages"] = {stage: median(values) for stage, values in carried.stages.items()}
    return found


def capacity_markdown(systems: dict[str, dict[str, Any]], load: Load, where: str) -> str:
    """Tables of :func:`capacity_figures` by system.

    Args:
        where: names the device.
    """
    lines = [
        f"{where}; {load.chunk_ms} ms chunks, {load.rates.tokens:g} subwords and "
        f"{load.rates.units:g} units a second; ms per step, median (95th percentile).",
        "",
        f"| system | streams | {' | '.join(KINDS.values())} |",
        "| --- |" + " --: |" * (len(KINDS) + 1),
    ]
    for name, found in systems.items():
        steps = found["steps"]
        for size in sorted({size for kind in KINDS for size in steps[kind]}, key=int):
            cells = [steps[kind].get(size) for kind in KINDS]
            shown = ["-" if c is None else f"{c['median']:.2f} ({c['p95']:.2f})" for c in cells]
            lines.append(f"| {name} | {size} | " + " | ".join(shown) + " |")
        fits = [found["sessions"].get(kind) for kind in KINDS]
        shown = [
            "-" if fit is None else f"{'' if fit['measured'] else 'about '}{fit['count']}"
            for fit in fits
        ]
        lines.append(f"| {name} | sessions in real time | " + " | ".join(shown) + " |")
    lines += [
        "",
        f"| system | {' | '.join(STAGES)} | {TOTAL} |",
        "| --- |" + " --: |" * (len(STAGES) + 1),
    ]
    for name, found in systems.items():
        values = [found["stages"].get(stage, 0.0) for stage in STAGES]
        cells = [f"{value:.2f}" for value in (*values, sum(values))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Sessions in real time are a simulation from these times, not sessions that were run: the "
        "most streams whose shared step takes no longer than a chunk lasts, by a straight line "
        "between two measured numbers of streams; 'about': beyond the largest measured. The second "
        "table is one stream's whole chunk by stage.",
    ]
    return "\n".join(lines) + "\n"
