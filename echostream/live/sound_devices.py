"""Microphone and loudspeaker of this machine, through PortAudio."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from echostream.samples import Resampler

BLOCK_MS = 40
WAITING_S = 10.0  # source that may wait for the model
STALL_S = 5.0  # without a block a microphone is taken for gone
POLL_S = 0.05


def load_sounddevice() -> Any:
    """
    Raises:
        ValueError: the extra or the PortAudio library is missing; says which.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise ValueError("sounddevice is not installed; pip install 'echostream[live]'") from error
    except OSError as error:
        raise ValueError(f"{error}; on Debian: apt-get install libportaudio2") from error
    return sounddevice


def find_device(sounddevice: Any, name: str | None, kind: str) -> dict[str, Any]:
    """The device to use for ``kind``, ``input`` or ``output``.

    Raises:
        ValueError: there is none.
    """
    wanted = int(name) if name is not None and name.isdigit() else name
    try:
        return sounddevice.query_devices(wanted, kind)
    except (ValueError, sounddevice.PortAudioError) as error:
        what = {"input": "microphone", "output": "loudspeaker"}[kind]
        raise ValueError(
            f"no {what} found ({error}); --list-devices shows what there is, and "
            "`echostream serve` takes the microphone of any browser"
        ) from error


def fitting(
    sounddevice: Any, device: dict[str, Any], kind: str, rate: int | None = None
) -> dict[str, Any]:
    """Sample rate, channels and number of a device, as its stream takes them: one channel and
    ``rate`` where it can do that, else its own rate, else two channels.

    Raises:
        ValueError: it takes none of them, or another program has it.
    """
    own = int(device["default_samplerate"])
    check = getattr(sounddevice, f"check_{kind}_settings")
    refused = None
    for channels in (1, 2):
        for chosen in dict.fromkeys((rate or own, own)):
            settings = {"device": device["index"], "channels": channels, "samplerate": chosen}
            try:
                check(**settings)
            except (ValueError, sounddevice.PortAudioError) as error:
                refused = refused or error
            else:
                return settings
    raise ValueError(f"{device['name']} cannot be opened: {refused}") from refused


class Player:
    """Samples that wait for the loudspeaker; its callback takes what it needs."""

    def __init__(self) -> None:
        self._pieces: deque[np.ndarray] = deque()
        self._lock = threading.Lock()

    def add(self, samples: np.ndarray) -> None:
        with self._lock:
            if len(samples):
                self._pieces.append(samples)

    def take(self, count: int) -> np.ndarray:
        """(count,) samples, silence where none wait."""
        out = np.zeros(count, dtype=np.float32)
        filled = 0
        with self._lock:
            while filled < count and self._pieces:
                piece = self._pieces.popleft()
                used = min(count - filled, len(piece))
                out[filled : filled + used] = piece[:used]
                if used < len(piece):
                    self._pieces.appendleft(piece[used:])
                filled += used
        return out

    @property
    def waiting(self) -> int:
        with self._lock:
            return sum(len(piece) for piece in self._pieces)


@contextlib.contextmanager
def loudspeaker(
    sounddevice: Any, device: dict[str, Any] | None, rate: int
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields what takes (T,) samples at ``rate``; in the end waits until all of them have been
    played, or the device is gone. Without a device nothing is played.

    Raises:
        ValueError: it cannot be opened.
    """
    if device is None:
        yield lambda samples: None
        return
    settings = fitting(sounddevice, device, "output", rate)
    resampler = Resampler(rate, settings["samplerate"])
    state, player = resampler.init_state(), Player()

    def add(samples: np.ndarray, *, final: bool = False) -> None:
        nonlocal state
        # Samples that wait inside the resampler are its reach, 6 ms.
        converted, state = resampler.step(samples, state, final=final)
        player.add(converted)

    def play(out: np.ndarray, frames: int, times: Any, status: Any) -> None:
        out[:] = player.take(frames)[:, None]

    stream = open_stream(sounddevice, "OutputStream", device["name"], callback=play, **settings)
    with stream:
        yield add
        add(np.zeros(0, np.float32), final=True)
        while player.waiting and stream.active:
            time.sleep(POLL_S)
        time.sleep(stream.latency)


class Recording:
    """Blocks of the microphone that wait for the model."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.ended = self.gone = False
        self._most = int(WAITING_S * 1000 / BLOCK_MS)
        # Unlike queue.Queue it may be put to from a signal handler.
        self._blocks: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        self._lost = 0

    def add(self, samples: np.ndarray, frames: int, times: Any, status: Any) -> None:
        """The stream's callback: (T, channels) samples."""
        if self.ended:
            return
        if self._blocks.qsize() < self._most:
            self._blocks.put(samples.mean(axis=1))
        else:
            self._lost += frames

    def end(self) -> None:
        """What follows is not heard any more."""
        if not self.ended:
            self.ended = True
            self._blocks.put(None)

    def break_off(self) -> None:
        """The device has stopped by itself."""
        if not self.ended:
            self.gone = True
            self.end()

    def take_lost(self) -> float:
        """Seconds that were lost since the last call."""
        lost, self._lost = self._lost, 0
        return lost / self.rate

    def __iter__(self) -> Iterator[np.ndarray]:
        """(T,) samples, block by block, until the end."""
        while True:
            try:
                block = self._blocks.get(timeout=STALL_S)
            except queue.Empty:
                self.break_off()
                continue
            if block is None:
                return
            yield block


@contextlib.contextmanager
def microphone(sounddevice: Any, device: dict[str, Any]) -> Iterator[Recording]:
    """Yields what the microphone records.

    Raises:
        ValueError: it cannot be opened.
    """
    settings = fitting(sounddevice, device, "input")
    rate = settings["samplerate"]
    recording = Recording(rate)
    stream = open_stream(
        sounddevice,
        "InputStream",
        device["name"],
        blocksize=rate * BLOCK_MS // 1000,
        callback=recording.add,
        finished_callback=recording.break_off,
        **settings,
    )
    with stream:
        yield recording


def open_stream(sounddevice: Any, kind: str, name: str, **settings: Any) -> Any:
    """An ``InputStream`` or ``OutputStream``.

    Raises:
        ValueError: the device does not take it.
    """
    try:
        return getattr(sounddevice, kind)(**settings)
    except sounddevice.PortAudioError as error:
        raise ValueError(f"{name} cannot be opened: {error}") from error
