"""The shipped systems decide what they decided before the streaming core was rebuilt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.goldens.decisions import CLIPS, RUNS, decide

RECORDED = json.loads((Path(__file__).parent / "goldens/decisions.json").read_text("utf-8"))


def test_every_run_is_recorded():
    assert len(RECORDED) == 2 * (len(RUNS) - 1 + len(CLIPS))


@pytest.mark.parametrize("key", sorted(RECORDED))
def test_decisions_are_as_recorded(key):
    found, expected = list(decide(*key.split("/"))), RECORDED[key]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        probes, power = one.pop("probes"), one.pop("power")
        assert probes == pytest.approx(other["probes"], abs=1e-4)
        assert power == pytest.approx(other["power"], abs=1e-4)
        exact = {name: value for name, value in other.items() if name not in ("probes", "power")}
        assert one == exact
