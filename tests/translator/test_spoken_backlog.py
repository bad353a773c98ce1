"""The pipeline reports what waits to be played, and hurries when too much of it does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from echostream.config import BacklogConfig, PolicyConfig
from echostream.models.echostream_model import EchoStreamModel, seeded_model
from echostream.synthetic import synthetic_clip
from echostream.translator.backlog import BacklogState, after_write, waiting_ms
from echostream.translator.pipeline import Pipeline
from tests.streams import five_units_a_subword, push

RATE = 16000


@pytest.fixture
def talkative(double_system, monkeypatch):
    """A system that says five units with every word, of several frames each: more speech comes
    out than in."""
    model = seeded_model(double_system.config, 1).double()
    with torch.no_grad():
        model.vocoder.generator.dur_predictor.proj.bias.fill_(1.9)

    monkeypatch.setattr(EchoStreamModel, "speak", five_units_a_subword)
    return replace(double_system, model=model)


def pipeline_of(system, backlog=None):
    return Pipeline(system, policy=PolicyConfig("wait_k", max_len=5), backlog=backlog)


@pytest.fixture(scope="module")
def clip():
    return synthetic_clip(6.0, RATE, seed=3)


def test_backlog_is_reported_and_bounded_by_speed(talkative, clip):
    plain, _ = push(pipeline_of(talkative), clip, RATE, 1600)
    off, _ = push(pipeline_of(talkative, BacklogConfig(0, 3.0)), clip, RATE, 1600)
    never = BacklogConfig(10_000_000, 3.0)
    patient, _ = push(pipeline_of(talkative, never), clip, RATE, 1600)
    hurried, state = push(pipeline_of(talkative, BacklogConfig(200, 2.0)), clip, RATE, 1600)
    for others in (off, patient):
        for one, other in zip(plain, others, strict=True):
            assert np.array_equal(one.waveform, other.waveform)
            assert one.backlog_ms == other.backlog_ms
    for outputs in (plain, hurried):
        queue = BacklogState()
        for output in outputs:
            queue = after_write(queue, len(output.waveform), output.sample_rate, output.source_ms)
            assert output.backlog_ms == waiting_ms(queue, output.source_ms)
    # What is said stays the same, how long it takes does not.
    assert [o.units for o in hurried] == [o.units for o in plain]
    spoken = [sum(len(o.waveform) for o in outputs) for outputs in (plain, hurried)]
    assert max(o.backlog_ms for o in plain) > 2000
    assert spoken[1] < 0.8 * spoken[0]
    assert max(o.backlog_ms for o in hurried) < 0.5 * max(o.backlog_ms for o in plain)
    assert state.model.speech.vocoder.tails[0].speed > 1


def test_next_sentence_is_spoken_at_the_speed_of_the_last(talkative):
    model = talkative.model
    state = model.init_state()
    _, speech = model.vocode([[1, 2, 3]], state.speech, [1.5])
    following = model.next_sentence(replace(state, speech=speech))
    (before,), (tail,) = speech.vocoder.tails, following.speech.vocoder.tails
    assert tail.speed == before.speed > 1
    assert not tail.units and not tail.settled_frames


def test_any_way_of_pushing_hurries_alike(talkative, clip):
    pipeline = pipeline_of(talkative, BacklogConfig(200, 2.0))
    one, _ = push(pipeline, clip, RATE, 777)
    other, _ = push(pipeline, clip, RATE, len(clip))
    assert [o.backlog_ms for o in one] == [o.backlog_ms for o in other]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.waveform, b.waveform, atol=1e-6)
