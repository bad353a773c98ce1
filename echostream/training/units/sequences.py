"""Unit sequences: removing and restoring repeats, and the files that hold them.

A unit file has one line per utterance, ``id|unit unit unit``, with one unit per frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from echostream.files import write_atomically


def reduce_units(units: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Collapse runs of one unit.

    Args:
        units: (T,) one per frame.

    Returns:
        (N,) units without repeats and (N,) how many frames each lasted, both int64.
    """
    array = np.asarray(units, dtype=np.int64)
    if array.ndim != 1:
        raise ValueError(f"units must be one-dimensional, got shape {array.shape}")
    if not len(array):
        return array, array.copy()
    starts = np.flatnonzero(np.concatenate([[True], array[1:] != array[:-1]]))
    return array[starts], np.diff(np.append(starts, len(array)))


def write_units(path: Path, units: Mapping[str, Sequence[int] | np.ndarray]) -> None:
    """Write a unit file atomically."""
    lines = (f"{name}|{' '.join(map(str, values))}\n" for name, values in units.items())
    write_atomically(path, "".join(lines))


def read_units(path: Path, num_units: int | None = None) -> dict[str, np.ndarray]:
    """Read a unit file.

    Args:
        num_units: if given, units must lie below it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed line, named by number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such unit file: {path}")
    found: dict[str, np.ndarray] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, separator, values = line.partition("|")
        if not separator or not name:
            raise ValueError(f"{path}, line {number}: expected 'id|units', got {line[:40]!r}")
        if name in found:
            raise ValueError(f"{path}, line {number}: utterance {name!r} occurs twice")
        try:
            units = np.array([int(value) for value in values.split()], dtype=np.int64)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: units must be integers: {error}") from error
        limit = np.inf if num_units is None else num_units
        if len(units) and not (0 <= units.min() and units.max() < limit):
            raise ValueError(
                f"{path}, line {number}: units must lie between 0 and {limit - 1}, "
                f"got {units.min()} to {units.max()}"
            )
        found[name] = units
    return found
