"""Streams that take their chunks together against each alone."""

from __future__ import annotations

import numpy as np
import pytest

from echostream import pipeline_batch as batch
from echostream.config import EndpointConfig
from echostream.pipeline_batch import Push, step_batch
from echostream.synthetic import synthetic_clip
from echostream.translator.pipeline import Pipeline

RATE = 16000
CHUNK = 5120


def told(outputs):
    return [
        (
            o.source_ms,
            o.asr_tokens,
            o.st_tokens,
            o.mt_tokens,
            o.units,
            o.transcript,
            o.translation,
            o.sentence,
            o.sentence_end,
            o.final,
        )
        for o in outputs
    ]


@pytest.mark.parametrize("task", ["s2st", "asr"])
@pytest.mark.parametrize("endpoint", ["off", "pause"])
def test_batched_streams_equal_separate_ones(double_system, task, endpoint, monkeypatch):
    settings = EndpointConfig(endpoint, endpoint_ms=120, min_tokens=2)
    pipeline = Pipeline(double_system, task=task, endpoint=settings)
    sizes = []
    listen = batch.listen
    monkeypatch.setattr(
        batch, "listen", lambda m, f, s, **o: sizes.append(f.size(0)) or listen(m, f, s, **o)
    )
    clips = [synthetic_clip(seconds, RATE, seed=seed) for seed, seconds in ((1, 4), (2, 3), (3, 4))]
    begins = [0, 3, 2]  # rounds before each stream begins
    expected, states, outputs = [], [], [[] for _ in clips]
    for clip in clips:
        state, alone = pipeline.init_state(), []
        for start in range(0, len(clip), CHUNK):
            last = start + CHUNK >= len(clip)
            new, state = pipeline.step(clip[start : start + CHUNK], RATE, state, final=last)
            alone += new
        expected.append(alone)
        states.append(pipeline.init_state())
    for turn in range(20):
        pushes, who = [], []
        for stream, clip in enumerate(clips):
            start = (turn - begins[stream]) * CHUNK
            if 0 <= start < len(clip):
                last = start + CHUNK >= len(clip)
                piece = clip[start : start + CHUNK]
                pushes.append(Push(piece, RATE, states[stream], last))
                who.append(stream)
        for stream, (new, state) in zip(who, step_batch(pipeline, pushes), strict=True):
            outputs[stream] += new
            states[stream] = state
    assert max(sizes) == 3
    for one, other in zip(outputs, expected, strict=True):
        assert told(one) == told(other)
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a.waveform, b.waveform, atol=1e-6)
        if endpoint == "off":
            assert all("encoder" in a.compute_ms for a in one)


def test_one_streams_fault_is_its_own(double_system):
    pipeline = Pipeline(double_system)
    clip = synthetic_clip(0.64, RATE, seed=1)[:CHUNK]
    good = pipeline.init_state()
    results = step_batch(
        pipeline,
        [
            Push(clip, RATE, good),
            Push(np.full(CHUNK, np.nan, dtype=np.float32), RATE, good),
            Push(clip[:100], RATE, good),
            Push(clip, RATE, good),
        ],
    )
    assert isinstance(results[1], ValueError)
    alone, _ = pipeline.step(clip, RATE, good)
    for result in (results[0], results[3]):
        assert told(result[0]) == told(alone)
    assert results[2][0] == [] and results[2][1].received == 100
