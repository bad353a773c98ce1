"""Attention keys and values in numpy, for a stack of layers and one stream.

Shapes: P positions, n layers, H heads, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from echostream.models.cache_limits import dropped

LEAST_CAPACITY = 64


class _Memory:
    """(C, n, 2, H, D/H) shared by successive caches, and how far any has written in it."""

    __slots__ = ("array", "written")

    def __init__(self, array: np.ndarray, written: int) -> None:
        self.array, self.written = array, written


@dataclass(frozen=True)
class ArrayCache:
    """What :class:`~echostream.models.kv_cache.KVCache` is to torch, for one row: an immutable view
    into memory that grows by doubling. Appending to the newest view writes behind it; appending to
    an older one copies, so no view ever changes.

    Attributes:
        start, end: slots that it holds.
        offset: how many leading positions were dropped for good.
    """

    memory: _Memory
    start: int = 0
    end: int = 0
    offset: int = 0

    @classmethod
    def empty(cls, layers: int, heads: int, head_dim: int) -> ArrayCache:
        shape = (LEAST_CAPACITY, layers, 2, heads, head_dim)
        return cls(_Memory(np.zeros(shape, dtype=np.float32), 0))

    @property
    def stored(self) -> int:
        """Positions that it still holds."""
        return self.end - self.start

    @property
    def length(self) -> int:
        """Positions ever appended (and not truncated)."""
        return self.offset + self.stored

    @property
    def nbytes(self) -> int:
        """Bytes of the underlying memory."""
        return self.memory.array.nbytes

    def seen(self, window: int | None = None) -> np.ndarray:
        """(P, n, 2, H, D/H) of the last ``window`` positions; None: all that are stored."""
        first = self.start if window is None else max(self.start, self.end - window)
        return self.memory.array[first : self.end]

    def append(self, new: np.ndarray) -> ArrayCache:
        """With (T, n, 2, H, D/H) new positions."""
        cache, end = self, self.end + len(new)
        if self.memory.written != self.end or end > len(self.memory.array):
            stored, needed = self.stored, self.stored + len(new)
            capacity = max(1 << (needed + needed // 2 - 1).bit_length(), LEAST_CAPACITY)
            array = np.zeros((capacity, *self.memory.array.shape[1:]), dtype=np.float32)
            array[:stored] = self.seen()
            cache, end = replace(self, memory=_Memory(array, stored), start=0, end=stored), needed
        cache.memory.array[cache.end : end] = new
        cache.memory.written = end
        return replace(cache, end=end)

    def trim(self, limit: int | None) -> ArrayCache:
        """Drop positions that no future query of window ``limit`` can see, in batches."""
        drop = dropped(self.stored, limit)
        return replace(self, start=self.start + drop, offset=self.offset + drop) if drop else self

    def truncate(self, length: int) -> ArrayCache:
        """The cache as it was when it held so many positions.

        Raises:
            ValueError: a length beyond what was appended, or before what is stored.
        """
        if not self.offset <= length <= self.length:
            raise ValueError(
                f"cannot truncate to {length} positions: the cache holds positions "
                f"{self.offset} to {self.length}"
            )
        return replace(self, end=self.start + length - self.offset)


def causal_mask(past: int, new: int, window: int | None) -> np.ndarray:
    """(T, P + T), True where new position may look: at itself and at what lies at most
    ``window - 1`` positions before it."""
    query = past + np.arange(new)[:, None]
    key = np.arange(past + new)[None]
    visible = key <= query
    return visible if window is None else visible & (key > query - window)


def newest_mask(size: int, window: int | None) -> np.ndarray:
    """(K,), True at the last ``window`` positions."""
    return np.arange(size) >= (0 if window is None else size - window)
