"""Streams through models that know no ends: pauses end sentences, and what is no speech is kept
from the model."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from echostream import cli
from echostream.agents.streamspeech_s2tt import StreamSpeechS2TTAgent
from echostream.checkpoint import load_model_dir, save_model_dir
from echostream.evaluation.soak.sounds import blocks
from echostream.live import speech_gate, translate_files
from echostream.live.catalog import Catalog
from echostream.live.ends import for_streams, gate_for, open_pipeline
from echostream.live.speech_gate import (
    DETECTOR_RATE,
    HANG_OVER,
    LOOK_AHEAD,
    QUIET_GAIN,
    WINDOW_SAMPLES,
    GatedStream,
    SileroDetector,
    SpeechGate,
    open_gate,
    silero_path,
)
from echostream.session import Session
from echostream.streamspeech.recompute import StreamSpeechPipeline
from tests.hub.stand_in import tiny_streamspeech
from tests.live.conftest import AUDIO
from tests.live.loudness import LoudIsSpeech, tone

WINDOW_S = WINDOW_SAMPLES / DETECTOR_RATE


def whole(gate: SpeechGate, samples: np.ndarray, rate: int) -> np.ndarray:
    return gate.step(samples, rate, gate.init_state(), final=True)[0]


@pytest.fixture
def gate() -> SpeechGate:
    return SpeechGate(LoudIsSpeech())


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_any_cut_lets_through_the_same(gate, rate):
    rng = np.random.default_rng(0)
    parts = [tone(seconds, rate, level) for seconds, level in ((1, 0.01), (0.7, 0.5), (1.1, 0.02))]
    samples = np.concatenate(parts)
    expected = whole(gate, samples, rate)
    assert len(expected) == len(samples)
    for longest in (50, 5000):
        stream, pieces, place = GatedStream(gate), [], 0
        while place < len(samples):
            count = int(rng.integers(0, longest))
            pieces.append(stream.push(samples[place : place + count], rate))
            place += count
        pieces.append(stream.push(samples[:0], rate, final=True))
        np.testing.assert_array_equal(np.concatenate(pieces), expected)


def test_speech_passes_and_the_rest_is_quiet(gate):
    rate, before_s, speech_s = 16000, 2.0, 1.0
    samples = np.concatenate(
        [tone(before_s, rate, 0.02), tone(speech_s, rate, 0.5), tone(2.0, rate, 0.02)]
    )
    out = whole(gate, samples, rate)
    begin = int((before_s - (LOOK_AHEAD - 2) * WINDOW_S) * rate)
    end = int((before_s + speech_s + (HANG_OVER - 1) * WINDOW_S) * rate)
    np.testing.assert_array_equal(out[begin:end], samples[begin:end])
    quiet = slice(10 * WINDOW_SAMPLES, begin - 4 * WINDOW_SAMPLES)
    np.testing.assert_allclose(out[quiet], samples[quiet] * QUIET_GAIN, rtol=1e-5)
    np.testing.assert_allclose(out[end + 4000 :], samples[end + 4000 :] * QUIET_GAIN, rtol=1e-5)


def test_a_step_leaves_the_state_it_was_given(gate):
    samples = tone(1.0, 48000, 0.5)
    _, state = gate.step(samples, 48000, gate.init_state())
    first, _ = gate.step(samples, 48000, state)
    again, _ = gate.step(samples, 48000, state)
    np.testing.assert_array_equal(first, again)
    with pytest.raises(ValueError, match="sample rate changed"):
        gate.step(samples, 16000, state)


def test_the_state_does_not_grow(gate):
    state, sizes = gate.init_state(), []
    for _ in range(20):
        _, state = gate.step(tone(1.0, 16000, 0.5), 16000, state)
        sizes.append((len(state.waiting) // WINDOW_SAMPLES, len(state.speech)))
    assert len(set(sizes[5:])) <= 2 and max(sizes) <= (LOOK_AHEAD + 2, HANG_OVER + LOOK_AHEAD + 2)


@pytest.mark.skipif(silero_path() is None, reason="the extra 'vad' is not installed")
def test_silero_tells_speech_from_noise():
    gate = SpeechGate(SileroDetector(silero_path()))
    clip, rate = soundfile.read(AUDIO / "test_00041.flac", dtype="float32")
    out = whole(gate, clip, rate)
    assert np.sum(out**2) > 0.99 * np.sum(clip**2)
    for sound in ("noise-14", "tone", "music"):
        samples = np.concatenate(list(blocks(sound, 3)))
        out = whole(gate, samples, 16000)
        assert np.sum(out[8000:] ** 2) < 1e-3 * np.sum(samples[8000:] ** 2), sound


def test_the_gate_that_is_asked_for(monkeypatch):
    assert open_gate("off") is None
    with pytest.raises(ValueError, match="--vad must be one of"):
        open_gate("energy")
    monkeypatch.setattr(speech_gate, "silero_path", lambda: None)
    assert open_gate("auto") is None
    with pytest.raises(ValueError, match=r"pip install 'echostream\[vad\]'"):
        open_gate("on")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A model directory like one of a converted checkpoint: it knows no ends."""
    path = tmp_path_factory.mktemp("models") / "converted"
    save_model_dir(path, tiny_streamspeech())
    return path


