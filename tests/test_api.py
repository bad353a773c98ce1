"""The public functions: what a program of three lines calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import echostream
from echostream.samples import read_audio
from echostream.translator.pipeline import Pipeline

AUDIO = Path(__file__).parents[1] / "data/echo_mini/test_audio/test_00001.flac"


@pytest.fixture(scope="module")
def translator():
    return echostream.load("echo-mini")


def test_a_file_is_translated_as_its_stream_is(translator):
    found = translator.translate(AUDIO)
    samples, rate = read_audio(AUDIO)
    pipeline = Pipeline(translator.pipeline.system)
    outputs, _ = pipeline.step(samples, rate, pipeline.init_state(), final=True)
    assert found.text == " ".join(word for o in outputs for word in o.translation) != ""
    assert found.transcript == " ".join(word for o in outputs for word in o.transcript) != ""
    np.testing.assert_array_equal(found.speech, np.concatenate([o.waveform for o in outputs]))
    assert found.sample_rate == translator.sample_rate == 16000
    assert found.sentences == ((found.transcript, found.text),)
    times = [decision.source_ms for decision in found.decisions]
    assert times == sorted(times) and found.decisions[-1].final
    again = translator.translate(samples, rate)
    assert again.text == found.text and np.array_equal(again.speech, found.speech)


def test_a_stream_gives_what_comes_as_it_comes(translator):
    samples, rate = read_audio(AUDIO)
    stream, decisions = translator.stream(), []
    for start in range(0, len(samples), 1000):
        decisions += stream.push(samples[start : start + 1000], rate)
    written = stream.translation(decisions).text
    decisions += stream.finish()
    whole = translator.translate(AUDIO)
    found = stream.translation(decisions)
    assert found.text == whole.text and whole.text.startswith(written)
    np.testing.assert_allclose(found.speech, whole.speech, atol=1e-5)
    with pytest.raises(ValueError, match="has ended"):
        stream.finish()


def test_nothing_gives_nothing(translator):
    stream = translator.stream()
    found = stream.translation(stream.finish())
    assert found.text == found.transcript == "" and not len(found.speech)
    assert found.sentences == ()


def test_tasks_and_languages():
    reader = echostream.load(task="s2tt", chunk_ms=640)
    assert (reader.source_language, reader.target_language) == ("es", "en")
    found = reader.translate(str(AUDIO))
    assert found.text and not len(found.speech)


def test_what_is_there_and_what_is_not(translator):
    models = echostream.available_models()
    assert models["echo-mini"] and "streamspeech-fr-en" in models
    with pytest.raises(FileNotFoundError, match="did you mean echo-mini"):
        echostream.load("echo-mimi")
    with pytest.raises(ValueError, match="need their sample_rate"):
        translator.translate(np.zeros(100))
    with pytest.raises(FileNotFoundError, match="no such sound file"):
        translator.translate("nowhere.wav")
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = echostream.lod


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, echostream; dir(echostream); echostream.__version__\n"
        "heavy = {'torch', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
