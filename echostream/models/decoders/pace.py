"""Speaking faster or slower: how long units last when their durations are not as predicted.

Speed changes by a little from unit to unit, and what rounding to whole frames takes from one unit
is given to the next, so the total is right although a unit lasts one to a few frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FASTEST = 3.0  # beyond it, speech at one frame per unit is no longer understood
SLOWEST = 0.5
SPEED_PER_UNIT = 0.02  # most that speed above 1 changes from one unit to the next
SLOWER_PER_UNIT = 0.05  # and below 1, where a piece of a dozen units is to reach what is wanted
MOST_OWED_FRAMES = 1.0  # what short units could not be shortened by, taken from longer ones


def check_speed(speed: float) -> None:
    """Raises ValueError for a speed that nothing is spoken at."""
    if not SLOWEST <= speed <= FASTEST:
        raise ValueError(f"speed must lie between {SLOWEST:g} and {FASTEST:g}, got {speed}")


def approach(current: float, wanted: float, count: int) -> tuple[float, ...]:
    """Speeds of the next ``count`` units on the way from ``current`` to ``wanted``."""
    speeds = []
    for _ in range(count):
        change = SPEED_PER_UNIT if min(current, wanted) >= 1 else SLOWER_PER_UNIT
        if wanted > current:
            current = min(current + change, wanted)
        else:
            current = max(current - change, wanted)
        speeds.append(current)
    return tuple(speeds)


@dataclass(frozen=True)
class Paced:
    """Units with their places in time.

    Attributes:
        frames: how long each unit lasts, at least 1.
        owed: frames by which everything before each unit is too short, and after the last.
    """

    frames: tuple[int, ...]
    owed: tuple[float, ...]


def paced(predicted: Sequence[int], speeds: Sequence[float], owed: float = 0.0) -> Paced:
    """Shorten or lengthen durations.

    Args:
        predicted: frames of each unit at speed 1, at least 1.
        speeds: of each unit. At 1, a unit lasts exactly as long as predicted.
        owed: frames by which what came before is too short (negative: too long).
    """
    frames, debts = [], [owed]
    for duration, speed in zip(predicted, speeds, strict=True):
        if speed != 1.0:
            wanted = duration / speed + owed
            rounded = math.floor(wanted + 0.5)
            duration = min(max(rounded, 1), duration) if speed > 1 else max(rounded, duration)
            owed = min(max(wanted - duration, -MOST_OWED_FRAMES), MOST_OWED_FRAMES)
        frames.append(duration)
        debts.append(owed)
    return Paced(tuple(frames), tuple(debts))
