"""Flags of how a model computes."""

from __future__ import annotations

import argparse

# Of weights and activations; echostream.precision says what they mean.
DTYPES = ("fp32", "fp16", "bf16", "int8")


def add_compute_args(parser: argparse.ArgumentParser) -> None:
    """Device, number format, compiling and threads."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="what to compute in (default fp32)"
    )
    add_compile_arg(parser)
    add_threads_arg(parser)


def add_compile_arg(parser: argparse.ArgumentParser) -> None:
    """The flag that asks for ``echostream.acceleration.compiled.compile_encoder``."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the Emformer's step ahead, once per model and chunk size: a minute or more, "
        "with a C++ compiler. On a CUDA device, capture it as CUDA graphs in seconds",
    )


def positive(text: str) -> int:
    """An integer of at least 1, as argparse wants it read."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return value


def add_threads_arg(parser: argparse.ArgumentParser) -> None:
    """The flag that overrides what ``echostream.threads`` chooses."""
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads of the model (default: one for small models, the physical cores for large "
        "ones, or OMP_NUM_THREADS where it is set)",
    )
