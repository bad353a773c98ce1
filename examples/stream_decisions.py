"""Push a sound file in small blocks, as a microphone would, and print every decision that writes.

A decision comes after every chunk of source. It says how much source was read, and what is new:
words of the translation and samples of speech. What stands in brackets may still change.

python examples/stream_decisions.py data/echo_mini/test_audio/test_00001.flac --chunk-ms 320
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import soundfile

import echostream
from echostream.translator.stream import Decision

BLOCK_MS = 50


def decisions_of(stream: echostream.LiveTranslation, path: str) -> Iterator[Decision]:
    """All decisions of a file, each as soon as it is made."""
    with soundfile.SoundFile(path) as file:
        for block in file.blocks(file.samplerate * BLOCK_MS // 1000, dtype="float32"):
            yield from stream.push(block, file.samplerate)
    yield from stream.finish()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Show the decisions of a stream.")
    parser.add_argument("source", help="sound file, any rate")
    parser.add_argument("--chunk-ms", type=int, default=320, help="source per decision")
    parser.add_argument("--model", default="echo-mini", help="name or model directory")
    args = parser.parse_args(argv)

    translator = echostream.load(args.model, chunk_ms=args.chunk_ms)
    for decision in decisions_of(translator.stream(), args.source):
        if not (decision.write or decision.final):
            continue  # READ: more source is needed
        spoken_ms = 1000 * len(decision.waveform) / decision.sample_rate
        line = f"{decision.source_ms:6.0f} ms  + {spoken_ms:4.0f} ms of speech"
        print(f"{line}  {' '.join(decision.translation)} [{decision.translation_tail}]")


if __name__ == "__main__":
    main()
