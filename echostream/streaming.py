"""The streaming protocol every stateful part follows, and the segment partition they share.

A component has ``init_state(batch_size) -> State`` and
``step(x, state, *, final) -> (output, State)``. State is explicit: ``step`` never changes the
state it is given, so keeping the old one is a rollback, and any number of streams can share one
set of weights. ``final=True`` flushes whatever was held back. Offline computation is one ``step``
on a fresh state, or a ``forward`` that shares all arithmetic with it.

Letters used in shape comments throughout: B batch, T time, D model width, S segment frames,
R right-context frames, L left-context frames, M memory slots, V vocabulary, H heads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch


def segment_lengths(total: int, segment: int, *, first: int | None = None) -> list[int]:
    """Cut ``total`` encoder frames as a stream in chunks of ``segment`` frames does.

    The first chunk of audio yields one frame less than the others: its last frame still waits for
    the filterbank window and the convolutions' look-ahead, which the next chunk brings. So the
    partition is ``segment - 1, segment, segment, ..., rest``; ``first`` overrides the first
    length.

    Returns:
        Positive lengths that sum to ``total``.
    """
    if segment < 1:
        raise ValueError(f"segment must be at least 1 frame, got {segment}")
    head = segment - 1 if first is None else first
    lengths = [min(head, total)] if head > 0 and total > 0 else []
    remaining = total - sum(lengths)
    lengths += [segment] * (remaining // segment)
    if remaining % segment:
        lengths.append(remaining % segment)
    return lengths


def state_bytes(state: Any) -> int:
    """Bytes held by a (nested) state: anything with ``nbytes``, found in dataclasses, lists and
    tuples."""
    if hasattr(state, "nbytes"):
        return state.nbytes
    if dataclasses.is_dataclass(state):
        return sum(state_bytes(getattr(state, f.name)) for f in dataclasses.fields(state))
    if isinstance(state, (list, tuple)):
        return sum(state_bytes(item) for item in state)
    return 0


def lengths_to_padding_mask(lengths: torch.Tensor, max_length: int) -> torch.Tensor:
    """(B,) lengths to a (B, T) mask that is True at padding."""
    return torch.arange(max_length, device=lengths.device)[None, :] >= lengths[:, None]
