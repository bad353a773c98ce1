"""The examples run as their first lines say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import soundfile

import echostream

ROOT = Path(__file__).resolve().parents[1]
TEST = "data/echo_mini/test_audio"
AUDIO = f"{TEST}/test_00001.flac"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example at the root of the checkout; returns the lines that it prints."""
    monkeypatch.chdir(ROOT)

    def run_example(name: str, *words: object) -> list[str]:
        runpy.run_path(f"examples/{name}")["main"]([str(word) for word in words])
        return capsys.readouterr().out.splitlines()

    return run_example


def test_a_file_is_translated(run, tmp_path):
    lines = run("translate_file.py", AUDIO, "--out", tmp_path / "speech.wav")
    expected = echostream.load("echo-mini").translate(ROOT / AUDIO)
    assert lines[:2] == [expected.transcript, f"  -> {expected.text}"]
    samples, rate = soundfile.read(tmp_path / "speech.wav")
    assert (len(samples), rate) == (len(expected.speech), expected.sample_rate)
    assert lines[2].endswith(f"{len(samples) / rate:.2f} s of speech")


def test_decisions_come_in_the_order_of_the_source(run):
    lines = run("stream_decisions.py", AUDIO, "--chunk-ms", 640)
    times = [int(line.split(" ms")[0]) for line in lines]
    assert len(times) > 2 and times == sorted(times) and times[0] % 640 == 0
    words = " ".join(line.split("of speech")[1].rsplit("[", 1)[0].strip() for line in lines)
    expected = echostream.load("echo-mini", chunk_ms=640).translate(ROOT / AUDIO)
    assert words.split() == expected.text.split() != []
    spoken = sum(int(line.split("+")[1].split("ms")[0]) for line in lines)
    assert spoken == pytest.approx(1000 * len(expected.speech) / 16000, abs=len(lines))


def test_quality_and_delay_are_measured(run):
    lists = (f"{TEST}/wav_list.txt", f"{TEST}/target.txt")
    header, *rows = run("quality_and_lag.py", *lists, "--files", 2, "--chunk-ms", 320, 1280)
    assert header.split()[2] == "BLEU"
    (short, *figures), (long, *later) = [list(map(float, row.split())) for row in rows]
    assert (short, long) == (320, 1280)
    assert 0 < figures[0] <= 100 and 0 < later[0] <= 100
    assert figures[1] < later[1] and figures[1] <= figures[2]


def test_every_example_is_tried():
    tried = Path(__file__).read_text("utf-8")
    assert all(f'"{path.name}"' in tried for path in (ROOT / "examples").glob("*.py"))
