"""The streaming protocol every stateful part follows, state trees, and the segment partition.

A component has ``init_state(batch_size) -> State`` and ``step(x, state, ...) -> (output, State)``.
State is explicit: ``step`` never changes the state it is given, so an old state is a rollback, and
any number of streams share one set of weights. Offline computation is one ``step`` on a fresh
state, or a ``forward`` that shares all arithmetic with it.

A state is a *tree*: frozen dataclasses and tuples of batch-first tensors, with one row a stream.
Tensors have the same shape from the first step to the last; what a row has not filled yet is
masked. How far each row has got stands beside them in :class:`PerRow` counters, on the host: masks
are made from them without waiting for an accelerator. So streams at different positions step
together, and everything else one does with states is written once, here, for all of them: put rows
together, take rows out, move, count bytes, save and load.

Letters used in shape comments throughout: B batch, T time, D model width, S segment frames,
R right-context frames, L left-context frames, M memory slots, V vocabulary, H heads.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from echostream.files import atomic_path

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

StateT = TypeVar("StateT")


class StreamingModule(Protocol[StateT]):
    """What every stateful part offers; some take further keyword arguments."""

    def init_state(self, batch_size: int = 1) -> StateT:
        """Fresh state of so many rows, on the weights' device."""

    def step(self, x: Tensor, state: StateT) -> tuple[Tensor, StateT]:
        """New input of all rows to new output, and the state behind it."""


class PerRow(tuple[Any, ...]):
    """One Python value for each row of a batch: counters, mostly."""

    __slots__ = ()

    def __new__(cls, values: Any = ()) -> PerRow:
        return super().__new__(cls, values)

    @classmethod
    def of(cls, value: Any, rows: int) -> PerRow:
        """The same value for so many rows."""
        return cls((value,) * rows)

    @property
    def uniform(self) -> bool:
        """Whether all rows have the same value."""
        return len(set(self)) <= 1


def per_row(value: Any, rows: int) -> PerRow:
    """One value for all rows, or a sequence of one each, as :class:`PerRow`.

    Raises:
        ValueError: a sequence of another length.
    """
    if isinstance(value, (bool, int)):
        return PerRow.of(value, rows)
    values = PerRow(value)
    if len(values) != rows:
        raise ValueError(f"{rows} rows need {rows} values, got {len(values)}")
    return values


def join_rows(states: Sequence[StateT]) -> StateT:
    """Put the rows of several states into one, in order.

    Raises:
        ValueError: the states differ in what is not kept row by row.
    """
    joined: StateT = _joined(states)
    return joined


def _is_dataclass(part: Any) -> TypeGuard[DataclassInstance]:
    """Whether it is an object of one, not the class itself."""
    return dataclasses.is_dataclass(part) and not isinstance(part, type)


# What a tree consists of shows only when it is taken apart. So the functions that do it say nothing
# of types; those in front of them say that a state of the same kind comes out.
def _joined(states: Sequence[Any]) -> Any:
    first = states[0]
    if len(states) == 1:
        return first
    if hasattr(first, "join_rows"):
        return first.join_rows(states)
    if isinstance(first, Tensor):
        return torch.cat(list(states))
    if isinstance(first, PerRow):
        return PerRow(value for state in states for value in state)
    if _is_dataclass(first):
        return dataclasses.replace(
            first,
            **{
                field.name: _joined([getattr(state, field.name) for state in states])
                for field in dataclasses.fields(first)
            },
        )
    if isinstance(first, tuple):
        return tuple(_joined(parts) for parts in zip(*states, strict=True))
    if any(state != first for state in states):
        raise ValueError(f"these states cannot be rows of one batch: {first!r} and others differ")
    return first


def take_rows(state: StateT, rows: Sequence[int]) -> StateT:
    """The state of some rows, which shares no memory with the others."""
    taken: StateT = _taken(state, rows)
    return taken


