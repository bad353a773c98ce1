"""``serve``, ``listen``, ``speak`` and ``translate`` on the command line."""

import argparse
import json
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pytest
import soundfile

from echostream import assets, cli
from echostream.live.live_commands import choose_workers
from echostream.live.protocol import encode_speech
from echostream.live.sound_devices import Player
from echostream.live.speak import text_as_it_comes
from echostream.speaking import TextSpeaker
from echostream.translator.pipeline import Pipeline
from tests.live.conftest import AUDIO, read_clip

MINI = ["--model-dir", "echo-mini"]
CLIPS = [AUDIO / "test_00041.flac", AUDIO / "test_00051.flac"]


def test_translate_several_files(tmp_path, capsys, expected):
    files = [str(path) for path in CLIPS]
    out = tmp_path / "out"
    assert cli.main(["translate", *files, *MINI, "--out", str(out), "--srt", "--json"]) == 0
    for path in CLIPS:
        samples, rate = read_clip(path.name)
        transcript, translation, speech = expected(samples, rate)
        written, _ = soundfile.read(out / f"{path.stem}.wav", dtype="int16")
        assert written.astype("<i2").tobytes() == speech
        report = json.loads((out / f"{path.stem}.json").read_text())
        (sentence,) = report["sentences"]
        assert " ".join(sentence["translation"]) == translation
        assert " ".join(sentence["transcript"]) == transcript
        assert report["source_s"] == pytest.approx(len(samples) / rate)
        subtitles = (out / f"{path.stem}.srt").read_text()
        assert subtitles.startswith("1\n00:00:0") and f"\n{translation}\n" in subtitles
    assert len(list(out.iterdir())) == 6


def test_translate_offline_searches_with_a_beam(tmp_path, capsys, shipped):
    samples, rate = read_clip(CLIPS[0].name)
    for task in ("asr", "s2tt", "s2st"):
        out = tmp_path / f"{task}.wav"
        flags = [*MINI, "--out", str(out), "--task", task, "--offline", "--json"]
        assert cli.main(["translate", str(CLIPS[0]), *flags]) == 0
        pipeline = Pipeline(shipped, chunk_ms=3_600_000, task=task, beam=5)
        outputs, _ = pipeline.step(samples, rate, pipeline.init_state(), final=True)
        (sentence,) = json.loads(out.with_suffix(".json").read_text())["sentences"]
        # One decision ends the sentence; nothing is said behind it.
        assert [output.sentence for output in outputs if output.asr_tokens] == [0]
        assert sentence["transcript"] == list(outputs[0].transcript)
        assert sentence["translation"] == list(outputs[0].translation)
        assert out.exists() == (task == "s2st")


