"""Sentences spoken in many voices, with tones in Kokoro's place."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from echostream.training.everyday import speak
from echostream.training.voice import kokoro

LIST = """test_00000\tes\tef_dora\t1.00\tEl perro duerme
train_00000\tes-419\tef_dora*0.6+af_bella*0.4\t0.90\tLlueve
train_00001\tes\tem_alex\t1.10\t¡Hola!
"""


@pytest.fixture
def lines(tmp_path):
    (tmp_path / "sentences.tsv").write_text(LIST)
    return speak.read_list(tmp_path / "sentences.tsv")


@pytest.fixture
def said():
    return []


@pytest.fixture
def say(said):
    def tone(symbols, line):
        said.append((line.id, line.voice, line.speed, symbols))
        clock_s = np.arange(int(kokoro.SAMPLE_RATE * 0.1 * len(symbols))) / kokoro.SAMPLE_RATE
        return (0.5 * np.sin(2 * np.pi * 1000 * clock_s)).astype(np.float32)

    return tone


def letters(text, accent):
    return f"{text.lower()[:4]}{'s' if accent == 'es-419' else ''}"


def test_every_process_speaks_its_lines(tmp_path, lines, say, said):
    out = tmp_path / "speech"
    seconds = [speak.speak(lines, out, say, letters, index=n, processes=2) for n in range(2)]
    assert seconds == pytest.approx([0.8, 0.5])
    assert [name for name, *_ in said] == ["test_00000", "train_00001", "train_00000"]
    assert said[2] == ("train_00000", "ef_dora*0.6+af_bella*0.4", 0.9, "llues")
    entry = json.loads((out / "part-1.jsonl").read_text())
    assert entry["text"] == "Llueve" and entry["seconds"] == pytest.approx(0.5)
    samples, rate = soundfile.read(out / entry["file"])
    assert rate == 16000 and len(samples) == pytest.approx(8000, abs=1)
    assert np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples) == pytest.approx(1000, abs=3)


def test_speaking_goes_on_where_it_was_stopped(tmp_path, lines, say, said):
    out = tmp_path / "speech"
    speak.speak(lines[:1], out, say, letters)
    with (out / "part-0.jsonl").open("a") as file:
        file.write('{"id": "train_0')  # cut off
    speak.speak(lines, out, say, letters)
    assert [name for name, *_ in said] == [line.id for line in lines]
    entries = (out / "part-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in entries] == [line.id for line in lines]


def test_what_has_no_symbols_is_left_out(tmp_path, lines, say, caplog):
    assert speak.speak(lines[:1], tmp_path / "speech", say, lambda text, accent: "") == 0
    assert "left out test_00000: it has 0 symbols" in caplog.text


def test_a_malformed_line_is_named(tmp_path):
    (tmp_path / "sentences.tsv").write_text(LIST + "train_00002\tes\tem_alex\tHola\n")
    with pytest.raises(ValueError, match="sentences.tsv, line 4: expected id, accent"):
        speak.read_list(tmp_path / "sentences.tsv")


def test_mixtures_of_voices(tmp_path):
    shape = (kokoro.LONGEST, kokoro.STYLE_WIDTH)
    for name, value in (("ef_dora", 1.0), ("af_bella", 2.0)):
        np.full(shape, value, "<f4").tofile(tmp_path / f"{name}.bin")
    assert speak.mixed_styles(tmp_path, "ef_dora")[0, 0] == 1.0
    mixed = speak.mixed_styles(tmp_path, "ef_dora*0.6+af_bella*0.4")
    assert mixed.shape == shape and mixed.dtype == np.float32
    assert mixed == pytest.approx(np.full(shape, 1.4), rel=1e-6)
    with pytest.raises(ValueError, match="must sum to 1"):
        speak.mixed_styles(tmp_path, "ef_dora*0.6+af_bella*0.6")


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_spanish_phonemes_by_accent():
    pytest.importorskip("phonemizer")
    phonemes = speak.SpanishPhonemes()
    spain, america = (phonemes("¿Hace mucho, Lucía?", accent) for accent in ("es", "es-419"))
    assert spain.endswith("?") and "," in spain and "ʧ" in spain and "θ" in spain
    assert "θ" not in america and "s" in america
    assert phonemes("... Llueve", "es") == phonemes("Llueve.", "es")
    assert phonemes("Llueve!!!", "es").count("!") == 1


def test_symbols_are_written_for_a_machine_without_espeak(tmp_path, lines):
    table = tmp_path / speak.PHONEMES
    speak.write_phonemes(lines, table, letters)
    known = speak.read_phonemes(table)
    for line in lines:
        assert known(line.text, line.accent) == letters(line.text, line.accent)
    with pytest.raises(ValueError, match="no symbols of 'Adiós' in the accent es"):
        known("Adiós", "es")
