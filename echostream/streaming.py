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


def segment_lengths(total: int, segment: int, right_context: int = 0) -> list[int]:
    """Cut ``total`` encoder frames as a stream in chunks of ``segment`` frames does, up to its
    tail: where a stream's last chunk ends inside a segment, its flush joins that segment.

    After n chunks of audio, ``n * segment - 1`` frames are computable: the last one still waits
    for the filterbank window and the convolutions' look-ahead, which the next chunk brings. The
    right context holds back its length more. So segments end at ``n * segment - 1 -
    right_context``, the last one at ``total``.

    Returns:
        Positive lengths that sum to ``total``.
    """
    if segment < 1:
        raise ValueError(f"segment must be at least 1 frame, got {segment}")
    head = min((-1 - right_context) % segment, total)
    lengths = [head] if head else []
    lengths += [segment] * ((total - head) // segment)
    if (total - head) % segment:
        lengths.append((total - head) % segment)
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
