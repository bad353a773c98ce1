"""The ``echostream`` command: parse, build, call the library."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from echostream import __version__
from echostream.checkpoint import System, load_model_dir
from echostream.config import ENCODER_FRAME_MS, EmformerConfig
from echostream.evaluation.commands import add_compare_parser, add_evaluate_parser
from echostream.live.command import add_live_parsers
from echostream.pipeline import ChunkOutput, Pipeline
from echostream.session import Session
from echostream.streamspeech.convert import add_convert_parser

DEFAULT_CHUNK_MS = 320


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="echostream", description="Simultaneous speech-to-speech translation."
    )
    parser.add_argument("--version", action="version", version=f"echostream {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="describe a model directory")
    info.add_argument("model_dir", type=Path, metavar="MODEL_DIR")
    info.set_defaults(func=run_info)

    translate = commands.add_parser("translate", help="stream a sound file through a model")
    translate.add_argument("input", type=Path, metavar="IN.wav")
    translate.add_argument("--model-dir", type=Path, required=True, help="model directory")
    translate.add_argument("--out", type=Path, required=True, help="translated speech, WAV")
    translate.add_argument(
        "--chunk-ms", type=int, default=DEFAULT_CHUNK_MS, help="source per decision (default 320)"
    )
    translate.add_argument(
        "--text", action="store_true", help="print transcript and translation as they grow"
    )
    translate.add_argument("--beam", type=int, default=1, help="beam width (default 1)")
    translate.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    translate.set_defaults(func=run_translate)

    add_convert_parser(commands)
    add_evaluate_parser(commands)
    add_compare_parser(commands)
    add_live_parsers(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code. Mistakes of the caller become one line on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        return args.func(args)
    except (OSError, ValueError) as error:
        print(f"echostream {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"echostream {args.command}: interrupted", file=sys.stderr)
        return 130


def run_info(args: argparse.Namespace) -> int:
    print("\n".join(describe(load_model_dir(args.model_dir))))
    return 0


def describe(system: System) -> list[str]:
    """Sizes, latency settings and vocabularies of a loaded system, line by line."""
    config = system.config
    lines = ["parameters"]
    total = 0
    for name, part in system.model.named_children():
        count = sum(parameter.numel() for parameter in part.parameters())
        total += count
        lines.append(f"  {name:28s} {count / 1e6:8.3f} M")
    lines.append(f"  {'total':28s} {total / 1e6:8.3f} M")
    encoder = config.encoder
    lines.append("latency")
    lines.append(f"  encoder                      {encoder.kind}, {encoder.layers} layers")
    lines.append(f"  default segment              {encoder.segment_frames * ENCODER_FRAME_MS} ms")
    if isinstance(encoder, EmformerConfig):
        left, right = encoder.left_context_frames, encoder.right_context_frames
        lines.append(f"  left context                 {left * ENCODER_FRAME_MS} ms")
        lines.append(f"  right context (look-ahead)   {right * ENCODER_FRAME_MS} ms")
        lines.append(f"  memory bank                  {encoder.memory_size} segments")
        kernel = encoder.depthwise_kernel_size
        lines.append(f"  convolution                  {f'{kernel} frames' if kernel else 'none'}")
    policy = config.policy
    whole_word = {None: "from 640 ms chunks on", True: "always", False: "never"}
    lines.append(
        f"  policy                       {policy.name}, lagging_k1 {policy.lagging_k1}, "
        f"stride_n {policy.stride_n}"
    )
    lines.append(f"  whole words only             {whole_word[policy.whole_word]}")
    lines.append("vocabularies")
    for name, vocabulary in (
        ("source", system.source_vocabulary),
        ("target", system.target_vocabulary),
    ):
        kind = "SentencePiece" if vocabulary.processor else "dictionary"
        lines.append(f"  {name:28s} {len(vocabulary)} ({kind})")
    lines.append(f"  {'units':28s} {config.num_units}")
    if config.vocoder is not None:
        rate, unit = config.vocoder.sampling_rate, config.vocoder.unit_samples
        lines.append(f"  {'speech':28s} {rate} Hz, {1000 * unit / rate:g} ms per unit frame")
    return lines


def audio_blocks(path: Path, block_ms: int = 100) -> Iterator[tuple[np.ndarray, int, bool]]:
    """Yield (samples, sample rate, last) blocks of a sound file without loading all of it."""
    if not path.is_file():
        raise FileNotFoundError(f"no such sound file: {path}")
    try:
        with soundfile.SoundFile(path) as file:
            size = max(file.samplerate * block_ms // 1000, 1)
            remaining = file.frames
            while True:
                block = file.read(size, dtype="float32")
                remaining -= len(block)
                last = remaining <= 0 or not len(block)
                yield block, file.samplerate, last
                if last:
                    return
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: not a readable sound file: {error}") from error


def translate_file(pipeline: Pipeline, path: Path, out: Path) -> Iterator[ChunkOutput]:
    """Stream a file through a pipeline, yield every decision and leave the speech in ``out``.

    The waveform is written beside ``out`` and moved into place at the end, so an interrupted run
    leaves no file that looks whole.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    session = Session(pipeline)
    try:
        with soundfile.SoundFile(
            partial, "w", pipeline.output_rate, 1, subtype="PCM_16", format="WAV"
        ) as speech:
            for samples, rate, last in audio_blocks(path):
                for output in session.iterate(samples, rate, final=last):
                    speech.write(output.waveform)
                    yield output
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def run_translate(args: argparse.Namespace) -> int:
    system = load_model_dir(args.model_dir, device=args.device)
    pipeline = Pipeline(system, chunk_ms=args.chunk_ms, beam=args.beam)
    if not args.input.is_file():
        raise FileNotFoundError(f"no such sound file: {args.input}")
    seconds = 0.0
    speech = 0
    with tqdm(unit="s", desc="source", disable=None, bar_format="{desc}: {n:.1f} s") as progress:
        for output in translate_file(pipeline, args.input, args.out):
            progress.update(output.source_ms / 1000 - seconds)
            seconds = output.source_ms / 1000
            speech += len(output.waveform)
            if args.text:
                _print_words(output)
    rate = pipeline.output_rate
    print(f"{args.out}: {speech / rate:.2f} s of speech from {seconds:.2f} s of source")
    return 0


def _print_words(output: ChunkOutput) -> None:
    for label, words in (("transcript", output.transcript), ("translation", output.translation)):
        if words:
            tqdm.write(f"{output.source_ms / 1000:7.2f} s  {label:11s} {' '.join(words)}")


if __name__ == "__main__":
    sys.exit(main())
