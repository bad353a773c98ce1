"""The arithmetic floor: the matrix products and convolutions of a step, and nothing else.

They are recorded while a step runs, with the tensors they had, and run again one after another. So
the floor has the shapes, the weights and the kernels of the step itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from echostream.translator.model_stages import ModelStages
from echostream.translator.stages import Clock, Stopwatch
from echostream.translator.stream import StreamPipeline

# Names of operators, without their overloads.
ARITHMETIC = frozenset(
    f"{library}.{name}"
    for library, names in {
        "aten": (
            "mm addmm bmm baddbmm convolution mkldnn_convolution linear _scaled_dot_product_"
            "flash_attention_for_cpu _scaled_dot_product_attention_math _fft_r2c"
        ).split(),
        "quantized": ("linear_dynamic",),
        "mkldnn": ("_linear_pointwise",),
    }.items()
    for name in names
)


Call = tuple[Callable, tuple, dict]


class NamedStages(ModelStages):
    """Stages that know which one is being computed.

    Attributes:
        current: its name; None between stages.
    """

    current: str | None = None

    def watch(self) -> Stopwatch:
        return _NamingStopwatch(self)


class _NamingStopwatch(Stopwatch):
    def __init__(self, stages: NamedStages) -> None:
        super().__init__(stages.device, stages.clock)
        self.stages = stages

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        before, self.stages.current = self.stages.current, stage
        try:
            with super().__call__(stage):
                yield
        finally:
            self.stages.current = before


class _Recorder(TorchDispatchMode):
    """Keeps the arithmetic that runs under it, by stage."""

    def __init__(self, stages: NamedStages) -> None:
        super().__init__()
        self.stages = stages
        self.calls: dict[str | None, list[Call]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if str(func).rsplit(".", 1)[0] in ARITHMETIC:
            self.calls.setdefault(self.stages.current, []).append((func, args, kwargs))
        return func(*args, **kwargs)


@contextmanager
def recording(pipeline: StreamPipeline) -> Iterator[dict[str | None, list[Call]]]:
    """The arithmetic that a pipeline with :class:`NamedStages` computes within it, by stage."""
    if not isinstance(pipeline.stages, NamedStages):
        raise TypeError(f"recording needs NamedStages, got {type(pipeline.stages).__name__}")
    with _Recorder(pipeline.stages) as recorder:
        yield recorder.calls


@torch.no_grad()
def time_calls(calls: list[Call], repeats: int = 3, clock: Clock = time.perf_counter) -> float:
    """Milliseconds that recorded calls take alone, the quickest of some runs."""
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        for func, args, kwargs in calls:
            func(*args, **kwargs)
        best = min(best, clock() - start)
    return 1000 * best
