"""What an encoder step costs that several streams share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echostream.bench.floor import time_calls
from echostream.checkpoint import System
from echostream.config import ChunkConformerConfig
from echostream.models.batched import encode_together, stack_states, unstack_states
from echostream.models.echostream_model import EchoStreamState

WARM_CHUNKS = 12  # behind them, an encoder's caches are full
ROUNDS = 10


@dataclass(frozen=True)
class Together:
    """Milliseconds of one encoder step.

    Attributes:
        streams: how many shared a step.
        alone: of one stream's step.
        shared: of one step of them all.
        gathered: of the same with their states put side by side before and taken apart behind it.
    """

    streams: int
    alone: float
    shared: float
    gathered: float

    @property
    def per_stream(self) -> float:
        """A shared step's time per stream over that of a step alone."""
        return self.shared / self.streams / self.alone


@torch.no_grad()
def time_together(
    system: System, streams: int, *, chunk_ms: int, rounds: int = ROUNDS
) -> Together | None:
    """Time encoder steps with full caches, alone and shared in turns.

    Returns:
        None for a chunk Conformer, whose streams are computed one by one.
    """
    model = system.model
    if isinstance(model.config.encoder, ChunkConformerConfig):
        return None
    generator = torch.Generator().manual_seed(0)
    shift = model.config.frontend.shift_ms
    shape = (streams, round(chunk_ms / shift), model.config.frontend.num_mel_bins)
    weight = next(model.parameters())

    def features() -> Tensor:
        return torch.randn(shape, generator=generator).to(weight)

    states = [model.init_state() for _ in range(streams)]
    for _ in range(WARM_CHUNKS):
        _, batched = encode_together(model, features(), stack_states(states))
        states = unstack_states(batched)
    chunk, batched = features(), stack_states(states)
    first = states[0].encoder

    def gathered() -> list[EchoStreamState]:
        return unstack_states(encode_together(model, chunk, stack_states(states))[1])

    best = [float("inf")] * 3
    for _ in range(rounds):
        calls = (
            lambda: model.encoder.step(chunk[:1], first),
            lambda: encode_together(model, chunk, batched),
            gathered,
        )
        best = [min(b, time_calls([(c, (), {})], 1)) for b, c in zip(best, calls, strict=True)]
    return Together(streams, *best)
