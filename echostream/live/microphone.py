"""``echostream listen``: the microphone to captions and the loudspeaker."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

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
from echostream.live.sound_devices import (
    Recording,
    find_device,
    load_sounddevice,
    loudspeaker,
    microphone,
)
from echostream.live.speech_gate import GatedStream, SpeechGate
from echostream.live.utterances import SpokenSession
from echostream.session import Session

# Less than one step of 16 bits: a microphone in a quiet room exceeds it, a muted one does not.
SILENT_PEAK = 2e-5
SILENT_S = 3.0


@contextlib.contextmanager
def first_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls ``action``, the next one interrupts as ever."""
    ordinary = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not (ordinary and threading.current_thread() is threading.main_thread()):
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        action()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_listen(args: argparse.Namespace) -> int:
    """Translate the microphone until Ctrl-C; what was said before is still translated and spoken.

    Raises:
        ValueError: there is no such device, it cannot be opened, or the microphone stopped.
    """
    sounddevice = load_sounddevice()
    if args.list_devices:
        print(sounddevice.query_devices() or "no sound devices found")
        return 0
    source = find_device(sounddevice, args.input, "input")
    speaks = args.task == "s2st"
    target = find_device(sounddevice, args.output, "output") if speaks else None
    loaded = load_to_compute(args.model_dir, args, args.chunk_ms)
    given = ends_are_given(args)
    cutter = None if given else cutter_for(loaded, args.vad)
    # What is cut into utterances has their ends.
    system = loaded if cutter else for_streams(loaded, given=given)
    chunk_ms = system.config.card.chunk_or(args.chunk_ms)
    pipeline = open_pipeline(system, chunk_ms=chunk_ms, task=args.task)
    gate = None if cutter else gate_for(loaded, args.vad)
    session = (
        SpokenSession(pipeline, cutter, keep_tokens=False)
        if cutter
        else Session(pipeline, keep_tokens=False)
    )
    with (
        loudspeaker(sounddevice, target, pipeline.output_rate) as play,
        microphone(sounddevice, source) as recording,
        first_interrupt(recording.end),
    ):
        print(f"Listening to {source['name']}; Ctrl-C ends.", flush=True)
        translate_recording(session, recording, play, gate)
    if recording.gone:
        raise ValueError(f"{source['name']} gives no sound any more; is it still connected?")
    return 0


def translate_recording(
    session: Session | SpokenSession,
    recording: Recording,
    play: Callable[[np.ndarray], None],
    gate: SpeechGate | None = None,
) -> None:
    """Translate blocks as they come until the recording ends, print words and hand speech on.

    What goes wrong with the source is said on standard error.
    """
    gated, rate = GatedStream(gate), recording.rate
    silent_s = 0.0

    def step(samples: np.ndarray, *, final: bool = False) -> None:
        samples = gated.push(samples, rate, final=final)
        for output in session.push(samples, rate, final=final):
            play(output.waveform)
            for line in show_words(output):
                print(line, flush=True)

    for block in recording:
        if lost_s := recording.take_lost():
            note(f"This machine is too slow: {lost_s:.2f} s of source were lost.")
        was_silent = silent_s >= SILENT_S
        quiet = np.abs(block).max(initial=0.0) < SILENT_PEAK
        silent_s = silent_s + len(block) / rate if quiet else 0.0
        if silent_s >= SILENT_S and not was_silent:
            note("The microphone is silent. Is it muted? --list-devices shows the others.")
        step(block)
    if not recording.gone:
        note("Finishing; Ctrl-C again gives up.")
    step(np.zeros(0, np.float32), final=True)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