def _taken(state: Any, rows: Sequence[int]) -> Any:
    if hasattr(state, "take_rows"):
        return state.take_rows(rows)
    if isinstance(state, Tensor):
        if len(rows) == 1:
            return state[rows[0] : rows[0] + 1].clone()
        return state.index_select(0, torch.tensor(rows, device=state.device))
    if isinstance(state, PerRow):
        return PerRow(state[row] for row in rows)
    return _rebuilt(state, lambda part: _taken(part, rows))


def rows_apart(state: StateT, rows: int) -> list[StateT]:
    """:func:`take_rows` of each row by itself."""
    apart: list[StateT] = _apart(state, rows)
    return apart


def _apart(state: Any, rows: int) -> list[Any]:
    if rows == 1:
        return [state]
    if hasattr(state, "rows_apart"):
        return list(state.rows_apart(rows))
    if isinstance(state, Tensor):
        return [row.clone() for row in state.split(1)]
    if isinstance(state, PerRow):
        return [PerRow((value,)) for value in state]
    if _is_dataclass(state):
        names = [field.name for field in dataclasses.fields(state)]
        parts = [_apart(getattr(state, name), rows) for name in names]
        return [
            dataclasses.replace(state, **dict(zip(names, own, strict=True)))
            for own in zip(*parts, strict=True)
        ]
    if isinstance(state, tuple) and state:
        return list(zip(*(_apart(part, rows) for part in state), strict=True))
    return [state] * rows


def map_tensors(function: Callable[[Tensor], Tensor], state: StateT) -> StateT:
    """A state of the same kind with every tensor exchanged."""
    mapped: StateT = _mapped(function, state)
    return mapped


def _mapped(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    if hasattr(state, "map_tensors"):
        return state.map_tensors(function)
    if isinstance(state, Tensor):
        return function(state)
    return _rebuilt(state, lambda part: _mapped(function, part))


def _rebuilt(state: Any, function: Callable[[Any], Any]) -> Any:
    """A dataclass or tuple with each part exchanged; everything else as it is."""
    if isinstance(state, PerRow):
        return state
    if _is_dataclass(state):
        parts = {f.name: function(getattr(state, f.name)) for f in dataclasses.fields(state)}
        return dataclasses.replace(state, **parts)
    if isinstance(state, tuple):
        return tuple(function(part) for part in state)
    return state


def move(state: StateT, device: torch.device | str) -> StateT:
    """The state on another device."""
    return map_tensors(lambda tensor: tensor.to(device), state)


def tensors_of(state: Any) -> Iterator[Tensor]:
    """All tensors of a state, in a fixed order."""
    if hasattr(state, "tensors"):
        yield from state.tensors()
    elif isinstance(state, Tensor):
        yield state
    elif dataclasses.is_dataclass(state):
        for field in dataclasses.fields(state):
            yield from tensors_of(getattr(state, field.name))
    elif isinstance(state, tuple):
        for part in state:
            yield from tensors_of(part)


def with_tensors(state: StateT, tensors: Sequence[Tensor]) -> StateT:
    """The state whose tensors, in the order of :func:`tensors_of`, are these."""
    remaining = iter(tensors)
    rebuilt = map_tensors(lambda _: next(remaining), state)
    if next(remaining, None) is not None:
        raise ValueError("there are more tensors than the state holds")
    return rebuilt


def state_bytes(state: Any) -> int:
    """Bytes held by a state: of tensors, arrays and whatever else has ``nbytes``."""
    if hasattr(state, "nbytes"):
        return int(state.nbytes)
    if dataclasses.is_dataclass(state):
        return sum(state_bytes(getattr(state, f.name)) for f in dataclasses.fields(state))
    if isinstance(state, (list, tuple)):
        return sum(state_bytes(item) for item in state)
    return 0


def save_state(state: Any, path: Path) -> None:
    """Write a state of tensors and counters to a safetensors file."""
    tensors = {f"{index:04}": t.contiguous().cpu() for index, t in enumerate(tensors_of(state))}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"counters": json.dumps(list(_counters(state)))})


