"""``echostream listen``, in front of made-up sound devices; what it hears and says is real."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest

from echostream import cli
from echostream.live import sound_devices
from echostream.samples import Resampler
from tests.live.conftest import read_clip

MINI = ["listen", "--model-dir", "echo-mini"]
CLIP = "test_00041.flac"


@pytest.fixture(autouse=True)
def _interrupts():
    """As in a terminal: what is started in the background ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Refused(Exception):
    """What PortAudio raises."""


class Loudspeaker:
    """Takes blocks from its callback as fast as it can."""

    latency, active = 0.0, True

    def __init__(self, machine, *, samplerate, channels, device, callback):
        self.machine, self.channels, self.callback = machine, channels, callback
        machine.opened["output"] = (samplerate, channels)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.play)

    def __enter__(self):
        self.thread.start()
        return self

    def play(self):
        while not self.stopped.wait(0.001):
            block = np.full((480, self.channels), np.nan, np.float32)
            self.callback(block, len(block), None, None)
            self.machine.played.append(block)

    def __exit__(self, *error):
        self.stopped.set()
        self.thread.join()


class Microphone:
    """Gives its callback what somebody says, then does what the test wants."""

    def __init__(self, machine, *, finished_callback, callback, **settings):
        self.machine, self.callback, self.finished = machine, callback, finished_callback
        self.rate, self.channels = settings["samplerate"], settings["channels"]
        machine.opened["input"] = (self.rate, self.channels)
        self.block = settings["blocksize"]
        self.thread = threading.Thread(target=self.speak)

    def __enter__(self):
        self.thread.start()
        return self

    def speak(self):
        samples = self.machine.said
        for start in range(0, len(samples), self.block):
            block = np.repeat(samples[start : start + self.block, None], self.channels, axis=1)
            self.callback(block, len(block), None, None)
            block[:] = np.nan  # PortAudio uses its memory again
        self.machine.then(self)

    def __exit__(self, *error):
        self.thread.join()
        self.finished()


class Machine:
    """The part of ``sounddevice`` that is used.

    Args:
        said: (T,) samples.
        rate: of them, and of the microphone.
        then: called with the microphone when all is said.
        can: (samplerate, channels) that the devices can do; None: anything.
    """

    PortAudioError = Refused

    def __init__(self, said, rate, then, can=None):
        self.said, self.rate, self.then, self.can = said, rate, then, can
        self.opened, self.played = {}, []

    def query_devices(self, device=None, kind=None):
        return {"index": 3, "name": "made up", "default_samplerate": float(self.rate)}

    def check_settings(self, *, device, channels, samplerate):
        if self.can is not None and (samplerate, channels) not in self.can:
            raise Refused("Invalid sample rate [PaErrorCode -9997]")

    check_input_settings = check_output_settings = check_settings

    def InputStream(self, **settings):
        return Microphone(self, **settings)

    def OutputStream(self, **settings):
        return Loudspeaker(self, **settings)

    @property
    def sounded(self):
        """(T, channels) samples that came out of the loudspeaker."""
        return np.concatenate(self.played)


def press_ctrl_c(microphone=None):
    """As somebody does who has read how it ends."""
    while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def listen(monkeypatch):
    def run(machine, *flags):
        monkeypatch.setitem(sys.modules, "sounddevice", machine)
        return cli.main([*MINI, *flags])

    return run


def words(printed: str, label: str) -> str:
    lines = [line for line in printed.splitlines() if f" {label} " in line]
    return " ".join(word for line in lines for word in line.split()[3:])


def as_floats(speech: bytes) -> np.ndarray:
    return np.frombuffer(speech, "<i2") / 32768


def energy(samples: np.ndarray, rate: int) -> float:
    """Of (T,) samples; silence between them does not count."""
    return float((samples.astype(np.float64) ** 2).sum() / rate)


def test_ctrl_c_ends_and_nothing_that_was_said_is_lost(listen, expected, capsys):
    samples, rate = read_clip(CLIP)
    # Ctrl-C comes before the last words are out: all blocks are there at once.
    machine = Machine(samples, rate, press_ctrl_c)
    assert listen(machine) == 0
    transcript, translation, speech = expected(samples, rate)
    told = capsys.readouterr()
    assert words(told.out, "transcript") == transcript and len(transcript) > 10
    assert words(told.out, "translation") == translation and len(translation) > 10
    assert told.err == "Finishing; Ctrl-C again gives up.\n"
    assert machine.opened == {"input": (16000, 1), "output": (16000, 1)}
    assert energy(machine.sounded[:, 0], 16000) == pytest.approx(
        energy(as_floats(speech), 16000), rel=1e-3
    ), "all of it was heard"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_ctrl_c_gives_up(listen, capsys):
    samples, rate = read_clip(CLIP)

    def twice(microphone):
        press_ctrl_c()
        while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    assert listen(Machine(samples, rate, twice)) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("tells", [True, False])
def test_unplugged_microphone_is_said_after_what_it_heard(
    listen, expected, capsys, monkeypatch, tells
):
    """Some systems tell when a device is gone, others only give nothing any more."""
    monkeypatch.setattr(sound_devices, "STALL_S", 0.2)
    samples, rate = read_clip(CLIP)
    machine = Machine(samples, rate, lambda microphone: microphone.finished() if tells else None)
    assert listen(machine) == 2
    transcript, _, _ = expected(samples, rate)
    told = capsys.readouterr()
    assert words(told.out, "transcript") == transcript
    assert "made up gives no sound any more; is it still connected?" in told.err


def test_devices_that_know_one_rate_and_two_channels(listen, expected):
    samples, rate = read_clip(CLIP)
    resampler = Resampler(rate, 48000)
    said, _ = resampler.step(samples, resampler.init_state(), final=True)
    machine = Machine(said, 48000, press_ctrl_c, can={(48000, 2)})
    assert listen(machine) == 0
    assert machine.opened == {"input": (48000, 2), "output": (48000, 2)}
    _, _, speech = expected(said, 48000)
    heard = machine.sounded
    assert np.array_equal(heard[:, 0], heard[:, 1]), "both channels"
    wanted = energy(as_floats(speech), 16000)
    assert energy(heard[:, 0], 48000) == pytest.approx(wanted, rel=0.01)


def test_device_that_cannot_be_opened(listen, capsys):
    samples, rate = read_clip(CLIP)
    assert listen(Machine(samples, rate, press_ctrl_c, can=set())) == 2
    assert "made up cannot be opened: Invalid sample rate" in capsys.readouterr().err


def test_silent_microphone_is_said_once(listen, capsys):
    machine = Machine(np.zeros(5 * 16000, np.float32), 16000, press_ctrl_c)
    assert listen(machine, "--task", "s2tt") == 0
    assert capsys.readouterr().err.count("The microphone is silent. Is it muted?") == 1
    assert "output" not in machine.opened, "text needs no loudspeaker"


def test_source_that_no_model_took_is_counted():
    recording = sound_devices.Recording(16000)
    block = np.ones((640, 1), np.float32)
    for _ in range(300):
        recording.add(block, len(block), None, None)
    recording.end()
    recording.add(block, len(block), None, None)
    assert recording.take_lost() == 2.0 and recording.take_lost() == 0.0
    assert sum(map(len, recording)) == 10 * 16000 and not recording.gone


def test_no_microphone(listen, capsys, monkeypatch):
    class NoDevices:
        PortAudioError = Refused

        @staticmethod
        def query_devices(device=None, kind=None):
            raise Refused("Error querying device -1")

    assert listen(NoDevices) == 2
    error = capsys.readouterr().err
    assert "no microphone found" in error and "echostream serve" in error
