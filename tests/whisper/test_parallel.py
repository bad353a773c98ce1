"""Processes that train together take the same step."""

from __future__ import annotations

import torch
from torch import distributed, nn

from echostream.processes import fresh_processes
from echostream.training.warm_start.parallel import Ranks, join_ranks


def take_part(rank: int, address: str) -> None:
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    one, other, unused = (nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
    one.grad = torch.full((2, 3), 1.0 + rank)
    if rank == 0:
        other.grad = torch.ones(2, 3)
    ranks.average_gradients([one, other, unused])
    torch.testing.assert_close(one.grad, torch.full((2, 3), 1.5))
    torch.testing.assert_close(other.grad, torch.full((2, 3), 0.5))
    torch.testing.assert_close(unused.grad, torch.zeros(2, 3))
    assert ranks.largest(3.0 + rank) == 4.0
    assert ranks.first == (rank == 0)
    distributed.destroy_process_group()


def test_gradients_are_averaged_and_times_are_the_same(tmp_path):
    address = f"file://{tmp_path / 'meeting'}"
    context = fresh_processes()
    ranks = [context.Process(target=take_part, args=(rank, address)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]


def test_alone_nothing_is_averaged():
    ranks = join_ranks()
    parameter = nn.Parameter(torch.zeros(2))
    ranks.average_gradients([parameter])
    assert ranks == Ranks() and parameter.grad is None and ranks.largest(2.5) == 2.5
