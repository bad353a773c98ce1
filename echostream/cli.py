"""The ``echostream`` command: parse, build, call the library.

Parsers are built on every start, so the modules that make them load nothing heavy: what a command
runs is imported when it runs. That also leaves time to say how threads shall wait, which OpenMP
reads when torch is loaded.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from echostream import __version__
from echostream.acceleration.onnx.export_command import add_export_onnx_parser
from echostream.bench.bench_command import add_bench_parser
from echostream.config import ENCODER_FRAME_MS, EmformerConfig
from echostream.evaluation.grid_commands import add_compare_parser, add_evaluate_parser
from echostream.evaluation.longform.talks_command import add_talks_parser
from echostream.evaluation.soak.soak_command import add_soak_parser
from echostream.hub.hub_commands import add_hub_parsers
from echostream.hub.names import resolve_model
from echostream.live.live_commands import add_live_parsers
from echostream.streamspeech.convert_command import add_convert_parser
from echostream.threads import choose_threads, wait_passively
from echostream.whisper.init_command import add_init_parser

if TYPE_CHECKING:
    from echostream.checkpoint import System


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="echostream", description="Simultaneous speech-to-speech translation."
    )
    parser.add_argument("--version", action="version", version=f"echostream {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="describe a model")
    info.add_argument("model_dir", metavar="MODEL", help="model directory or name")
    info.set_defaults(func=run_info)

    add_convert_parser(commands)
    add_init_parser(commands)
    add_export_onnx_parser(commands)
    add_evaluate_parser(commands)
    add_compare_parser(commands)
    add_talks_parser(commands)
    add_soak_parser(commands)
    add_bench_parser(commands)
    add_live_parsers(commands)
    add_hub_parsers(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code. Mistakes of the caller become one line on stderr."""
    wait_passively()
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
    from echostream.checkpoint import load_model_dir

    folder = resolve_model(args.model_dir)
    system = load_model_dir(folder)
    print("\n".join([*introduce(system, folder), *describe(system)]))
    return 0


def introduce(system: System, folder: Path) -> list[str]:
    """What a model directory says of itself and where it came from, line by line."""
    card = system.config.card
    languages = [name for name in (card.source_language, card.target_language) if name]
    from echostream.checkpoint import read_provenance

    facts = {
        "title": card.title,
        "languages": " to ".join(languages) if len(languages) == 2 else "",
        "tasks": ", ".join(card.tasks),
        "licence": card.licence,
        "recommended chunk": f"{card.chunk_ms} ms" if card.chunk_ms else "",
    }
    lines = ["model", f"  {'directory':28s} {folder}"]
    lines += [f"  {name:28s} {value}" for name, value in facts.items() if value]
    for file in read_provenance(folder).get("files", []):
        if "source" in file:
            lines.append(f"  from {file['source']}")
            lines.append(f"    sha256 {file['sha256']} ({file['checked_against']})")
    return lines


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
    lag = f"lagging_k1 {policy.lagging_k1}, stride_n {policy.stride_n}"
    if policy.name == "alignatt":
        lag = f"attention_frames {policy.attention_frames}"
    lines.append(f"  policy                       {policy.name}, {lag}")
    lines.append(f"  whole words only             {whole_word[policy.whole_word]}")
    lines.append("computing")
    lines.append(f"  threads on this machine      {choose_threads(system.model)}")
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


if __name__ == "__main__":
    sys.exit(main())
