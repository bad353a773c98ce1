"""Streams that are computed together against each alone."""

from __future__ import annotations

import numpy as np
import pytest

from echostream.config import EndpointConfig, SpeechConfig
from echostream.session import Session, advance_sessions
from echostream.synthetic import synthetic_clip
from echostream.translator import stages
from echostream.translator.pipeline import Pipeline
from tests.streams import group_sizes, step_batch, told

RATE = 16000
CHUNK = 5120


@pytest.mark.parametrize("task", ["s2st", "asr"])
@pytest.mark.parametrize("endpoint", ["off", "pause"])
def test_streams_together_equal_streams_alone(double_system, task, endpoint, monkeypatch):
    """Streams that begin, pause and end in different rounds, in pushes of less and more than a
    chunk; first and last chunks are computed with others' middle ones."""
    settings = EndpointConfig(endpoint, endpoint_ms=120, min_tokens=2)
    speech = SpeechConfig(whole_words=True, fill_chunks=2.0)
    pipeline = Pipeline(double_system, task=task, endpoint=settings, speech=speech)
    rng = np.random.default_rng(0)
    streams = []
    for seed, (begins, seconds) in enumerate([(0, 4), (2, 3), (2, 4.3), (5, 2)]):
        clip, cuts = synthetic_clip(seconds, RATE, seed=seed), [0]
        while cuts[-1] < len(clip):
            cuts.append(min(cuts[-1] + int(rng.choice([CHUNK, CHUNK, 3000, 11000])), len(clip)))
        pushes = [(clip[a:b], b == len(clip)) for a, b in zip(cuts, cuts[1:], strict=False)]
        streams.append((begins, pushes))
    expected = []
    for _, pushes in streams:
        state, alone = pipeline.init_state(), []
        for samples, last in pushes:
            new, state = pipeline.step(samples, RATE, state, final=last)
            alone += new
        expected.append(alone)
    sizes = group_sizes(monkeypatch)
    states, outputs = [pipeline.init_state() for _ in streams], [[] for _ in streams]
    for turn in range(30):
        active = [
            index
            for index, (begins, pushes) in enumerate(streams)
            if 0 <= turn - begins < len(pushes)
        ]
        batch = []
        for index in active:
            samples, last = streams[index][1][turn - streams[index][0]]
            batch.append((samples, RATE, states[index], last))
        for index, (new, state) in zip(active, step_batch(pipeline, batch), strict=True):
            outputs[index] += new
            states[index] = state
    assert all(state.finished for state in states)
    assert max(sizes[stages.LISTEN]) >= 3
    if task == "s2st":
        assert max(sizes[stages.TRANSLATE]) >= 2 and max(sizes[stages.SPEAK]) >= 2
    for one, other in zip(outputs, expected, strict=True):
        assert told(one) == told(other)
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a.waveform, b.waveform, atol=1e-6)
            assert set(a.compute_ms) == set(b.compute_ms)


def test_one_streams_fault_is_its_own(double_system):
    pipeline = Pipeline(double_system)
    clip = synthetic_clip(0.64, RATE, seed=1)[:CHUNK]
    good = pipeline.init_state()
    broken = np.full(CHUNK, np.nan, dtype=np.float32)
    results = step_batch(
        pipeline,
        [
            (clip, RATE, good, False),
            (broken, RATE, good, False),
            (clip[:100], RATE, good, False),
            (clip, RATE, good, False),
        ],
    )
    assert isinstance(results[1], ValueError)
    alone, _ = pipeline.step(clip, RATE, good)
    for result in (results[0], results[3]):
        assert told(result[0]) == told(alone)
    assert results[2][0] == [] and results[2][1].received == 100


def test_who_breaks_a_shared_computation_fails_alone(double_system, monkeypatch):
    pipeline = Pipeline(double_system)
    clip = synthetic_clip(0.64, RATE, seed=1)[:CHUNK]
    alone, _ = pipeline.step(clip, RATE, pipeline.init_state())
    states = [
        pipeline.accept(clip, RATE, pipeline.init_state(), final=final)
        for final in (False, True, False)
    ]
    run = stages.Stages.run

    def failing(self, stage, rows, watch):
        if stage == stages.LISTEN and any(row[2] for row in rows):
            raise RuntimeError("out of memory")
        return run(self, stage, rows, watch)

    monkeypatch.setattr(stages.Stages, "run", failing)
    results = dict(pipeline.step_states(states))
    assert isinstance(results[1], RuntimeError)
    for index in (0, 2):
        assert told(results[index][0]) == told(alone)


def test_sessions_advance_together(double_system, monkeypatch):
    pipeline = Pipeline(double_system)
    clips = [synthetic_clip(2, RATE, seed=seed) for seed in range(3)]
    alone = []
    for clip in clips:
        session = Session(pipeline)
        session.push(clip, RATE, final=True)
        alone.append(session)
    sizes = group_sizes(monkeypatch)
    sessions = [Session(pipeline) for _ in clips]
    for session, clip in zip(sessions, clips, strict=True):
        session.feed(clip, RATE, final=True)
    assert sorted(index for index, _ in advance_sessions(sessions)) == [0, 1, 2]
    assert max(sizes[stages.LISTEN]) == 3
    for one, other in zip(sessions, alone, strict=True):
        assert one.finished and one.sentences == other.sentences
        assert one.samples_written == other.samples_written
    assert list(advance_sessions([])) == []
