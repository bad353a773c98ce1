"""Speaking faster: totals, smoothness, and no trace of it at speed 1."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echostream.config import preset
from echostream.models.decoders.pace import (
    FASTEST,
    MOST_OWED_FRAMES,
    SLOWER_PER_UNIT,
    SLOWEST,
    SPEED_PER_UNIT,
    approach,
    paced,
)
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder
from echostream.models.decoders.vocoder_integration import StreamingVocoder, UnitTail
from echostream.models.echostream_model import freeze
from echostream.streaming import PerRow

speeds = st.floats(1.0, FASTEST)
slow_speeds = st.floats(SLOWEST, 1.0)
all_speeds = st.floats(SLOWEST, FASTEST)
long_units = st.lists(st.integers(3, 9), min_size=1, max_size=60)
any_units = st.lists(st.integers(1, 5), min_size=1, max_size=60)


@torch.no_grad()
def make():
    torch.manual_seed(5)
    vocoder = CodeHiFiGANVocoder(replace(preset("tiny").vocoder, upsample_initial_channel=32))
    for parameter in vocoder.parameters():
        torch.nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
    predictor = vocoder.generator.dur_predictor
    predictor.ln2.bias.zero_()
    predictor.proj.weight.mul_(0.3)
    predictor.proj.bias.fill_(1.4)  # about three frames a unit
    return freeze(vocoder.double())


@given(long_units, speeds)
def test_totals_are_right(predicted, speed):
    result = paced(predicted, [speed] * len(predicted))
    assert abs(sum(result.frames) - sum(predicted) / speed) <= 0.5 + 1e-9


@given(any_units, st.lists(speeds, min_size=60, max_size=60))
def test_every_unit_lasts_and_none_longer_than_predicted(predicted, wanted):
    result = paced(predicted, wanted[: len(predicted)])
    assert all(1 <= f <= p for f, p in zip(result.frames, predicted, strict=True))
    assert all(abs(owed) <= MOST_OWED_FRAMES for owed in result.owed)


@given(any_units, slow_speeds)
def test_slow_totals_are_right_and_no_unit_is_shortened(predicted, speed):
    result = paced(predicted, [speed] * len(predicted))
    assert abs(sum(result.frames) - sum(predicted) / speed) <= 0.5 + 1e-9
    assert all(f >= p for f, p in zip(result.frames, predicted, strict=True))


@given(slow_speeds, slow_speeds, st.integers(1, 30))
def test_slow_speed_arrives_within_a_piece(current, wanted, count):
    path = (current, *approach(current, wanted, count))
    steps = [b - a for a, b in zip(path, path[1:], strict=False)]
    assert all(abs(step) <= SLOWER_PER_UNIT + 1e-12 for step in steps)
    assert count < abs(wanted - current) / SLOWER_PER_UNIT + 1 or path[-1] == wanted


@given(any_units, st.lists(all_speeds, min_size=60, max_size=60), st.integers(0, 60))
def test_cut_anywhere(predicted, wanted, cut):
    wanted = wanted[: len(predicted)]
    whole = paced(predicted, wanted)
    first = paced(predicted[:cut], wanted[:cut])
    second = paced(predicted[cut:], wanted[cut:], first.owed[-1])
    assert first.frames + second.frames == whole.frames


@given(any_units, st.floats(-1, 1))
def test_speed_one_changes_nothing(predicted, owed):
    result = paced(predicted, [1.0] * len(predicted), owed)
    assert result.frames == tuple(predicted) and set(result.owed) == {owed}


@given(speeds, speeds, st.integers(1, 150))
def test_speed_changes_gradually_and_arrives(current, wanted, count):
    path = (current, *approach(current, wanted, count))
    steps = [b - a for a, b in zip(path, path[1:], strict=False)]
    assert all(abs(step) <= SPEED_PER_UNIT + 1e-12 for step in steps)
    assert count < abs(wanted - current) / SPEED_PER_UNIT + 1 or path[-1] == wanted


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(1, 15), all_speeds), min_size=1, max_size=6), st.randoms())
@torch.no_grad()
def test_samples_are_the_tail_of_whole_synthesis_at_these_speeds(writes, random):
    vocoder = make()
    streaming = StreamingVocoder(vocoder)
    generator, unit_samples = vocoder.generator, vocoder.config.unit_samples
    state, units, path = streaming.init_state(), [], []
    for count, speed in writes:
        new = [random.randrange(vocoder.config.num_embeddings) for _ in range(count)]
        units += new
        path += approach(path[-1] if path else 1.0, speed, count)
        samples, frames, state = streaming.step(new, state, speed=speed)
        code = torch.tensor([units])
        expected = paced(generator.durations(code)[0].tolist(), path).frames
        assert frames.tolist() == list(expected[-count:])
        whole = generator.synthesize(generator.embed(code, torch.tensor([expected]))).flatten()
        tail = whole[len(whole) - sum(expected[-count:]) * unit_samples :]
        torch.testing.assert_close(samples, tail, atol=1e-12, rtol=0)
        assert state.tails[0].speed == path[-1]


@torch.no_grad()
def test_faster_speech_is_shorter_and_speed_one_the_same():
    streaming = StreamingVocoder(make())
    generator = torch.Generator().manual_seed(2)
    units = torch.randint(0, 50, (200,), generator=generator).tolist()
    plain, _, _ = streaming.step(units, streaming.init_state())
    same, _, _ = streaming.step(units, streaming.init_state(), speed=1.0)
    assert torch.equal(plain, same)
    fast = replace(streaming.init_state(), tails=PerRow([UnitTail(speed=1.4)]))
    quick, _, _ = streaming.step(units, fast, speed=1.4)
    assert len(plain) / len(quick) == pytest.approx(1.4, rel=0.02)


@pytest.mark.parametrize("speed", [SLOWEST - 0.01, FASTEST + 0.01, float("nan")])
def test_impossible_speeds_are_refused(speed):
    streaming = StreamingVocoder(make())
    with pytest.raises(
        ValueError, match=f"speed must lie between {SLOWEST:g} and {FASTEST:g}, got"
    ):
        streaming.step([1], streaming.init_state(), speed=speed)
