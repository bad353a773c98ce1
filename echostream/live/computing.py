"""How a model of the live commands computes."""

from __future__ import annotations

import argparse
from pathlib import Path

from echostream.checkpoint import System, load_model_dir
from echostream.compiled import add_compile_arg, compile_encoder
from echostream.config import ChunkConformerConfig
from echostream.precision import DTYPES


def add_compute_args(parser: argparse.ArgumentParser) -> None:
    """Flags of how a model computes."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="what to compute in (default fp32)"
    )
    add_compile_arg(parser)


def load_to_compute(model_dir: Path, args: argparse.Namespace, chunk_ms: int) -> System:
    """A model directory as the flags of :func:`add_compute_args` say. A chunk Conformer, which
    serves as an Emformer's twin, is never compiled."""
    system = load_model_dir(model_dir, device=args.device, dtype=args.dtype)
    if args.compile and not isinstance(system.config.encoder, ChunkConformerConfig):
        compile_encoder(system.model, chunk_ms=chunk_ms)
    return system
