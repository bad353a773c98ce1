"""Attention keys and values of past positions, for a stack of layers and rows of a batch.

Shapes: B batch, H heads, T new positions, K keys, C capacity, D model width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from echostream.models.cache_limits import TRIM_SLACK, dropped
from echostream.streaming import PerRow, per_row

LEAST_CAPACITY = 64


class _Storage:
    """Memory shared by successive caches: (B, 2, H, C, D/H) keys and values per layer, and how far
    any cache has written in each row."""

    __slots__ = ("layers", "written")

    def __init__(self, layers: list[Tensor], written: list[int]) -> None:
        self.layers, self.written = layers, written


@dataclass(frozen=True)
class KVCache:
    """Attention keys and values of past positions, of all layers of a stack and B rows.

    An immutable view into memory of fixed capacity, in which each row holds the slots from its
    ``start`` to its ``end``. Appending to the newest view writes behind it in constant time;
    appending to an older one (after a rollback) copies, so no view ever changes. When a row's
    memory is full, what it still holds moves to memory of the same or the next larger capacity, a
    power of two; so shapes do not depend on single positions.

    Attributes:
        start, end: slots that each row holds.
        offset: how many leading positions of each row were dropped for good.
        least: slots that its memory has at least.
    """

    storage: _Storage
    start: PerRow
    end: PerRow
    offset: PerRow
    least: int = LEAST_CAPACITY

    @classmethod
    def empty(
        cls,
        layers: int,
        like: Tensor,
        batch_size: int,
        heads: int,
        head_dim: int,
        *,
        window: int | None = None,
    ) -> KVCache:
        """Nothing yet, in memory of the type and place of ``like``.

        Args:
            window: hold as much as a stack of that window ever needs, from the start.
        """
        least = LEAST_CAPACITY if window is None else _capacity(window + 2 * TRIM_SLACK)
        none = PerRow.of(0, batch_size)
        memory = [like.new_zeros(batch_size, 2, heads, least, head_dim) for _ in range(layers)]
        return cls(_Storage(memory, [0] * batch_size), none, none, none, least)

    @property
    def stored(self) -> PerRow:
        """Positions that each row still holds."""
        return PerRow(end - start for start, end in zip(self.start, self.end, strict=True))

    @property
    def lengths(self) -> PerRow:
        """Positions ever appended to each row (and not truncated)."""
        return PerRow(a + b for a, b in zip(self.offset, self.stored, strict=True))

    @property
    def length(self) -> int:
        """:attr:`lengths` of the only row, or of rows that are equally long."""
        if not self.lengths.uniform:
            raise ValueError(f"rows of different lengths have no common one: {self.lengths}")
        return self.lengths[0]

    @property
    def capacity(self) -> int:
        return self.storage.layers[0].size(3) if self.storage.layers else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the underlying memory."""
        return sum(layer.numel() * layer.element_size() for layer in self.storage.layers)

    @property
    def span(self) -> tuple[int, int]:
        """The slots that any row holds."""
        return min(self.start), max(self.end)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """(B, H, K, D/H) keys and values of one layer in the slots of :attr:`span`."""
        first, last = self.span
        memory = self.storage.layers[index][:, :, :, first:last]
        return memory[:, 0], memory[:, 1]

    def extend(self, counts: Sequence[int]) -> Appending:
        """Make room for so many new positions in each row."""
        first = self
        full = any(e + n > self.capacity for e, n in zip(self.end, counts, strict=True))
        if self.storage.layers and (full or tuple(self.storage.written) != self.end):
            needed = max(s + n for s, n in zip(self.stored, counts, strict=True))
            first = self._copied(range(len(self.end)), _capacity(needed))
        end = PerRow(e + n for e, n in zip(first.end, counts, strict=True))
        first.storage.written[:] = end
        return Appending(replace(first, end=end), first.end, PerRow(counts))

    def trim(self, limit: int | None) -> KVCache:
        """Drop positions that no future query of window ``limit`` can see, in batches."""
        drop = [dropped(stored, limit) for stored in self.stored]
        if not any(drop):
            return self
        return replace(
            self,
            start=PerRow(map(sum, zip(self.start, drop, strict=True))),
            offset=PerRow(map(sum, zip(self.offset, drop, strict=True))),
        )

    def truncate(self, lengths: int | Sequence[int]) -> KVCache:
        """Return the cache as it was when its rows held so many positions.

        Raises:
            ValueError: a length is beyond what was appended, or positions that were visible then
                have been dropped for good.
        """
        lengths = per_row(lengths, len(self.end))
        for length, offset, held in zip(lengths, self.offset, self.lengths, strict=True):
            if not offset <= length <= held:
                raise ValueError(
                    f"cannot truncate to {length} positions: the cache holds positions "
                    f"{offset} to {held}"
                )
        rows = zip(self.start, lengths, self.offset, strict=True)
        return replace(self, end=PerRow(start + n - offset for start, n, offset in rows))

    def visible(self, counts: Sequence[int], size: int, window: int | None) -> Tensor | None:
        """Which slots of :attr:`span` new positions may look at: themselves and what lies at most
        ``window - 1`` positions before them.

        Args:
            counts: how many of the positions of each row are new.
            size: T, the most of them.

        Returns:
            (B or 1, 1, T, K) mask, or None if all is visible.
        """
        first, last = self.span
        old = [end - count for end, count in zip(self.end, counts, strict=True)]
        if len(set(old)) == 1 and self.start.uniform and min(counts) == size:
            return causal_mask(size, last - first, window, self._device)
        device = self._device
        query = (
            torch.tensor(old, device=device)[:, None, None]
            + torch.arange(size, device=device)[:, None]
        )
        slot = torch.arange(first, last, device=device)
        mask = (slot <= query) & (slot >= torch.tensor(self.start, device=device)[:, None, None])
        if window is not None:
            mask &= slot > query - window
        return mask[:, None]

    def newest(self, window: int | None) -> Tensor | None:
        """(B or 1, 1, 1, K) mask of each row's last ``window`` positions among :attr:`span`, or
        None if all is visible."""
        first, last = self.span
        low = [first + slots.start for slots in self.newest_slots(window)]
        if set(low) == {first} and self.end.uniform:
            return None
        device = self._device
        slot = torch.arange(first, last, device=device)
        mask = slot >= torch.tensor(low, device=device)[:, None]
        mask &= slot < torch.tensor(self.end, device=device)[:, None]
        return mask[:, None, None]

    def newest_slots(self, window: int | None) -> list[slice]:
        """Where each row's last ``window`` positions lie in :attr:`span`."""
        first, _ = self.span
        return [
            slice((start if window is None else max(start, end - window)) - first, end - first)
            for start, end in zip(self.start, self.end, strict=True)
        ]

    def repeat(self, rows: int) -> KVCache:
        """The same single row seen ``rows`` times, without copying it."""
        layers = [layer.expand(rows, -1, -1, -1, -1) for layer in self.storage.layers]
        start, end, offset = (PerRow.of(v[0], rows) for v in (self.start, self.end, self.offset))
        # Appending copies: what is seen several times must not be written to.
        return KVCache(_Storage(layers, [-1] * rows), start, end, offset)

    def view_row(self, row: int) -> KVCache:
        """One row, without copying it; appending to it copies."""
        layers = [layer[row : row + 1] for layer in self.storage.layers]
        start, end, offset = (PerRow((v[row],)) for v in (self.start, self.end, self.offset))
        return KVCache(_Storage(layers, [-1]), start, end, offset, self.least)

    def join_rows(self, caches: Sequence[KVCache]) -> KVCache:
        """Rows of several caches; see :func:`echostream.streaming.join_rows`."""
        if len({cache.capacity for cache in caches}) == 1:
            # One copy a layer, however many rows there are; slots stay where they are.
            stacks = zip(*(cache.storage.layers for cache in caches), strict=True)
            start, end, offset = (
                PerRow(value for cache in caches for value in getattr(cache, name))
                for name in ("start", "end", "offset")
            )
            storage = _Storage([torch.cat(layers) for layers in stacks], list(end))
            return KVCache(storage, start, end, offset, self.least)
        parts = [(cache, row) for cache in caches for row in range(len(cache.end))]
        return _gathered(parts, max(_capacity(max(cache.stored) + 1) for cache in caches))

    def take_rows(self, rows: Sequence[int]) -> KVCache:
        """Some rows, in memory of their own."""
        stored = self.stored
        return self._copied(rows, _capacity(max(stored[row] for row in rows) + 1))

    def rows_apart(self, rows: int) -> list[KVCache]:
        """Each row by itself, in memory of its own."""
        found = []
        for row, (start, end, offset) in enumerate(
            zip(self.start, self.end, self.offset, strict=True)
        ):
            if self.capacity > max(_capacity(end - start + 1), self.least):
                found.append(self.take_rows([row]))
                continue
            layers = [layer[row : row + 1].clone() for layer in self.storage.layers]
            only = [PerRow((value,)) for value in (start, end, offset)]
            found.append(KVCache(_Storage(layers, [end]), only[0], only[1], only[2], self.least))
        return found

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> KVCache:
        """With memory that ``function`` gives for each layer's."""
        layers = [function(layer) for layer in self.storage.layers]
        return replace(self, storage=_Storage(layers, list(self.end)))

    def tensors(self) -> Iterator[Tensor]:
        """(B, 2, H, C, D/H) of each layer."""
        yield from self.storage.layers

    def counters(self) -> Iterator[list[int]]:
        yield from (list(self.start), list(self.end), list(self.offset))

    def with_counters(self, counters: Iterator[list[int]]) -> KVCache:
        start, end, offset = (PerRow(next(counters)) for _ in range(3))
        return replace(
            self,
            storage=_Storage(self.storage.layers, list(end)),
            start=start,
            end=end,
            offset=offset,
        )

    @property
    def _device(self) -> torch.device:
        return self.storage.layers[0].device

    def _copied(self, rows: Sequence[int], capacity: int) -> KVCache:
        return _gathered([(self, row) for row in rows], capacity)


