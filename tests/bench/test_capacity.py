"""How many sessions fit in real time: the arithmetic, and a report without gaps. No wall time is
compared with any other."""

from __future__ import annotations

import json

import pytest
import torch

from echostream.bench.capacity import (
    Load,
    capacity_figures,
    capacity_markdown,
    measure_load,
    sessions_in_time,
)

requires_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({1: 400.0, 8: 900.0}, (0.0, True)),
        ({1: 10.0, 8: 80.0, 32: 560.0}, (20.0, True)),  # 320 is half-way from 80 to 560
        ({1: 10.0, 8: 320.0, 16: 640.0}, (8.0, True)),
        ({8: 20.0, 16: 40.0}, (128.0, False)),  # beyond what was measured
        ({1: 20.0}, (1.0, False)),
        ({1: 20.0, 8: 19.0}, (8.0, False)),  # no slope to go on with
    ],
)
def test_sessions_are_read_off_a_line(times, expected):
    assert sessions_in_time(times, 320) == expected


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=requires_cuda)])
def test_a_report_is_complete(device):
    load = Load((1, 3), gathered=1, whole=(1, 2), repeats=2, alone=3)
    carried = measure_load("tiny", load, device=device)
    graphs = device == "cuda"
    sizes = {kind: sorted(by_size) for kind, by_size in carried.times.items()}
    assert sizes == {
        "plain": [1, 3],
        "graphed": [1, 3] if graphs else [],
        "heard": [1, 3],
        "gathered": [1],
        "whole": [1, 2],
    }
    assert (carried.capture_s is not None) == graphs
    data = capacity_figures(carried, load)
    assert data["stages"]["vocoder"] > 0
    json.dumps(data)
    text = capacity_markdown({"tiny": data}, load, "here")
    assert text.count("| tiny |") == 5 and "nan" not in text and "simulation" in text


def test_nothing_is_begun_when_the_time_is_up():
    load = Load((1,), whole=(1,), until_s=0)
    carried = measure_load("tiny", load, device="cpu")
    assert not any(carried.times.values())
    data = capacity_figures(carried, load)
    assert data["sessions"] == {} and capacity_markdown({"tiny": data}, load, "here")


@pytest.mark.parametrize("wrong", [(), (8, 1), (0, 1)])
def test_numbers_of_streams_ascend(wrong):
    with pytest.raises(ValueError, match="batches must be positive and ascend, got"):
        Load(wrong)