def load_state(path: Path, like: StateT) -> StateT:
    """Read a state that :func:`save_state` wrote.

    Args:
        like: a state of the same component, which gives the structure, the device and the format.

    Raises:
        ValueError: the file holds the state of something else.
    """
    with safe_open(path, "pt") as file:
        stored = [file.get_tensor(key) for key in sorted(file.keys())]
        counters = json.loads((file.metadata() or {}).get("counters", "[]"))
    known = list(tensors_of(like))
    if len(known) != len(stored) or len(counters) != len(list(_counters(like))):
        raise ValueError(
            f"{path}: holds {len(stored)} tensors and {len(counters)} counters, this component's "
            f"state has {len(known)} and {len(list(_counters(like)))}"
        )
    placed = [new.to(old) for new, old in zip(stored, known, strict=True)]
    loaded: StateT = _with_counters(with_tensors(like, placed), iter(counters))
    return loaded


def _counters(state: Any) -> Iterator[list[Any]]:
    if isinstance(state, PerRow):
        yield list(state)
    elif hasattr(state, "counters"):
        yield from state.counters()
    elif dataclasses.is_dataclass(state):
        for field in dataclasses.fields(state):
            yield from _counters(getattr(state, field.name))
    elif isinstance(state, tuple):
        for part in state:
            yield from _counters(part)


def _with_counters(state: Any, counters: Iterator[list[Any]]) -> Any:
    if isinstance(state, PerRow):
        return PerRow(next(counters))
    if hasattr(state, "with_counters"):
        return state.with_counters(counters)
    return _rebuilt(state, lambda part: _with_counters(part, counters))


def window(x: Tensor, starts: Sequence[int], length: int) -> Tensor:
    """(B, T, ...) to (B, length, ...): each row from its own start on, zeros behind the end."""
    missing = max(starts) + length - x.size(1)
    if missing > 0:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    first = starts[0]
    if all(start == first for start in starts):
        return x[:, first : first + length]
    at = torch.arange(length, device=x.device) + from_host(starts, x.device)[:, None]
    at = at.view(*at.shape, *[1] * (x.dim() - 2))
    return x.gather(1, at.expand(-1, -1, *x.shape[2:]))


def shift_in(past: Tensor, new: Tensor, lengths: Sequence[int]) -> Tensor:
    """The last positions of (B, L, ...) ``past`` followed by each row's first ``lengths`` of (B, N,
    ...) ``new``: as many as ``past`` has, sharing no memory with what was dropped."""
    limit, first = past.size(1), lengths[0]
    if torch.compiler.is_exporting():  # a form without branches, for any length
        return torch.cat([past, new[:, :first]], dim=1)[:, first:]
    if any(length != first for length in lengths):
        return window(torch.cat([past, new], dim=1), lengths, limit)
    if first >= limit:
        return new[:, first - limit : first].clone()
    return torch.cat([past[:, first:], new[:, :first]], dim=1)


def from_host(values: Tensor | Sequence[Any], device: torch.device | str) -> Tensor:
    """What the host knows, as a tensor on ``device``. The host goes on at once."""
    tensor = torch.as_tensor(values)
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()  # only from such memory a GPU copies by itself
    return tensor.to(device, non_blocking=True)


def valid_mask(lengths: Sequence[int], size: int, device: torch.device | str) -> Tensor:
    """(B, size), True at the first ``lengths`` positions of each row."""
    return torch.arange(size, device=device) < from_host(lengths, device)[:, None]


def filled_mask(lengths: Sequence[int], size: int, device: torch.device | str) -> Tensor:
    """(B, size), True at the last ``lengths`` positions of each row, at most all."""
    missing = from_host([size - length for length in lengths], device)
    return torch.arange(size, device=device) >= missing[:, None]


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


def lengths_to_padding_mask(lengths: torch.Tensor, max_length: int) -> torch.Tensor:
    """(B,) lengths to a (B, T) mask that is True at padding."""
    return torch.arange(max_length, device=lengths.device)[None, :] >= lengths[:, None]
