"""The queue of speech to be played: its length, and that hurrying bounds it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostream.config import BacklogConfig
from echostream.evaluation.runs.run_latency import backlog as queue_after_writes
from echostream.translator.backlog import (
    FULL_SPEED_AT,
    BacklogState,
    after_write,
    speech_speed,
    waiting_ms,
)

RATE = 16000
CONFIG = BacklogConfig(max_ms=2000, max_speed=1.4)


def test_play_starts_when_written_and_goes_on_without_pause():
    state = after_write(BacklogState(), 16000, RATE, 500.0)
    assert waiting_ms(state, 500.0) == 1000.0
    assert waiting_ms(state, 1200.0) == 300.0
    state = after_write(state, 8000, RATE, 1200.0)
    assert waiting_ms(state, 1200.0) == 800.0
    assert waiting_ms(state, 9000.0) == 0.0
    # After a pause, what is written is played at once.
    assert waiting_ms(after_write(state, 1600, RATE, 9000.0), 9000.0) == 100.0
    assert after_write(state, 0, RATE, 9000.0) is state


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 4000)), min_size=1, max_size=30))
def test_agrees_with_the_backlog_of_logged_runs(writes):
    times, durations, state, ours, now = [], [], BacklogState(), [], 0.0
    for gap, duration in writes:
        now += gap
        state = after_write(state, duration * RATE // 1000, RATE, now)
        ours.append(waiting_ms(state, now))
        times.append(now)
        durations.append(float(duration))
    theirs = [point.queued_ms for point in queue_after_writes(times, durations)]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_speed_rises_with_the_backlog_within_its_limits(one, other):
    low, high = sorted((one, other))
    assert 1.0 <= speech_speed(low, CONFIG) <= speech_speed(high, CONFIG) <= CONFIG.max_speed


def test_speed_is_smooth():
    assert speech_speed(CONFIG.max_ms, CONFIG) == 1.0
    assert speech_speed(FULL_SPEED_AT * CONFIG.max_ms, CONFIG) == CONFIG.max_speed
    path = np.array([speech_speed(x, CONFIG) for x in np.arange(0, 6000, 10.0)])
    assert np.diff(path).max() < 2 * (CONFIG.max_speed - 1) * 10 / CONFIG.max_ms
    assert speech_speed(1e9, BacklogConfig(max_ms=0)) == 1.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate", [0.9, 1.1, 1.3])
def test_backlog_stays_bounded(seed, rate):
    """Two hours of speech that comes in random writes and would take ``rate`` times as long as
    its source: unbounded at speed 1 where that exceeds 1, bounded where it is spoken faster."""
    random = np.random.default_rng(seed)
    chunk_ms, most_ms = 320.0, 3000.0
    state = left_alone = BacklogState()
    due, highest = 0.0, 0.0
    for step in range(2 * 3600 * 1000 // int(chunk_ms)):
        now = (step + 1) * chunk_ms
        due += rate * chunk_ms
        if due < random.uniform(0, most_ms):
            continue
        spoken, due = due, 0.0
        speed = speech_speed(waiting_ms(state, now), CONFIG)
        state = after_write(state, int(spoken / speed * RATE / 1000), RATE, now)
        left_alone = after_write(left_alone, int(spoken * RATE / 1000), RATE, now)
        highest = max(highest, waiting_ms(state, now))
    # Above the full-speed point it shrinks between writes; one write may come on top.
    assert highest <= FULL_SPEED_AT * CONFIG.max_ms + 2 * rate * most_ms
    end = (step + 1) * chunk_ms
    if rate > 1:
        assert waiting_ms(left_alone, end) > 0.9 * (rate - 1) * end
    assert math.isfinite(highest) and waiting_ms(state, end) <= highest
