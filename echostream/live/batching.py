"""Which streams are computed together."""

from __future__ import annotations

from echostream.live.scheduler import Scheduler, run_one_by_one


def new_scheduler(max_batch: int) -> Scheduler:
    """A scheduler that runs up to ``max_batch`` ready streams of one pipeline in a step."""
    return Scheduler(run_one_by_one, max_batch=1)
