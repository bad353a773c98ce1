"""The timing command: forced rates, a floor of real arithmetic, complete reports. No wall time is
compared with any other."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from echostream.assets import model_dir
from echostream.bench import systems as bench_systems
from echostream.bench import timing
from echostream.bench.bench_report import figures, markdown
from echostream.bench.floor import recording, time_calls
from echostream.bench.systems import Name, Rates, forced_pipeline, load_system
from echostream.bench.timing import STAGES, TOTAL, Plan, measure, speech
from echostream.cli import main
from echostream.config import ChunkConformerConfig, preset
from echostream.precision import convert

RATE = 16000
FAST = {"seconds": (2.0, 4.0), "repeats": 1}


@pytest.fixture(autouse=True)
def _no_pinning(monkeypatch):
    """The tests' process stays where it is."""
    monkeypatch.setattr(timing, "pin", lambda threads: (0,))


@pytest.fixture
def small_streamspeech(monkeypatch):
    """The chunk Conformer in tiny sizes under its preset's name."""
    encoder = ChunkConformerConfig(
        embed_dim=32, layers=1, attention_heads=4, ffn_dim=64, conv_channels=8
    )
    tiny = replace(preset("tiny"), encoder=encoder)
    monkeypatch.setattr(
        bench_systems, "preset", lambda name: tiny if name == "streamspeech" else preset(name)
    )


def test_rates_are_forced_and_reports_are_complete():
    plan = Plan(("tiny",), rates=Rates(3.0, 25.0), **FAST)
    data = figures(measure(plan))
    rows = data["systems"]["tiny"]["positions"]
    assert set(rows) == {"2", "4"}
    chunks = plan.window * plan.chunk_ms / 1000
    for row in rows.values():
        assert abs(row["tokens_written"] - 3 * chunks) <= 1
        assert abs(row["units_spoken"] - 25 * chunks) <= 25 / 3 + 1
        for stage in STAGES:
            assert 0 <= row[stage]["median"] <= row[stage]["p95"]
        assert row["encoder"]["floor"] > 0 and row["vocoder"]["floor"] > 0
        assert row[TOTAL]["floor"] == pytest.approx(
            sum(row[stage]["floor"] for stage in STAGES), rel=0.5
        )
        assert row["over_first"] == 1.0 and row["state_mib"] > 0
    json.dumps(data)
    text = markdown(data)
    assert text.count("| tiny |") == 3 and "nan" not in text


def test_recomputing_writes_and_speaks_as_much(small_streamspeech):
    plan = Plan(("streamspeech", "streamspeech:recompute"), **FAST)
    data = figures(measure(plan))
    one, other = (data["systems"][name]["positions"] for name in plan.systems)
    for second in one:
        assert one[second]["tokens_written"] == other[second]["tokens_written"] > 0
        assert one[second]["units_spoken"] == other[second]["units_spoken"] > 0
    # It synthesises everything again: more arithmetic the longer it lasts, whatever the clock says.
    pipeline = forced_pipeline(
        "streamspeech:recompute", load_system("streamspeech"), Rates(), chunk_ms=320
    )
    state, frames = pipeline.init_state(), []
    for _ in range(12):
        with recording(pipeline) as calls:
            _, state = pipeline.step(speech(0.32), RATE, state)
        frames.append(max(args[-2].size(0) for _, args, _ in calls["ctc"]))
    assert frames == sorted(frames) and frames[-1] > 3 * frames[0]
    # Skipping leaves as much behind as hearing does.
    skipped = pipeline.init_state()
    for _ in range(12):
        skipped = pipeline.skip(speech(0.32), RATE, skipped)
    assert skipped.units == state.units
    assert len(skipped.prefix) == len(state.prefix) and skipped.fed == state.fed
    assert np.array_equal(skipped.samples, state.samples)
    assert skipped.received == state.received


@torch.no_grad()
def test_floor_is_the_steps_own_arithmetic():
    pipeline = forced_pipeline("tiny", load_system("tiny"), Rates(), chunk_ms=320)
    state = pipeline.init_state()
    for _ in range(3):
        _, state = pipeline.step(speech(0.32), RATE, state)
    with recording(pipeline) as calls:
        pipeline.step(speech(0.32), RATE, state)
    encoder = pipeline.system.model.encoder
    weights = {p.data_ptr() for p in encoder.emformer.parameters() if p.dim() == 2}
    used = {
        arg.data_ptr()
        for _, args, _ in calls["encoder"]
        for arg in args
        if isinstance(arg, torch.Tensor)
    }
    assert weights <= used
    assert time_calls(calls["encoder"]) > 0 and time_calls([]) >= 0


