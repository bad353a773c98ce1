"""How many threads a model computes with.

A chunk of a small model is some hundred operations on a few rows: splitting them over cores costs
more than it gains, and where the cores are shared, threads that wait for each other wait for other
programs too. So small models compute on one thread, and large ones on the physical cores. Threads
that have nothing to do sleep; they do not spin, which would take the core from whoever shares it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# Parameters up to which one thread is at least as quick as several ("Threads" in
# docs/notebook/chunk-cost.md).
SMALL_PARAMETERS = 40_000_000
THREADS_VARIABLE = "OMP_NUM_THREADS"
# What OpenMP's libraries (GNU; LLVM and Intel) read when they are loaded, with torch.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


def wait_passively(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Let this process's threads, and those of its children, sleep while they wait.

    Works before torch is loaded, and leaves alone what the user has set.

    Returns:
        Whether it was early enough.
    """
    if "torch" in sys.modules:
        return False
    for name, value in PASSIVE.items():
        environment.setdefault(name, value)
    return True


def physical_cores() -> int:
    """Cores that this process may use: at most those of its CPU affinity and of its container."""
    from joblib import cpu_count  # takes a tenth of a second, and small models need none

    return cpu_count(only_physical_cores=True)


def count_parameters(model: nn.Module) -> int:
    """Weights of a model, those in eight bits too."""
    count = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if callable(weight):  # quantised modules hand theirs out unpacked
            count += weight().numel()
    return count


def choose_threads(model: nn.Module) -> int:
    """How many threads suit a model: what ``OMP_NUM_THREADS`` says where the user has set it, one
    for small models and for those on a GPU, whose CPU only launches, else the physical cores."""
    import torch

    if os.environ.get(THREADS_VARIABLE):
        return torch.get_num_threads()  # torch has read it
    on_gpu = any(parameter.device.type != "cpu" for parameter in model.parameters())
    return 1 if on_gpu else _by_size(count_parameters(model))


def suitable_threads(parameters: int) -> int:
    """:func:`choose_threads` for a model of so many parameters that is not torch's."""
    asked = os.environ.get(THREADS_VARIABLE, "").split(",")[0]
    return int(asked) if asked.isdecimal() and int(asked) else _by_size(parameters)


def _by_size(parameters: int) -> int:
    return 1 if parameters <= SMALL_PARAMETERS else physical_cores()


def use_threads(model: nn.Module, asked: int | None = None) -> int:
    """Let this process compute with the number of threads that suits a model. For entry points:
    torch has one number for all models of a process.

    Args:
        asked: what the user wants instead.

    Returns:
        The number.
    """
    import torch

    threads = choose_threads(model) if asked is None else asked
    torch.set_num_threads(threads)
    return threads
