"""N sessions at once through the driver, at forced rates: what a chunk of them all takes.

The sessions are real: every one has its own audio and state, began at a time of its own, and all
that are due are advanced together, as the server does. They keep up if a round takes no longer than
the chunk that each of them brings. What a server adds is left out: network and uneven arrival
(``scripts/load_test.py`` has both).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from echostream.bench.bench_options import CLOCKS
from echostream.bench.systems import RATE, Name, Rates, forced_pipeline
from echostream.bench.timing import (
    STAGES,
    TOTAL,
    Plan,
    load_planned,
    median,
    percentile,
    speech,
)
from echostream.checkpoint import System
from echostream.session import Session, advance_sessions
from echostream.streaming import state_bytes
from echostream.translator.stages import Clock
from echostream.translator.stream import StreamPipeline

STAGGER = 4  # sessions begin over so many rounds
WARM_ROUNDS = 16  # behind them caches are full, and sentences are under way
OVERDUE = 1.5  # chunks that a round may take, on the median, before more sessions are not tried


@dataclass(frozen=True)
class Crowd:
    """What some sessions took.

    Attributes:
        sessions: how many there were.
        ms: of every measured round, in total and by stage.
        state_mib: of all states together, at the end.
        tokens, units: that a session wrote and spoke in the measured rounds, on average.
    """

    sessions: int
    ms: dict[str, list[float]]
    state_mib: float
    tokens: float
    units: float

    @property
    def per_session(self) -> float:
        """Median milliseconds of a round, for each session."""
        return median(self.ms[TOTAL]) / self.sessions


def crowd(
    pipeline: StreamPipeline, sessions: int, rounds: int, *, clock: Clock = time.perf_counter
) -> Crowd:
    """Run so many sessions; see the module docstring.

    Args:
        pipeline: as :func:`~echostream.bench.systems.forced_pipeline` makes it.
        rounds: measured ones.
        clock: what rounds are timed with.
    """
    size = RATE * pipeline.chunk_ms // 1000
    clip = speech(20.0)
    own = [Session(pipeline, index=index, keep_tokens=False) for index in range(sessions)]
    ms: dict[str, list[float]] = {name: [] for name in (*STAGES, TOTAL)}
    tokens = units = 0
    for number in range(WARM_ROUNDS + STAGGER + rounds):
        due = [session for session in own if session.index % STAGGER <= number]
        for session in due:
            # Every session reads another part of it.
            first = session.received + 1013 * session.index
            piece = np.take(clip, range(first, first + size), mode="wrap")
            session.feed(piece, RATE)
        start = clock()
        decisions = []
        for _, result in advance_sessions(due):
            if isinstance(result, Exception):
                raise result
            decisions += result
        spent = 1000 * (clock() - start)
        if number < WARM_ROUNDS + STAGGER:
            continue
        ms[TOTAL].append(spent)
        for stage in STAGES:
            ms[stage].append(sum(d.compute_ms.get(stage, 0.0) for d in decisions))
        tokens += sum(len(d.mt_tokens) for d in decisions)
        units += sum(len(d.units) for d in decisions)
    held = sum(state_bytes(session.state) for session in own) / 2**20
    return Crowd(sessions, ms, held, tokens / sessions, units / sessions)


def check_sizes(sizes: Sequence[int]) -> None:
    """
    Raises:
        ValueError: the numbers of sessions do not ascend from at least 1.
    """
    if list(sizes) != sorted(set(sizes)) or not sizes or sizes[0] < 1:
        raise ValueError(f"numbers of sessions must be positive and ascend, got {tuple(sizes)}")


def crowds(
    name: str,
    system: System,
    sizes: Sequence[int],
    rates: Rates,
    *,
    chunk_ms: int,
    rounds: int = 10,
    task: str = "s2st",
    clock: Clock = time.perf_counter,
    until: float = float("inf"),
) -> Iterator[Crowd]:
    """:func:`crowd` for ascending numbers of sessions, until they no longer keep up.

    Args:
        name, system: as for :func:`~echostream.bench.systems.forced_pipeline`.
        sizes: numbers of sessions.
        until: nothing more is begun at that time of ``time.monotonic``.

    Raises:
        ValueError: the numbers do not ascend from at least 1.
    """
    check_sizes(sizes)
    pipeline = forced_pipeline(name, system, rates, chunk_ms=chunk_ms, task=task, clock=clock)
    for size in sizes:
        if time.monotonic() > until:
            return
        found = crowd(pipeline, size, rounds, clock=clock)
        yield found
        if median(found.ms[TOTAL]) > OVERDUE * chunk_ms:
            return


def measure_sessions(sizes: Sequence[int], plan: Plan) -> dict[str, dict[str, Any]]:
    """Figures of sessions at once, of all systems of a plan whose streams can share a step."""
    found = {}
    for name in plan.systems:
        if not Name.parse(name).recompute:
            system = load_planned(name, plan)
            clock = CLOCKS[plan.clock]
            rows = list(
                crowds(
                    name,
                    system,
                    sizes,
                    plan.rates,
                    chunk_ms=plan.chunk_ms,
                    task=plan.task,
                    clock=clock,
                )
            )
            found[name] = crowd_figures(rows, plan.chunk_ms)
    return found


def crowd_figures(found: Sequence[Crowd], chunk_ms: int) -> dict[str, Any]:
    """What :func:`crowds` measured, ready for JSON. Ratios are to the first number of sessions."""
    rows = {}
    for one in found:
        rows[str(one.sessions)] = {
            **{stage: median(values) / one.sessions for stage, values in one.ms.items()},
            "round": median(one.ms[TOTAL]),
            "round_p95": percentile(one.ms[TOTAL], 95),
            "over_first": one.per_session / found[0].per_session,
            "keep_up": percentile(one.ms[TOTAL], 95) <= chunk_ms,
            "state_mib": one.state_mib / one.sessions,
            "tokens_written": one.tokens,
            "units_spoken": one.units,
        }
    return rows


def crowd_markdown(systems: dict[str, dict[str, Any]]) -> str:
    """A table of :func:`crowd_figures` by system."""
    lines = [
        "| system | sessions | a round, ms (95th percentile) | keep up | per session and chunk, ms "
        f"| over the first | {' | '.join(STAGES)} | state MiB each |",
        "| --- |" + " --: |" * (len(STAGES) + 6),
    ]
    for name, rows in systems.items():
        for sessions, row in rows.items():
            cells = [
                sessions,
                f"{row['round']:.1f} ({row['round_p95']:.1f})",
                "yes" if row["keep_up"] else "no",
                f"{row[TOTAL]:.2f}",
                f"{row['over_first']:.2f}",
                *(f"{row[stage]:.2f}" for stage in STAGES),
                f"{row['state_mib']:.2f}",
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