def test_pauses_end_sentences_of_models_that_know_no_ends(converted, system):
    loaded = load_model_dir(converted)
    assert loaded.config.endpoint.method == "off"
    assert for_streams(loaded).config.endpoint.method == "pause"
    assert for_streams(loaded, given=True).config.endpoint.method == "off"
    assert for_streams(loaded).model is loaded.model
    endpoint = replace(loaded.config.endpoint, method="learned")
    learned = replace(loaded, config=replace(loaded.config, endpoint=endpoint))
    assert for_streams(learned) is learned and gate_for(learned, "auto") is None
    assert type(open_pipeline(loaded, chunk_ms=320)) is StreamSpeechPipeline


def test_long_files_are_streams_and_short_ones_utterances(converted, tmp_path, monkeypatch):
    methods = []

    def session(pipeline, **options):
        methods.append(pipeline.endpoints.config.method)
        return Session(pipeline, **options)

    monkeypatch.setattr(translate_files, "Session", session)
    out = tmp_path / "out"
    out.mkdir()
    for name, seconds in (("short", 1.0), ("long", 3.0)):
        soundfile.write(tmp_path / f"{name}.wav", tone(seconds, 16000, 0.1), 16000)
    names = [str(tmp_path / f"{name}.wav") for name in ("short", "long")]
    loaded = load_model_dir(converted)
    shorter = replace(loaded.config.endpoint, max_sentence_ms=2000)
    loaded = replace(loaded, config=replace(loaded.config, endpoint=shorter))
    save_model_dir(tmp_path / "model", loaded)
    command = ["translate", *names, "--out", str(out), "--model-dir", str(tmp_path / "model")]
    assert cli.main([*command, "--vad", "off"]) == 0 and methods == ["off", "pause"]
    assert cli.main([*command, "--endpoint", "off"]) == 0 and methods[2:] == ["off", "off"]
    assert cli.main([*command, "--endpoint", "pause"]) == 0 and methods[4:] == ["pause", "pause"]
    assert cli.main([*command, "--offline"]) == 0 and methods[6:] == ["off", "off"]


def test_the_server_hears_sentences_and_recomputing_stays_as_published(converted):
    catalog = Catalog.load([converted], vad="auto")
    model, published = catalog.models["converted"], catalog.models["converted:recompute"]
    assert catalog.pipeline(model, 320, "s2tt").endpoints.config.method == "pause"
    assert published.system.config.endpoint.method == "off" and published.gate is None
    assert (model.gate is None) == (silero_path() is None)


def test_agents_stay_as_published(converted):
    parser = ArgumentParser()
    StreamSpeechS2TTAgent.add_args(parser)
    agent = StreamSpeechS2TTAgent(parser.parse_args(["--model-dir", str(converted)]))
    assert agent.pipeline.endpoints.config.method == "off"
