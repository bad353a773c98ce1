"""``echostream listen``: the microphone to captions and the loudspeaker."""

from __future__ import annotations

import argparse
import queue
import sys
import threading
from collections import deque
from typing import Any

import numpy as np

from echostream.live.captions import show_words
from echostream.live.computing import load_to_compute
from echostream.live.ends import (
    cutter_for,
    ends_are_given,
    for_streams,
    gate_for,
    open_pipeline,
)
from echostream.live.speech_gate import GatedStream, SpeechGate
from echostream.live.utterances import SpokenSession
from echostream.session import Session

BLOCK_MS = 40
QUEUE_BLOCKS = 250  # 10 s of source that may wait for the model


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


def run_listen(args: argparse.Namespace) -> int:
    sounddevice = load_sounddevice()
    if args.list_devices:
        print(sounddevice.query_devices() or "no sound devices found")
        return 0
    microphone = find_device(sounddevice, args.input, "input")
    speaks = args.task == "s2st"
    loudspeaker = find_device(sounddevice, args.output, "output") if speaks else None
    loaded = load_to_compute(args.model_dir, args, args.chunk_ms)
    given = ends_are_given(args)
    cutter = None if given else cutter_for(loaded, args.vad)
    # What is cut into utterances has their ends.
    system = loaded if cutter else for_streams(loaded, given=given)
    chunk_ms = system.config.card.chunk_or(args.chunk_ms)
    pipeline = open_pipeline(system, chunk_ms=chunk_ms, task=args.task)
    gate = None if cutter else gate_for(loaded, args.vad)
    rate = int(microphone["default_samplerate"])
    recorded: queue.Queue[np.ndarray | None] = queue.Queue(QUEUE_BLOCKS)
    lost = threading.Event()
    player = Player()

    def record(samples: np.ndarray, frames: int, times: Any, status: Any) -> None:
        try:
            recorded.put_nowait(samples[:, 0].copy())
        except queue.Full:
            lost.set()

    def play(out: np.ndarray, frames: int, times: Any, status: Any) -> None:
        out[:, 0] = player.take(frames)

    streams = [
        sounddevice.InputStream(
            samplerate=rate,
            blocksize=rate * BLOCK_MS // 1000,
            channels=1,
            device=microphone["index"],
            callback=record,
        )
    ]
    if loudspeaker is not None:
        streams.append(
            sounddevice.OutputStream(
                samplerate=pipeline.output_rate,
                channels=1,
                device=loudspeaker["index"],
                callback=play,
            )
        )
    print(f"Listening to {microphone['name']}; Ctrl-C ends.", flush=True)
    for stream in streams:
        stream.start()
    try:
        session = (
            SpokenSession(pipeline, cutter, keep_tokens=False)
            if cutter
            else Session(pipeline, keep_tokens=False)
        )
        translate_queue(session, rate, recorded, player, lost, gate)
    finally:
        for stream in streams:
            stream.close()
    return 0


def translate_queue(
    session: Session | SpokenSession,
    rate: int,
    recorded: queue.Queue[np.ndarray | None],
    player: Player,
    lost: threading.Event,
    gate: SpeechGate | None = None,
) -> None:
    """Translate blocks as they come, print words and hand speech on; None ends the stream."""
    gated = GatedStream(gate)
    while True:
        block = recorded.get()
        if lost.is_set():
            lost.clear()
            print("This machine is too slow: some source was lost.", file=sys.stderr)
        samples = np.zeros(0, np.float32) if block is None else block
        samples = gated.push(samples, rate, final=block is None)
        for output in session.push(samples, rate, final=block is None):
            player.add(output.waveform)
            for line in show_words(output):
                print(line, flush=True)
        if block is None:
            return
