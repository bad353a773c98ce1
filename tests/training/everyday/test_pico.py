"""Sentences spoken by Pico, with tones in its place."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from echostream.training.everyday import pico
from echostream.training.warm_start.clips import SpeechPool

PAIRS = [("Hola", "Hello"), ("Llueve", "It rains"), ("Hola", "Hi"), ("Adiós", "Goodbye")]


@pytest.fixture
def said():
    return []


@pytest.fixture
def say(said):
    def tone(text, pitch, speed):
        said.append((text, pitch, speed))
        return (8000 * np.sin(np.arange(12000) * pitch / 1000)).astype("<i2")

    return tone


def test_each_sentence_once_and_none_that_others_speak():
    lines = pico.plan_lines([*PAIRS, ("x" * 300, "long")], 2, {"Llueve"})
    assert [(line.spanish, line.english) for line in lines] == [PAIRS[0], PAIRS[3]]
    assert [line.id for line in lines] == ["train_pico_00000", "train_pico_00001"]
    assert len({(line.pitch, line.speed) for line in lines}) == 2
    # More of them begin with the same.
    assert pico.plan_lines(PAIRS, 3, set())[:1] == pico.plan_lines(PAIRS, 1, set())
    with pytest.raises(ValueError, match="3 more sentences are wanted, but only 2 are there"):
        pico.plan_lines(PAIRS, 3, {"Llueve"})


def test_processes_share_and_go_on(tmp_path, said, say):
    lines = pico.plan_lines(PAIRS, 3, set())
    assert pico.speak(tmp_path, lines, say, index=1, processes=2) == 1
    assert said == [("Llueve", lines[1].pitch, lines[1].speed)]
    assert pico.speak(tmp_path, lines, say) == 2
    samples, rate = soundfile.read(tmp_path / "audio/000/train_pico_00001.flac", dtype="int16")
    assert rate == 16000 and np.array_equal(samples, say("", lines[1].pitch, 0))


def test_training_reads_the_folder(tmp_path, say, monkeypatch):
    monkeypatch.setattr(pico, "engine", lambda: say)
    monkeypatch.setattr(pico, "ProcessPoolExecutor", ThreadPoolExecutor)
    lines = pico.plan_lines(PAIRS, 3, set())
    assert pico.speak_all(tmp_path, lines, 2) == 3
    assert pico.speak_all(tmp_path, lines, 1) == 0
    entry = json.loads((tmp_path / "part-0.jsonl").read_text().splitlines()[2])
    assert entry["text"] == "Adiós"
    translations = dict(
        line.split("\t")[::2] for line in (tmp_path / "translations.tsv").read_text().splitlines()
    )
    pool = SpeechPool([tmp_path], [], translations)
    assert pool.refresh() == 3
    assert [one.target for one in pool.texts] == ["Hello", "It rains", "Goodbye"]


def test_silence_behind_the_last_sound_goes():
    samples = np.zeros(9000, dtype=np.int16)
    assert len(pico.trimmed(samples)) == 9000
    samples[[500, 4000, 6000]] = 201, -32768, 200
    assert len(pico.trimmed(samples)) == 4000 + 1600


def test_pico_itself(tmp_path):
    pytest.importorskip("ttspico")
    say = pico.engine()
    usual, high, fast = (
        say("Su mensaje es muy corto.", *how) for how in ((100, 100), (125, 100), (100, 120))
    )
    assert usual.dtype == np.int16 and 1.0 < len(usual) / pico.RATE < 4.0
    assert len(fast) < 0.95 * len(usual) and len(high) == pytest.approx(len(usual), rel=0.1)
