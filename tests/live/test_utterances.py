"""Talks cut into utterances for models that know no ends."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from echostream import cli
from echostream.checkpoint import save_model_dir
from echostream.live import ends
from echostream.live.speech_gate import DETECTOR_RATE, WINDOW_SAMPLES, SpeechGate
from echostream.live.utterances import (
    CUT_WINDOWS,
    END_WINDOWS,
    PRE_ROLL,
    SpokenSession,
    UtteranceCutter,
)
from echostream.session import Session
from echostream.translator.pipeline import Pipeline
from tests.hub.stand_in import tiny_streamspeech
from tests.live.loudness import LoudIsSpeech, tone

WINDOW_S = WINDOW_SAMPLES / DETECTOR_RATE


@pytest.fixture
def cutter() -> UtteranceCutter:
    return UtteranceCutter(LoudIsSpeech())


def talk(rate: int, *seconds: float) -> np.ndarray:
    """Silence and speech in turns, silence first."""
    parts = [tone(s, rate, 0.5 if i % 2 else 0.001) for i, s in enumerate(seconds)]
    return np.concatenate(parts)


def utterances(cutter, samples, rate, sizes=None) -> list[tuple[int, np.ndarray]]:
    """Place and samples of every utterance, pushed in blocks of such sizes."""
    state, found, place = cutter.init_state(), [], 0
    for size in sizes or [len(samples)]:
        block = samples[place : place + size]
        place += size
        pieces, state = cutter.step(block, rate, state, final=place >= len(samples))
        for piece in pieces:
            if piece.opens:
                found.append((piece.start, []))
            found[-1][1].append(piece.samples)
    assert not state.speaking
    return [(start, np.concatenate(parts)) for start, parts in found]


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_any_cut_gives_the_same_utterances(cutter, rate):
    samples = talk(rate, 0.7, 1.1, 0.5, 0.8, 0.2, 0.6, 2.0, 1.0)
    expected = utterances(cutter, samples, rate)
    assert len(expected) == 3  # a pause of 0.2 s ends nothing
    for start, part in expected:
        np.testing.assert_array_equal(part, samples[start : start + len(part)])
    rng = np.random.default_rng(0)
    for longest in (100, 9000):
        sizes = []
        while sum(sizes) < len(samples):
            sizes.append(int(rng.integers(1, longest)))
        got = utterances(cutter, samples, rate, sizes)
        assert [start for start, _ in got] == [start for start, _ in expected]
        for (_, ours), (_, theirs) in zip(got, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_where_an_utterance_begins_and_ends(cutter):
    rate = 16000
    ((start, part),) = utterances(cutter, talk(rate, 2.0, 1.0, 2.0), rate)
    assert start / rate == pytest.approx(2.0 - PRE_ROLL * WINDOW_S, abs=WINDOW_S)
    end = (start + len(part)) / rate
    assert end == pytest.approx(3.0 + END_WINDOWS * WINDOW_S, abs=WINDOW_S)


def test_speech_without_a_pause_is_cut(cutter):
    rate = 16000
    first, second = utterances(cutter, talk(rate, 0.5, 40.0), rate)
    assert len(first[1]) / rate == pytest.approx(CUT_WINDOWS * WINDOW_S, abs=0.3)
    assert first[0] + len(first[1]) == second[0]


def test_where_nobody_speaks_nothing_waits(cutter):
    state = cutter.init_state()
    for _ in range(10):
        pieces, state = cutter.step(tone(1.0, 16000, 0.001), 16000, state)
        assert not pieces and len(state.waiting) <= (PRE_ROLL + 1) * WINDOW_SAMPLES
    with pytest.raises(ValueError, match="sample rate changed"):
        cutter.step(tone(1.0, 8000, 0.1), 8000, state)


def test_every_utterance_is_translated_as_if_it_were_alone(cutter):
    pipeline, rate = Pipeline(tiny_streamspeech(), chunk_ms=320), 16000
    samples = talk(rate, 0.7, 1.1, 0.5, 0.8, 1.0)
    session, outputs = SpokenSession(pipeline, cutter), []
    for place in range(0, len(samples), 1600):
        block = samples[place : place + 1600]
        outputs += session.push(block, rate, final=place + 1600 >= len(samples))
    parts = utterances(cutter, samples, rate)
    assert len(parts) == 2
    for number, (start, part) in enumerate(parts):
        alone = Session(pipeline).push(part, rate, final=True)
        ours = [output for output in outputs if output.sentence == number]
        assert [o.translation for o in ours] == [o.translation for o in alone]
        assert [o.source_ms for o in ours] == [1000 * start / rate + o.source_ms for o in alone]
        np.testing.assert_array_equal(
            np.concatenate([o.waveform for o in ours]), np.concatenate([o.waveform for o in alone])
        )


def test_translate_hears_utterance_after_utterance(tmp_path, monkeypatch, capsys):
    save_model_dir(tmp_path / "model", tiny_streamspeech())
    gate = SpeechGate(LoudIsSpeech())
    monkeypatch.setattr(ends, "open_gate", lambda choice: None if choice == "off" else gate)
    soundfile.write(tmp_path / "talk.wav", talk(16000, 8.0, 1.1, 8.0, 0.8, 8.0), 16000)
    command = ["translate", str(tmp_path / "talk.wav"), "--model-dir", str(tmp_path / "model")]
    assert cli.main([*command, "--out", str(tmp_path / "out.wav"), "--json"]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    begun = [sentence["from_ms"] for sentence in told["sentences"]]
    assert len(begun) == 2 and 8000 < begun[0] < 10000 < 16000 < begun[1]
