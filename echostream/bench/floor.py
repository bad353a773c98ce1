"""The arithmetic floor: the matrix products and convolutions of a step, and nothing else.

They are recorded while a step runs, with the tensors they had, and run again one after another. So
the floor has the shapes, the weights and the kernels of the step itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from echostream.translator.stream import current_stage, stage_clock

# Names of operators, without their overloads.
ARITHMETIC = frozenset(
    f"{library}.{name}"
    for library, names in {
        "aten": (
            "mm addmm bmm baddbmm convolution mkldnn_convolution linear _scaled_dot_product_"
            "flash_attention_for_cpu _scaled_dot_product_attention_math _fft_r2c"
        ).split(),
        "quantized": ("linear_dynamic",),
        "mkldnn": ("_convolution_pointwise", "_convolution_pointwise_", "_linear_pointwise"),
    }.items()
    for name in names
)


Call = tuple[Callable, tuple, dict]


class Recorder(TorchDispatchMode):
    """Keeps the arithmetic that runs under it, by stage."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str | None, list[Call]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if str(func).rsplit(".", 1)[0] in ARITHMETIC:
            self.calls.setdefault(current_stage.get(), []).append((func, args, kwargs))
        return func(*args, **kwargs)


@contextmanager
def recording() -> Iterator[Recorder]:
    recorder = Recorder()
    with recorder:
        yield recorder


@torch.no_grad()
def time_calls(calls: list[Call], repeats: int = 3) -> float:
    """Milliseconds that recorded calls take alone, the quickest of some runs."""
    best, clock = float("inf"), stage_clock.get()
    for _ in range(repeats):
        start = clock()
        for func, args, kwargs in calls:
            func(*args, **kwargs)
        best = min(best, clock() - start)
    return 1000 * best