def test_translate_keeps_to_the_clock(tmp_path, monkeypatch):
    now = [100.0]

    class Clock:
        """Time passes only while somebody sleeps."""

        monotonic = staticmethod(lambda: now[0])

        @staticmethod
        def sleep(seconds):
            assert seconds >= 0
            now[0] += seconds

    monkeypatch.setattr("echostream.live.translate_files.time", Clock)
    flags = [*MINI, "--out", str(tmp_path / "x.wav"), "--task", "asr", "--realtime"]
    assert cli.main(["translate", str(CLIPS[0]), *flags]) == 0
    assert now[0] - 100 == pytest.approx(soundfile.info(CLIPS[0]).duration)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["translate", str(CLIPS[0]), "nowhere.wav", "--out", "x"], "no such sound file"),
        (["translate", str(CLIPS[0]), str(CLIPS[0]), "--out", "x"], "the same name"),
        (["serve", "--host", "0.0.0.0"], "give --token, or --no-token"),
        (["serve", "--token", "x", "--no-token"], "exclude each other"),
        (["serve", "--chunk-ms", "1"], "--chunk-ms must lie"),
        (["serve", "--port", "99999"], "--port must lie"),
        (["serve", "--max-sessions", "0"], "--max-sessions must be"),
        (["serve", "--max-batch", "0"], "--max-batch must be"),
        (["serve", "--workers", "0"], "--workers must be"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("ECHOSTREAM_TOKEN", raising=False)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("given", "threads", "cores", "workers"),
    [
        ({}, 1, 1, 1),
        ({}, 1, 2, 2),
        ({}, 1, 16, 2),
        ({}, 8, 8, 1),
        ({"device": "cuda"}, 1, 16, 1),
        ({"compile": True}, 1, 16, 1),
        ({"workers": 3}, 8, 2, 3),
    ],
)
def test_workers_are_as_many_as_there_is_room_for(given, threads, cores, workers, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    args = argparse.Namespace(**{"workers": None, "device": "cpu", "compile": False, **given})
    assert choose_workers(args, threads) == workers


def test_serve_prints_its_address_and_answers():
    command = [sys.executable, "-m", "echostream.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            address = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
            with urllib.request.urlopen(f"{address}healthz", timeout=60) as response:
                assert json.load(response)["status"] == "ok"
            with urllib.request.urlopen(address, timeout=60) as response:
                assert b"EchoStream" in response.read()
        finally:
            server.terminate()
            server.wait(60)


class SlowText:
    """Standard input of somebody who types: every read brings a little; remembers what was heard
    before each of them."""

    def __init__(self, pieces, heard):
        self.pieces, self.heard, self.before = list(pieces), heard, []
        self.buffer = self

    def isatty(self):
        return False

    def read1(self, size):
        self.before.append(sum(self.heard))
        return self.pieces.pop(0) if self.pieces else b""


def test_speak_writes_and_plays_while_text_comes(tmp_path, capsys, monkeypatch, shipped):
    """The loudspeaker is made up; the speech is not."""
    text = "My son and your cousin\ngot married last night."
    speaker = TextSpeaker(shipped)
    spoken, _ = speaker.step(text, speaker.init_state(), final=True)
    expected = np.concatenate([piece.waveform for piece in spoken])
    heard, played = [], []

    class Loudspeaker:
        PortAudioError, latency = RuntimeError, 0.0

        @staticmethod
        def query_devices(device=None, kind=None):
            return {"index": 7, "name": "loud", "default_samplerate": 48000.0}

        @staticmethod
        def check_output_settings(*, device, channels, samplerate):
            pass

        class OutputStream:
            def __init__(self, *, samplerate, channels, device, callback):
                assert (samplerate, channels, device) == (16000, 1, 7)
                self.callback, self.latency, self.active = callback, 0.0, True
                self.stopped = threading.Event()

            def __enter__(self):
                self.thread = threading.Thread(target=self.play)
                self.thread.start()
                return self

            def play(self):
                while not self.stopped.wait(0.001):
                    block = np.zeros((400, 1), np.float32)
                    self.callback(block, 400, None, None)
                    played.append(block[:, 0])

            def __exit__(self, *error):
                self.stopped.set()
                self.thread.join()

    class Noting(Player):
        def add(self, samples):
            heard.append(len(samples))
            super().add(samples)

    cut = [text.encode()[start : start + 5] for start in range(0, len(text), 5)]
    typed = SlowText(cut, heard)
    monkeypatch.setitem(sys.modules, "sounddevice", Loudspeaker)
    monkeypatch.setattr("echostream.live.sound_devices.Player", Noting)
    monkeypatch.setattr(sys, "stdin", typed)
    out = tmp_path / "speech.wav"
    system = ["--model-dir", str(assets.model_dir("echostream"))]
    assert cli.main(["speak", *system, "--out", str(out), "--play"]) == 0
    written, rate = soundfile.read(out, dtype="int16")
    assert rate == 16000
    assert written.astype("<i2").tobytes() == encode_speech(expected)
    assert sum(heard) == len(expected)
    sounded = np.concatenate(played)
    assert len(np.flatnonzero(sounded)) == len(np.flatnonzero(expected)), "all of it was heard"
    assert 0 < typed.before[len(cut) // 2] < sum(heard), "speech begins before the text ends"
    printed = capsys.readouterr().out
    assert [line.split(" s  ")[1] for line in printed.splitlines()[:-1]] == [
        " ".join(piece.words) for piece in spoken if piece.words
    ]


def test_speak_needs_to_know_where_to(capsys, monkeypatch, tmp_path):
    assert cli.main(["speak"]) == 2
    assert "--out OUT.wav, --play, or both" in capsys.readouterr().err

    class NoDevices:
        PortAudioError = RuntimeError

        @staticmethod
        def query_devices(device=None, kind=None):
            raise RuntimeError("Error querying device -1")

    monkeypatch.setitem(sys.modules, "sounddevice", NoDevices)
    system = ["--model-dir", str(assets.model_dir("echostream"))]
    assert cli.main(["speak", *system, "--play", "--out", str(tmp_path / "x.wav")]) == 2
    assert "no loudspeaker found" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_text_as_it_comes_is_utf8_in_pieces():
    data = "señor \u201cs\u00ed\u201d".encode()
    typed = SlowText([data[:3], data[3:8], data[8:], b"\xff", b"\xe2"], [])
    assert "".join(text_as_it_comes(typed)) == "señor \u201cs\u00ed\u201d\ufffd\ufffd"
