"""Speech that waits to be played, and how much faster to speak so that it stays bounded.

Speech is played from the moment it is written, and without a pause while more is queued. Time is
that of the source: a live stream brings as much of it as passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from echostream.config import BacklogConfig

FULL_SPEED_AT = 2.0  # times the allowed backlog: from there on, speech is as fast as it may be


@dataclass(frozen=True)
class BacklogState:
    """Source time in ms at which everything written so far will have been played."""

    played_ms: float = 0.0


def waiting_ms(state: BacklogState, source_ms: float) -> float:
    """Speech that waits to be played at a point of source time."""
    return max(state.played_ms - source_ms, 0.0)


def after_write(
    state: BacklogState, samples: int, sample_rate: int, source_ms: float
) -> BacklogState:
    """Queue new samples at a point of source time."""
    if not samples:
        return state
    return BacklogState(max(state.played_ms, source_ms) + 1000 * samples / sample_rate)


def speech_speed(backlog_ms: float, config: BacklogConfig) -> float:
    """How fast to speak what is written next: 1 up to ``max_ms``, then smoothly more, and
    ``max_speed`` from :data:`FULL_SPEED_AT` times that on."""
    if not config.max_ms or backlog_ms <= config.max_ms:
        return 1.0
    part = min((backlog_ms / config.max_ms - 1) / (FULL_SPEED_AT - 1), 1.0)
    return 1.0 + (config.max_speed - 1) * part * part * (3 - 2 * part)
