"""Sessions at once at forced rates: how much they do, and that the report has no gaps. No wall time
is compared with any other."""

from __future__ import annotations

import itertools
import json

import pytest

from echostream.bench.crowd import (
    STAGGER,
    WARM_ROUNDS,
    crowd,
    crowd_figures,
    crowd_markdown,
    crowds,
)
from echostream.bench.systems import Rates, forced_pipeline, load_system
from echostream.bench.timing import STAGES, TOTAL
from echostream.cli import main
from echostream.translator.model_stages import ModelStages

ROUNDS = 4


@pytest.fixture(scope="module")
def tiny():
    return load_system("tiny")


def test_sessions_write_and_speak_at_the_rates_together(tiny, monkeypatch):
    sizes = []
    listen = ModelStages._listen

    def counted(self, rows, *rest):
        sizes.append(len(rows))
        return listen(self, rows, *rest)

    monkeypatch.setattr(ModelStages, "_listen", counted)
    pipeline = forced_pipeline("tiny", tiny, Rates(3.0, 25.0), chunk_ms=320)
    found = crowd(pipeline, 5, ROUNDS)
    seconds = 0.32 * ROUNDS
    assert abs(found.tokens - 3 * seconds) <= 1
    assert abs(found.units - 25 * seconds) <= 25 / 3 + 1
    assert len(found.ms[TOTAL]) == ROUNDS and found.state_mib > 0
    assert sum(sizes) == sum(
        max(WARM_ROUNDS + STAGGER + ROUNDS - session % STAGGER, 0) for session in range(5)
    )
    assert sizes[-ROUNDS:] == [5] * ROUNDS  # a step for all of them


def test_a_report_is_complete(tiny):
    rows = list(crowds("tiny", tiny, (1, 3), Rates(), chunk_ms=320, rounds=2))
    data = crowd_figures(rows, 320)
    assert list(data) == ["1", "3"] and data["1"]["over_first"] == 1.0
    for row in data.values():
        assert row["encoder"] > 0 and row["round_p95"] >= row["round"] > 0
        assert row[TOTAL] >= max(row[stage] for stage in STAGES)
    json.dumps(data)
    text = crowd_markdown({"tiny": data})
    assert text.count("| tiny |") == 2 and "nan" not in text


def test_more_sessions_are_not_tried_where_fewer_are_late(tiny):
    """By a clock that ticks once a reading, a second at a time: everybody is late."""
    ticks = itertools.count()
    rows = crowds(
        "tiny", tiny, (1, 2), Rates(), chunk_ms=320, rounds=1, clock=lambda: float(next(ticks))
    )
    (only,) = rows
    assert only.sessions == 1 and not crowd_figures([only], 320)["1"]["keep_up"]


def test_nothing_is_begun_when_the_time_is_up(tiny):
    assert not list(crowds("tiny", tiny, (1,), Rates(), chunk_ms=320, until=0.0))


def test_the_command_runs_sessions(capsys):
    options = ["--seconds", "2", "--repeats", "1", "--sessions", "1", "2"]
    assert main(["bench", "tiny", *options]) == 0
    assert "| tiny | 2 |" in capsys.readouterr().out
