"""Long streams: nothing lost, nothing counted twice, and finished ones are not run again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("omnisteval")

from echostream.checkpoint import save_model_dir
from echostream.cli import main
from echostream.config import EndpointConfig
from echostream.evaluation.longform.talk_report import ROWS
from echostream.evaluation.runs.run_folder import load_run
from echostream.evaluation.runs.transcripts import remove_inserted_silence
from echostream.evaluation.soak import long_stream as streams
from echostream.evaluation.soak import sounds, suite
from echostream.evaluation.soak.soak_command import named_systems
from echostream.models.echostream_model import seeded_model
from echostream.session import Session
from echostream.synthetic import synthetic_clip
from echostream.text import Vocabulary
from echostream.translator.pipeline import Pipeline

RATE = 16000
SENTENCES = (
    "talk\tindex\tutterance\tstart_ms\tend_ms\tsrc_text\ttgt_text\n"
    "clip\t1\tu\t0\t2000\tx\tda ba fa\nclip\t2\tu\t2100\t4000\tx\tga la ma\n"
)


@pytest.fixture(scope="module")
def talking(tmp_path_factory, system) -> Path:
    """Random weights that write and speak, sentence by sentence."""
    folder = tmp_path_factory.mktemp("systems") / "talking"
    config = replace(system.config, endpoint=EndpointConfig("pause", endpoint_ms=120, min_tokens=2))
    save_model_dir(folder, replace(system, config=config))
    return folder


@pytest.fixture(scope="module")
def silent(tmp_path_factory, system) -> Path:
    """A recognition head that hears nothing."""
    folder = tmp_path_factory.mktemp("systems") / "silent"
    model = seeded_model(system.config, 1)
    model.source_unigram_decoder.proj.bias.data[Vocabulary.blank] += 1e3
    config = replace(system.config, endpoint=EndpointConfig("pause"))
    save_model_dir(folder, replace(system, config=config, model=model))
    return folder


@pytest.mark.parametrize(
    ("name", "level_db"),
    [("noise-40", -40), ("noise-14", -14), ("tone", -20), ("music", -20)],
)
def test_sounds_have_their_level(name, level_db):
    wave = np.concatenate(list(sounds.blocks(name, 9.5)))
    assert len(wave) == 9.5 * RATE and wave.dtype == np.float32 and np.abs(wave).max() <= 1
    rms_db = 20 * np.log10(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
    assert rms_db == pytest.approx(level_db, abs=0.5)
    again = np.concatenate(list(sounds.blocks(name, 9.5)))
    assert np.array_equal(wave, again)


def test_sounds_have_no_seams_and_silence_is_silent():
    assert not any(block.any() for block in sounds.blocks("silence", 3))
    for whole, name in ((sounds._tone, "tone"), (sounds._music, "music")):
        wave = np.concatenate(list(sounds.blocks(name, 3.3)))
        assert np.allclose(wave, whole(0, len(wave)), atol=1e-6)
    with pytest.raises(ValueError, match="sounds are silence, .* got 'song'"):
        next(sounds.blocks("song", 1))


@pytest.mark.parametrize("seconds", [0.01, 0.025, 1.234, 3.0])
def test_frames_that_are_due_come(system, seconds):
    pipeline = Pipeline(system, task="asr")
    samples = synthetic_clip(seconds, RATE, seed=2)
    outputs, _ = pipeline.step(samples, RATE, pipeline.init_state(), final=True)
    due = streams.due_frames(pipeline, len(samples))
    assert sum(output.encoder_frames for output in outputs) == due
    assert due == (0 if seconds < 0.025 else -(-(1 + int((seconds - 0.025) * 100 + 1e-9)) // 4))


def test_speech_is_laid_out_as_it_is_played(tmp_path):
    speech = streams.PlayedSpeech(tmp_path / "wavs" / "0_pred.wav", RATE)
    rng = np.random.default_rng(1)
    pieces = [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (8000, 1600, 321, 40)]
    times = (640.0, 960.0, 5000.0, 5320.0)
    for number, (piece, time) in enumerate(zip(pieces, times, strict=True)):
        speech.write(piece, time, 10.0 * (number + 1))
    speech.close()
    (tmp_path / "instances.log").write_text(speech.log_line(Path("a.wav"), 6000.0, "x y") + "\n")
    [item] = load_run(tmp_path).utterances
    assert item.elapsed == [650.0, 980.0, 5030.0, 5360.0] and item.delays == list(times)
    wav, _ = soundfile.read(item.wav_path, dtype="float32")
    kept = remove_inserted_silence(wav, RATE, item.delays, item.durations)
    assert np.abs(kept - np.concatenate(pieces)).max() < 1e-4
    assert len(wav) == pytest.approx((5320 + 2.5 - 640) * 16, abs=1)
    assert item.info["prediction_length"] == pytest.approx(len(wav) / RATE, abs=1e-4)


def test_a_run_that_says_nothing_has_a_log(tmp_path):
    speech = streams.PlayedSpeech(tmp_path / "wavs" / "0_pred.wav", RATE)
    speech.close()
    (tmp_path / "instances.log").write_text(speech.log_line(Path("a.wav"), 6000.0, "x") + "\n")
    [item] = load_run(tmp_path).utterances
    assert not item.delays and item.info["prediction_offset"] == 6000.0


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_long_stream_is_accounted_for(talking, tmp_path, rate):
    sound = tmp_path / "clip.flac"
    clip = synthetic_clip(4.1, rate, seed=3)
    soundfile.write(sound, clip, rate)
    found = streams.long_stream(
        streams.Setup(str(talking), 320), str(sound), "da ba", str(tmp_path / "out")
    )
    assert found["samples_in_file"] == found["samples_taken_in"] == len(clip)
    assert found["encoder_frames_due"] == found["encoder_frames_out"] == 102
    run = load_run(tmp_path / "out")
    [item] = run.utterances
    session = Session(streams.open_pipeline(streams.Setup(str(talking), 320)))
    samples, _ = soundfile.read(sound, dtype="float32")
    session.push(samples, rate, final=True)
    assert len(session.sentences) > 1 and session.samples_written == found["speech_samples"] > 0
    assert run.written_texts() == [" ".join(session.translation)]
    assert sum(item.durations) == pytest.approx(1000 * session.samples_written / RATE)
    assert item.source_length == pytest.approx(1000 * len(clip) / rate)
    assert found["state_highest_mib"] > 0


def test_sizes_are_noted_once_a_minute():
    growth = streams.Growth()
    for second in range(601):
        if growth.due(second):
            growth.note(second, np.zeros(second, dtype=np.uint8))
    assert list(growth.source_s) == list(range(0, 601, 60))
    figures = growth.figures()
    assert figures["state_half_mib"] == 300 / streams.MIB
    assert figures["state_highest_mib"] == 600 / streams.MIB
    assert len(figures["resident_mib_by_minute"]) == 11


def test_words_and_speech_where_nobody_speaks(talking, silent):
    loud = streams.without_speech(streams.Setup(str(talking), 320), "noise-14", 0.05)
    quiet = streams.without_speech(streams.Setup(str(silent), 320), "noise-14", 0.05)
    assert quiet["words"] == quiet["source_words"] == quiet["speech_samples"] == 0
    assert quiet["speech_samples_without_words"] == 0 and quiet["text"] == ""
    session = Session(streams.open_pipeline(streams.Setup(str(talking), 320)))
    session.push(np.concatenate(list(sounds.blocks("noise-14", 3))), RATE, final=True)
    assert loud["words"] == len(session.translation) > 0
    assert loud["words_a_minute"] == pytest.approx(20 * loud["words"])
    assert loud["speech_samples"] == session.samples_written > 0
    assert loud["speech_s"] == pytest.approx(session.samples_written / RATE)


class Here:
    """Runs in this process what would run in one of its own."""

    ran = 0

    def __init__(self, *args, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *arguments):
        Here.ran += 1
        result = function(*arguments)
        return type("Done", (), {"result": lambda self: result})()


@pytest.fixture
def here(monkeypatch):
    Here.ran = 0
    monkeypatch.setattr(suite, "ProcessPoolExecutor", Here)


def test_the_command_runs_what_is_missing(talking, silent, tmp_path, here, capsys):
    sound, sentences = tmp_path / "clip.flac", tmp_path / "sentences.tsv"
    soundfile.write(sound, synthetic_clip(4.1, RATE, seed=3), RATE)
    sentences.write_text(SENTENCES)
    out = tmp_path / "out"
    command = [
        "soak", f"loud={talking}", str(silent), "--output", str(out), "--minutes", "0.05",
        "--sounds", "silence", "tone", "--stream", str(sound), "--sentences", str(sentences),
    ]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert Here.ran == 6
    assert "| 0.05 min of | loud: words a minute | speech, s |" in printed
    assert "| one stream | loud | silent |" in printed
    assert "| encoder frames due | 102 | 102 |" in printed
    assert "| encoder frames out | 102 | 102 |" in printed
    assert "| sentences | 2 | 2 |" in printed
    assert (out / "soak.md").read_text() == printed
    found = json.loads((out / "soak.json").read_text())
    assert set(found) == {"loud", "silent"} and set(found["loud"]) == {"silence", "tone", "stream"}
    assert found["silent"]["stream"]["bleu"] == 0 and found["silent"]["tone"]["words"] == 0
    assert {key for key, _, _ in ROWS} <= set(found["loud"]["stream"])
    # Again: nothing to run; with another length the sounds alone.
    assert main(command) == 0 and Here.ran == 6
    assert capsys.readouterr().out == printed
    command[command.index("0.05")] = "0.04"
    assert main(command) == 0 and Here.ran == 10
    # The folder is one that talks are scored from.
    assert main(["talks", f"loud={out / 'loud' / 'stream'}"]) == 0
    assert "| sentences | 2 |" in capsys.readouterr().out


def test_mistakes_are_one_line(talking, tmp_path, capsys):
    out = ["--output", str(tmp_path / "out")]
    for arguments, message in (
        ([str(tmp_path)], f"no model directory {tmp_path}"),
        ([str(talking), "--sounds", "song"], "got 'song'"),
        ([str(talking), "--sounds"], "nothing to listen to"),
        ([str(talking), "--minutes", "0"], "minutes must be positive"),
        ([str(talking), "--jobs", "0"], "jobs must be at least 1"),
        ([str(talking), "--stream", "x.wav"], "belong together"),
        ([str(talking), "--stream", "x.wav", "--sentences", "y"], "no such file: x.wav"),
        ([str(talking), str(talking)], "two systems are called 'talking'"),
    ):
        assert main(["soak", *arguments, *out]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_shipped_systems_are_the_default():
    assert list(named_systems([])) == ["echostream", "streamspeech"]


@pytest.mark.slow
def test_streams_run_side_by_side_in_processes_of_their_own(silent, tmp_path):
    command = ["soak", str(silent), "--output", str(tmp_path), "--minutes", "0.02", "--jobs", "2"]
    assert main(command) == 0
    found = json.loads((tmp_path / "soak.json").read_text())["silent"]
    assert set(found) == set(sounds.SOUNDS)
    assert all(figures["words"] == 0 for figures in found.values())
