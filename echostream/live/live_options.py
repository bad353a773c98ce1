"""Options that the commands of this package share; loads nothing heavy (see ``echostream.cli``)."""

from __future__ import annotations

import argparse
from pathlib import Path

from echostream import assets
from echostream.config import add_setting_args
from echostream.config.compute import add_compute_args

OFFLINE_BEAM = 5


def add_model_arg(parser: argparse.ArgumentParser) -> None:
    """Which model."""
    parser.add_argument(
        "--model-dir",
        type=Path,
        default=assets.default_model_dir(),
        help="model directory or name (default: everyday, or echo-mini where it cannot speak)",
    )


def add_run_args(parser: argparse.ArgumentParser) -> None:
    """How much source is read per decision, how the model computes, and how it decides."""
    parser.add_argument(
        "--chunk-ms",
        type=int,
        help="source per decision (default: what the model recommends, or 320)",
    )
    add_compute_args(parser)
    add_setting_args(parser)


def add_vad_arg(parser: argparse.ArgumentParser) -> None:
    """Whether what is no speech is kept from the model; see ``live.ends``."""
    parser.add_argument(
        "--vad",
        choices=("auto", "on", "off"),
        default="auto",
        help="let a voice activity detector find where nobody speaks (default auto: for models "
        "that know no ends, if the extra 'vad' is installed)",
    )