def _gathered(parts: Sequence[tuple[KVCache, int]], capacity: int) -> KVCache:
    """Rows of caches, moved to the front of memory of their own."""
    stored = PerRow(cache.end[row] - cache.start[row] for cache, row in parts)
    least = parts[0][0].least
    capacity = max(capacity, least)
    layers = []
    for index, like in enumerate(parts[0][0].storage.layers):
        memory = like.new_zeros(len(parts), *like.shape[1:3], capacity, like.size(4))
        for target, ((cache, row), count) in enumerate(zip(parts, stored, strict=True)):
            if count:
                first = cache.start[row]
                held = cache.storage.layers[index][row, :, :, first : first + count]
                memory[target, :, :, :count] = held
        layers.append(memory)
    offset = PerRow(cache.offset[row] for cache, row in parts)
    none = PerRow.of(0, len(parts))
    return KVCache(_Storage(layers, list(stored)), none, stored, offset, least)


def _capacity(needed: int) -> int:
    """Slots for so many positions with room for half as many more: a power of two."""
    return max(1 << (needed + needed // 2 - 1).bit_length(), LEAST_CAPACITY)


@dataclass(frozen=True)
class Appending:
    """New positions on their way into a cache, layer by layer.

    Attributes:
        cache: with them.
        first: the slot of each row's first one.
        counts: how many each row has.
    """

    cache: KVCache
    first: PerRow
    counts: PerRow

    def write(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put (B, H, T, D/H) keys and values of one layer in place; what a row does not count is
        left out.

        Returns:
            All keys and values in the slots of the cache's span. No gradient flows through them:
            streaming is for inference.
        """
        memory, size = self.cache.storage.layers[index], key.size(2)
        if key.requires_grad:
            key, value = key.detach(), value.detach()
        if self.first.uniform and min(self.counts) == size:
            slots = slice(self.first[0], self.first[0] + size)
            memory[:, 0, :, slots] = key
            memory[:, 1, :, slots] = value
        else:
            row, slot, source = self._places
            memory[row, 0, :, slot] = key[row, :, source]
            memory[row, 1, :, slot] = value[row, :, source]
        return self.cache.layer(index)

    @functools.cached_property
    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, slot and index among the new ones of every position that counts."""
        places = [
            (row, first + index, index)
            for row, (first, count) in enumerate(zip(self.first, self.counts, strict=True))
            for index in range(count)
        ]
        device = self.cache._device
        table = torch.tensor(places, dtype=torch.long, device=device).view(-1, 3)
        return table[:, 0], table[:, 1], table[:, 2]


def causal_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """(T, K) mask, True where query may look: the last ``queries`` of ``keys`` positions see
    themselves and what lies at most ``window - 1`` positions before. ``None`` if all is visible.
    """
    if queries == 1 and (window is None or keys <= window):
        return None
    query_index = torch.arange(keys - queries, keys, device=device)[:, None]
    key_index = torch.arange(keys, device=device)[None, :]
    visible = key_index <= query_index
    if window is not None and keys > window:
        visible &= key_index > query_index - window
    return visible
