"""Silence in the speech of a run, as it is played."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from echostream.evaluation.runs import comparison, tables
from echostream.evaluation.runs.run_folder import load_run
from echostream.evaluation.runs.silence import find_silences, silence_scores, summarize
from tests.evaluation.runs.written import write_speech_run

RATE = 16000


def sound(*parts: tuple[float, float]) -> np.ndarray:
    """Tones of (ms, amplitude), one after the other."""
    times = np.concatenate([np.full(round(ms * RATE / 1000), level) for ms, level in parts])
    return times * np.sin(2 * np.pi * 400 * np.arange(len(times)) / RATE)


def test_silences_between_the_first_and_the_last_sound() -> None:
    speech = sound((300, 0), (500, 0.5), (200, 0), (400, 0.3), (90, 0), (310, 0.2), (800, 0))
    measured = find_silences(speech, RATE)
    assert measured.silences == (200.0,)  # 90 ms is no pause, edges are not between sounds
    assert measured.between == 1500.0 and measured.longest == measured.total == 200.0


@pytest.mark.parametrize(("level", "count"), [(0.02, 0), (0.001, 1)])
def test_silent_is_what_lies_far_below_the_loudest(level: float, count: int) -> None:
    for loudness in (1.0, 0.01):
        speech = loudness * sound((300, 0.5), (250, level), (300, 0.5))
        assert len(find_silences(speech, RATE).silences) == count


def test_no_sound_has_no_silence() -> None:
    for nothing in (np.zeros(0), np.zeros(1000)):
        assert find_silences(nothing, RATE).between == 0
    assert all(np.isnan(value) for value in summarize([]).values())


def test_utterances_count_by_their_length() -> None:
    long = find_silences(sound((100, 0.5), (700, 0), (100, 0.5), (100, 0), (1000, 0.5)), RATE)
    short = find_silences(sound((1000, 0.5)), RATE)
    scores = summarize([long, short, find_silences(np.zeros(99), RATE)])
    assert scores["SilenceRatio"] == pytest.approx(800 / 3000)
    assert scores["LongestPause"] == 350.0 and scores["LongestPauseMax"] == 700.0


def test_a_run_is_measured_by_its_wavs_and_shown_in_the_table(tmp_path: Path) -> None:
    folder = write_speech_run(tmp_path / "chunk_320")
    # 500 ms of speech, 460 ms of waiting, 2200 ms of speech with a pause of 300 ms in it.
    speech = sound((500, 0.1), (460, 0), (1200, 0.1), (300, 0), (700, 0.1))
    for wav in (folder / "wavs").glob("*.wav"):
        soundfile.write(wav, speech, RATE)
    run = load_run(folder)
    scores = silence_scores(run)
    assert scores["SilenceRatio"] == pytest.approx(760 / 3160)
    assert scores["LongestPause"] == 460.0
    text = tables.markdown_table(comparison.compare_runs([run]))
    assert "| Silence ratio | Longest pause |" in text and "| 0.241 | 460 |" in text


def test_a_run_whose_wavs_are_gone_has_no_figure(tmp_path: Path) -> None:
    folder = write_speech_run(tmp_path / "chunk_320")
    next((folder / "wavs").glob("*.wav")).unlink()
    assert np.isnan(silence_scores(load_run(folder))["SilenceRatio"])