def test_command_writes_both_reports(tmp_path, capsys):
    code = main(
        ["bench", "tiny", "--seconds", "2", "--repeats", "1"]
        + ["--json", str(tmp_path / "a" / "b.json"), "--markdown", str(tmp_path / "b.md")]
    )
    assert code == 0
    data = json.loads((tmp_path / "a" / "b.json").read_text())
    assert data["systems"]["tiny"]["late_over_early"] == 1.0
    assert (tmp_path / "b.md").read_text() == capsys.readouterr().out == markdown(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds", "5", "1"], "--seconds must ascend"),
        (["--seconds", "1", "5"], "--seconds must cover the 6 x 320 ms"),
        (["--seconds", "1", "--chunk-ms", "2560"], "--seconds must cover the 1 x 2560 ms"),
        (["--chunk-ms", "0"], "--chunk-ms must be at least 1, got 0"),
        (["--sessions", "4", "1"], "numbers of sessions must be positive and ascend, got (4, 1)"),
        (["--sessions", "0"], "numbers of sessions must be positive and ascend, got (0,)"),
        (["--clock", "cpu", "--threads", "2"], "--clock cpu adds up the time of all threads"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--tokens-per-second", "0"], "rate of tokens must be positive, got 0"),
        (["tiny"], "systems must differ from each other"),
    ],
)
def test_bad_plans_are_refused(options, message, capsys):
    assert main(["bench", "tiny", *options]) == 2
    assert message in capsys.readouterr().err


@torch.no_grad()
def test_a_name_may_end_in_a_number_format(monkeypatch):
    assert Name.parse("tiny") == Name("tiny")
    assert Name.parse("some:where:int8") == Name("some:where", "int8")
    assert Name.parse("streamspeech:bf16:recompute") == Name("streamspeech", "bf16", recompute=True)
    assert Name.parse("a/b:int8:compiled") == Name("a/b", "int8", compiled=True)
    assert Name.parse("a/b:compiled") == Name("a/b", compiled=True)
    monkeypatch.setattr(
        bench_systems, "convert", lambda m, d, where: convert(m, d, where, min_int8_weights=0)
    )
    pipeline = forced_pipeline("tiny:int8", load_system("tiny:int8"), Rates(), chunk_ms=320)
    with recording(pipeline) as calls:
        pipeline.step(speech(0.32), RATE, pipeline.init_state())
    assert any("linear_dynamic" in str(call[0]) for call in calls["encoder"])
    assert time_calls(calls["encoder"]) > 0


def test_stages_read_the_clock_that_was_asked_for(monkeypatch):
    """Of a clock that ticks once a reading, every stage takes the same whole number of ticks."""
    ticks = itertools.count()
    monkeypatch.setitem(timing.CLOCKS, "cpu", lambda: float(next(ticks)))
    plan = Plan(("tiny",), clock="cpu", **FAST)
    data = figures(measure(plan))
    # It is timed before and behind the CTC heads.
    assert data["systems"]["tiny"]["positions"]["4"]["encoder"]["median"] == 2000.0
    assert data["clock"] == "cpu"


def test_trained_weights_write_and_speak_to_the_end():
    """They would end the sentence, and then say no more."""
    shipped = str(model_dir("echostream"))
    row = figures(measure(Plan((shipped,), seconds=(14.0,), repeats=1)))
    found = row["systems"][shipped]["positions"]["14"]
    assert found["tokens_written"] >= 5 and found["units_spoken"] > 0
    assert found["vocoder"]["median"] > 0


def test_recomputing_needs_a_streamspeech(capsys):
    assert main(["bench", "tiny:recompute", "--seconds", "2"]) == 2
    assert "recomputing is for StreamSpeech's" in capsys.readouterr().err


def test_unknown_systems_are_named(capsys):
    assert main(["bench", "nowhere"]) == 2
    assert "unknown preset 'nowhere'" in capsys.readouterr().err
