"""Where new units lie in time, and what of their speech can still change.

Predicted durations depend on a unit's neighbours, so the last units are laid out once more when
others follow. Everything is counted in unit frames and in Python numbers, whatever computes the
durations and the waveform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echostream.models.decoders.pace import Paced, approach, paced


@dataclass(frozen=True)
class Growth:
    """What one write brings to one stream, in frames from the end of the settled ones.

    Attributes:
        settled: frames settled before this write.
        first_new: first frame whose samples are wanted.
        end: end of the frames.
        newly_settled: frames that settle with this write.
    """

    settled: int
    first_new: int
    end: int
    newly_settled: int


@dataclass(frozen=True)
class UnitTail:
    """The end of what one row has spoken.

    Attributes:
        units: the most recent units, oldest first: those whose durations may still change, and
            those that these durations depend on.
        settled_frames: unit frames that no later unit can change.
        speeds: of the units whose durations may still change.
        owed_frames: by which what was settled is too short for its speed.
        speed: of the last unit.
    """

    units: tuple[int, ...] = ()
    settled_frames: int = 0
    speeds: tuple[float, ...] = ()
    owed_frames: float = 0.0
    speed: float = 1.0


@dataclass(frozen=True)
class UnitWrite:
    """What one row is about to speak.

    Attributes:
        units: from the first one that is laid out.
        pace: their frames.
        known: how many of them were spoken before.
        growth: the frames that this makes.
        tail: what is remembered of it.
    """

    units: tuple[int, ...]
    pace: Paced
    known: int
    growth: Growth
    tail: UnitTail


def lay_out(
    new: Sequence[int], tail: UnitTail, speed: float, predicted: Sequence[int], unsettled_units: int
) -> UnitWrite:
    """Lay out one row's new units behind those whose durations may still change.

    Args:
        speed: predicted durations shrink by this factor, reached smoothly from the speed of the
            last unit (see :mod:`echostream.models.decoders.pace`).
        predicted: frames at speed 1 of each unit of the tail and of each new one.
        unsettled_units: how many units at the end may still change; as many before them are what
            their durations depend on.
    """
    everything = (*tail.units, *new)
    first = max(len(tail.units) - unsettled_units, 0)
    known = len(tail.units) - first
    speeds = (*tail.speeds, *approach(tail.speed, speed, len(new)))
    pace = paced(predicted[first:], speeds, tail.owed_frames)
    settling = max(len(speeds) - unsettled_units, 0)
    growth = Growth(
        settled=tail.settled_frames,
        first_new=sum(pace.frames[:known]),
        end=sum(pace.frames),
        newly_settled=sum(pace.frames[:settling]),
    )
    following = UnitTail(
        everything[len(everything) - min(2 * unsettled_units, len(everything)) :],
        tail.settled_frames + growth.newly_settled,
        speeds[settling:],
        pace.owed[settling],
        speeds[-1],
    )
    return UnitWrite(everything[first:], pace, known, growth, following)
