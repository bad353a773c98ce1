"""A table of hostile and odd inputs: a clear error or a sensible result, nothing lost."""

import numpy as np
import pytest

from echostream.streaming import state_bytes
from echostream.synthetic import synthetic_clip
from echostream.translator.pipeline import Pipeline

RATE = 16000


def play(pipeline, samples, rate=RATE, size=None):
    state, outputs = pipeline.init_state(), []
    size = size or max(len(samples), 1)
    for start in range(0, max(len(samples), 1), size):
        new, state = pipeline.step(
            samples[start : start + size], rate, state, final=start + size >= len(samples)
        )
        outputs += new
    return outputs, state


def clip(seconds=1.5, rate=RATE):
    return synthetic_clip(seconds, rate, seed=4)


SENSIBLE = {
    "no samples": (np.zeros(0, dtype=np.float32), RATE),
    "one sample": (np.ones(1, dtype=np.float32), RATE),
    "shorter than a window": (clip()[:300], RATE),
    "digital silence": (np.zeros(RATE, dtype=np.float32), RATE),
    "constant offset": (np.full(RATE, 0.5, dtype=np.float32), RATE),
    "clipped": (np.clip(20 * clip(), -1, 1), RATE),
    "beyond full scale": (100 * clip(), RATE),
    "denormal": (clip() * 1e-38, RATE),
    "8 kHz": (clip(rate=8000), 8000),
    "22.05 kHz": (clip(rate=22050), 22050),
    "44.1 kHz": (clip(rate=44100), 44100),
    "48 kHz": (clip(rate=48000), 48000),
    "stereo": (np.stack([clip(), clip()], axis=1), RATE),
    "16-bit integers": ((clip() * 32767).astype(np.int16), RATE),
    "32-bit integers": ((clip().astype(np.float64) * 2**31 * 0.9).astype(np.int32), RATE),
    "float64": (clip().astype(np.float64), RATE),
    "a list": (clip()[:4000].tolist(), RATE),
}


@pytest.mark.parametrize("name", SENSIBLE)
def test_sensible_result(system, name):
    samples, rate = SENSIBLE[name]
    outputs, state = play(Pipeline(system), samples, rate)
    assert outputs[-1].final and state.finished
    assert state.processed == len(samples)
    for output in outputs:
        assert np.isfinite(output.waveform).all() and np.abs(output.waveform).max(initial=0) <= 1


def test_stereo_of_equal_channels_and_integers_equal_mono(system):
    pipeline = Pipeline(system)
    mono = [o.asr_tokens for o in play(pipeline, clip())[0]]
    for name in ("stereo", "float64"):
        assert [o.asr_tokens for o in play(pipeline, *SENSIBLE[name])[0]] == mono
    # 16-bit PCM is the same signal, rounded.
    pcm, rate = SENSIBLE["16-bit integers"]
    rounded = (pcm / 32768).astype(np.float32)
    assert [o.asr_tokens for o in play(pipeline, pcm, rate)[0]] == [
        o.asr_tokens for o in play(pipeline, rounded, rate)[0]
    ]


@pytest.mark.parametrize("chunk_ms", [10, 33, 45, 100, 333, 1001, 60000])
def test_odd_chunk_sizes(system, chunk_ms):
    outputs, state = play(Pipeline(system, chunk_ms=chunk_ms), clip())
    assert sum(output.encoder_frames for output in outputs) == 37
    assert state.finished


def test_ten_minutes(system):
    """A long stream in large pushes: state stays bounded, all source is consumed. The longest of
    its windows, the source of the text decoder, is full after one minute."""
    assert system.config.mt.source_context_frames <= 60 * 25
    pipeline = Pipeline(system, chunk_ms=5000, task="s2tt")
    ten_seconds = clip(10)
    state = pipeline.init_state()
    sizes = []
    for index in range(60):
        _, state = pipeline.step(ten_seconds, RATE, state, final=index == 59)
        sizes.append(state_bytes(state))
    # The last decision writes up to max_len subwords at once.
    assert max(sizes[20:-1]) <= 1.1 * max(sizes[:20])
    assert state.finished and state.processed == 60 * len(ten_seconds) == 10 * 60 * RATE
    (frames,) = state.model.listening.encoder.frames
    assert frames == (10 * 60 * 100 - 2 + 3) // 4


ERRORS = {
    "not a number": (lambda x: x.__setitem__(1234, np.nan), "audio sample 1234 is nan"),
    "infinite": (lambda x: x.__setitem__(99, -np.inf), "audio sample 99 is -inf"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_unusable_samples_are_refused_before_anything_changes(system, name):
    spoil, message = ERRORS[name]
    pipeline = Pipeline(system)
    good = clip()
    bad = good.copy()
    spoil(bad)
    with pytest.raises(ValueError, match=message):
        pipeline.step(bad, RATE, pipeline.init_state())
    _, state = pipeline.step(good[:8000], RATE, pipeline.init_state())
    with pytest.raises(ValueError, match="audio sample 8"):  # positions count from the start
        pipeline.step(np.array([0, np.nan]), RATE, state)
    # The stream goes on with the state the caller still holds.
    outputs, _ = pipeline.step(good[8000:], RATE, state, final=True)
    whole, _ = play(pipeline, good)
    assert [o.asr_tokens for o in outputs] == [o.asr_tokens for o in whole[-len(outputs) :]]


def test_sample_rate_must_not_change(system):
    pipeline = Pipeline(system)
    _, state = pipeline.step(clip(), RATE, pipeline.init_state())
    with pytest.raises(ValueError, match="16000 Hz before, 8000 Hz now"):
        pipeline.step(clip(rate=8000), 8000, state)


@pytest.mark.parametrize("rate", [0, -16000, 1000, 10**7])
def test_impossible_sample_rates(system, rate):
    pipeline = Pipeline(system)
    for samples in (clip(), clip()[:10]):
        with pytest.raises(ValueError, match="sample rate must lie between"):
            pipeline.step(samples, rate, pipeline.init_state())


@pytest.mark.parametrize("chunk_ms", [0, -320, 5, 10**8])
def test_impossible_chunks(system, chunk_ms):
    with pytest.raises(ValueError, match=f"between 10 and 3600000, got {chunk_ms}"):
        Pipeline(system, chunk_ms=chunk_ms)


def test_other_options(system):
    with pytest.raises(ValueError, match="beam must be at least 1, got 0"):
        Pipeline(system, beam=0)
