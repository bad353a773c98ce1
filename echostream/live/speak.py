"""``echostream speak``: text from standard input to a sound file and the loudspeaker."""

from __future__ import annotations

import argparse
import codecs
import itertools
import sys
from collections.abc import Iterable, Iterator
from io import BufferedReader
from typing import TYPE_CHECKING, Any, cast

from echostream import assets
from echostream.checkpoint import load_model_dir, normalize_device
from echostream.live.sound_devices import find_device, load_sounddevice, loudspeaker
from echostream.samples import sound_file
from echostream.speaking import Spoken, TextSpeaker
from echostream.threads import use_threads
from echostream.voice.named import open_voice

if TYPE_CHECKING:  # its packages are optional
    from echostream.voice.speaker import VoiceSpeaker

READ_BYTES = 4096


def text_as_it_comes(file: BufferedReader) -> Iterator[str]:
    """Pieces of UTF-8 text, each as soon as it can be read; what is no UTF-8 is replaced."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while data := file.read1(READ_BYTES):
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def load_speaker(args: argparse.Namespace) -> TextSpeaker | VoiceSpeaker:
    """What speaks: a system, if one is named, else a voice.

    Raises:
        FileNotFoundError: no such system or voice.
        ValueError: a system or voice that cannot be used, or packages that a voice needs.
    """
    if args.model_dir is not None:
        system = load_model_dir(args.model_dir, device=args.device, dtype=args.dtype)
        use_threads(system.model, args.threads)
        voice = system.voice()
        if voice is None:
            return TextSpeaker(system, words=2 if args.words is None else args.words)
    else:
        folder = assets.VOICE if args.voice is None else args.voice
        voice = open_voice(folder, normalize_device(args.device))
        use_threads(voice.voice.vocoder, args.threads)
    # Its packages are optional.
    from echostream.voice.speaker import VoiceSpeaker

    return VoiceSpeaker(voice, words=args.words or 0)


def speak_text(speaker: TextSpeaker | VoiceSpeaker, pieces: Iterable[str]) -> Iterator[Spoken]:
    """Everything that is spoken of a text, as soon as it is there."""
    state: Any = speaker.init_state()  # of its own kind
    for text in itertools.chain(pieces, [None]):
        decisions = speaker.iterate(text or "", state, final=text is None)
        for spoken, following in decisions:
            state = following
            if spoken is not None:
                yield spoken


def run_speak(args: argparse.Namespace) -> int:
    if args.out is None and not args.play:
        raise ValueError("say where the speech should go: --out OUT.wav, --play, or both")
    speaker = load_speaker(args)
    rate, samples = speaker.output_rate, 0
    sounddevice = load_sounddevice() if args.play else None
    device = find_device(sounddevice, args.output, "output") if args.play else None
    with (
        loudspeaker(sounddevice, device, rate) as play,
        sound_file(args.out, rate) as write,
    ):
        if sys.stdin.isatty():
            print("Type; a line is a sentence, Ctrl-D ends.", flush=True)
        for spoken in speak_text(speaker, text_as_it_comes(cast(BufferedReader, sys.stdin.buffer))):
            play(spoken.waveform)
            write(spoken.waveform)
            if spoken.words:
                print(f"{samples / rate:7.2f} s  {' '.join(spoken.words)}", flush=True)
            samples += len(spoken.waveform)
    if args.out is not None:
        print(f"{args.out}: {samples / rate:.2f} s of speech")
    return 0
