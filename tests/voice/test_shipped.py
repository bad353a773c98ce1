"""The voice that comes with the package."""

import io

import numpy as np
import pytest
import soundfile

from echostream import assets, cli
from echostream.evaluation.text_scores import word_error_rate
from echostream.voice.folder import Voice
from echostream.voice.named import open_voice
from echostream.voice.speaker import VoiceSpeaker

LARGEST_BYTES = 8_000_000
SENTENCES = [
    "My brother works at the hospital.",
    "Where is the train station?",
    "We have been waiting for 20 minutes.",
    "It will rain tomorrow morning.",
]


@pytest.fixture(scope="module")
def speaker():
    pytest.importorskip("phonemizer")
    try:
        return VoiceSpeaker(open_voice(assets.VOICE), words=2)
    except ValueError as error:  # no espeak-ng on this machine
        pytest.skip(str(error))


def test_it_is_small_and_whole():
    assert sum(path.stat().st_size for path in assets.VOICE.iterdir()) < LARGEST_BYTES
    voice = Voice.load(assets.VOICE)
    assert voice.vocoder.sample_rate == 24000 and voice.vocoder.durations is None


def test_a_recogniser_understands_most_of_it(speaker):
    """Two words at a time; numbers are said."""
    pytest.importorskip("pocketsphinx")
    from echostream.evaluation.recognizers.recognizer import load_recognizer, resample

    recognizer = load_recognizer("pocketsphinx")
    heard = []
    for sentence in SENTENCES:
        pieces, _ = speaker.step(sentence, speaker.init_state(), final=True)
        wave = np.concatenate([piece.waveform for piece in pieces])
        assert np.abs(wave).max() < 1.5 and 0.8 < len(wave) / 24000 < 4
        heard.append(recognizer.transcribe(resample(wave, 24000, recognizer.sample_rate)))
    said = [s.lower().strip(".?").replace("20", "twenty") for s in SENTENCES]
    assert word_error_rate(heard, said) < 50


def test_speak_uses_it(speaker, tmp_path, monkeypatch):
    text = io.TextIOWrapper(io.BytesIO(b"Nobody in Reykjavik paid $3.50.\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", text)
    assert cli.main(["speak", "--out", str(tmp_path / "said.wav")]) == 0
    samples, rate = soundfile.read(tmp_path / "said.wav")
    assert rate == 24000 and 1.5 < len(samples) / rate < 6 and np.abs(samples).max() > 0.05
