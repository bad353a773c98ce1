"""Phone units: what is said and how high, once per symbol of a phonemic text.

A unit is a symbol and a pitch class. It lasts as long as the symbol does, so runs of units are
long, and text tells them: phonemes come from a dictionary and rules, durations and pitch from a
small network (:mod:`echostream.models.decoders.phone_prosody`).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

START, END = "^", "$"
PITCH_FLOOR_HZ = 50.0  # below it, a pitch curve only passes from voice to none


@dataclass(frozen=True)
class PhoneInventory:
    """Which units there are.

    Attributes:
        symbols: one character each; ``^`` and ``$`` stand for the ends of a sentence.
        pitch_edges: rising, Hz; pitch class c lies above c of them.
    """

    symbols: tuple[str, ...]
    pitch_edges: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(set(self.symbols)) < len(self.symbols) or any(len(s) != 1 for s in self.symbols):
            raise ValueError(f"symbols must be different single characters, got {self.symbols}")
        if not {START, END} <= set(self.symbols):
            raise ValueError(f"symbols must hold {START!r} and {END!r}, got {self.symbols}")
        edges = self.pitch_edges
        if any(not 0 < low < high for low, high in zip(edges, edges[1:], strict=False)):
            raise ValueError(f"pitch_edges must be positive and rise, got {edges}")

    @property
    def pitch_classes(self) -> int:
        return len(self.pitch_edges) + 1

    @property
    def num_units(self) -> int:
        return len(self.symbols) * self.pitch_classes

    def known(self, phonemes: str) -> str:
        """What of a phonemic text the inventory has."""
        return "".join(symbol for symbol in phonemes if symbol in self.symbols)

    def indices(self, phonemes: str) -> list[int]:
        """Numbers of symbols.

        Raises:
            ValueError: a symbol that is not there.
        """
        place = {symbol: index for index, symbol in enumerate(self.symbols)}
        for position, symbol in enumerate(phonemes):
            if symbol not in place:
                raise ValueError(f"no such symbol: {symbol!r} at position {position}")
        return [place[symbol] for symbol in phonemes]

    def pitch_class(self, log_f0: float) -> int:
        """Of a pitch, given as the natural logarithm of Hz."""
        return bisect.bisect_right(self.pitch_edges, math.exp(log_f0))

    def units(self, symbols: Sequence[int], log_f0: Sequence[float]) -> list[int]:
        """One unit per symbol, from symbol numbers and pitches."""
        classes = self.pitch_classes
        return [
            symbol * classes + self.pitch_class(pitch)
            for symbol, pitch in zip(symbols, log_f0, strict=True)
        ]


def bridged_log_pitch(f0: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A pitch curve without holes.

    Args:
        f0: (F,) in Hz, anything below ``PITCH_FLOOR_HZ`` where there is none.

    Returns:
        (F,) log pitch, straight across the holes, and (F,) where there was pitch. Without any
        pitch at all, the former is that of the floor.
    """
    curve = np.asarray(f0, dtype=np.float64)
    voiced = curve >= PITCH_FLOOR_HZ
    if not voiced.any():
        return np.full(len(curve), math.log(PITCH_FLOOR_HZ)), voiced
    at = np.flatnonzero(voiced)
    return np.interp(np.arange(len(curve)), at, np.log(curve[at])), voiced


def symbol_pitch(
    f0: Sequence[float] | np.ndarray, frames: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean pitch of each symbol.

    Args:
        f0: (F,) in Hz, one per frame.
        frames: (N,) how many frames each symbol lasts; they sum to F.

    Returns:
        (N,) mean log pitch, over voiced frames where a symbol has any, and (N,) the number of
        voiced frames.
    """
    curve, voiced = bridged_log_pitch(f0)
    if sum(frames) != len(curve):
        raise ValueError(f"symbols last {sum(frames)} frames, but there is pitch for {len(curve)}")
    pitches, counts, start = [], [], 0
    for length in frames:
        part, real = curve[start : start + length], voiced[start : start + length]
        chosen = part[real] if real.any() else part
        pitches.append(float(chosen.mean()) if len(chosen) else float("nan"))
        counts.append(int(real.sum()))
        start += length
    return np.array(pitches), np.array(counts)
