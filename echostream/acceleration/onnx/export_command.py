"""``echostream export-onnx``, and the flag that chooses a runtime; what they run is imported when
they run."""

from __future__ import annotations

import argparse
from pathlib import Path

RUNTIMES = ("torch", "onnx")


def add_export_onnx_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``echostream export-onnx``."""
    export = commands.add_parser(
        "export-onnx",
        help="write a model's steps as ONNX files, which run without torch",
        description="Write encoder with CTC heads, text decoder, unit decoder and vocoder as ONNX "
        "files with a manifest. 'echostream translate --runtime onnx --model-dir OUT' runs them. "
        "Needs the extra 'onnx'.",
    )
    export.add_argument("model_dir", type=Path, metavar="MODEL", help="model directory")
    export.add_argument("out", type=Path, metavar="OUT", help="folder to create or to replace")
    export.set_defaults(func=run_export_onnx)


def run_export_onnx(args: argparse.Namespace) -> int:
    from echostream.acceleration.onnx.onnx_export import export_onnx
    from echostream.checkpoint import load_model_dir

    manifest = export_onnx(load_model_dir(args.model_dir), args.out)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"{args.out}: {len(manifest.graphs)} graphs, {size / 1e6:.1f} MB")
    return 0


def add_runtime_arg(parser: argparse.ArgumentParser) -> None:
    """The flag that chooses what computes."""
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="torch",
        help="what computes (default torch). onnx takes as --model-dir what 'echostream "
        "export-onnx' wrote, and loads no torch",
    )
