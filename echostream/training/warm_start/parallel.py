"""One process a core, or a GPU: each has its own batches, and all take the same step.

Two processes of one thread each hear more than one process of two threads. ``torchrun`` starts
them and says in the environment who is who.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

PATIENCE = datetime.timedelta(minutes=60)  # others wait while the first one measures


@dataclass(frozen=True)
class Ranks:
    """Which of several processes this one is.

    Attributes:
        rank: from 0; the first one measures, saves and reports.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Give every process the mean gradient; a missing one counts as zero."""
        if self.size == 1:
            return
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        joined = torch.cat([gradient.reshape(-1) for gradient in found])
        distributed.all_reduce(joined)
        joined /= self.size
        parts = joined.split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def largest(self, value: float) -> float:
        """The largest of all processes' values."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return shared.item()


def join_ranks() -> Ranks:
    """Meet the other processes that ``torchrun`` has started; without it there are none."""
    if not distributed.is_torchelastic_launched():
        return Ranks()
    distributed.init_process_group("gloo", timeout=PATIENCE)
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
