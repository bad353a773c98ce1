"""``fairseq-train`` on a small corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.fairseq_plugin.corpus import UNITS
from tests.forks import Forked

REPOSITORY = Path(__file__).parents[2]


def train_arguments(folder: Path, save_dir: Path, *extra: str) -> list[str]:
    """Arguments of ``fairseq-train`` on the CPU."""
    return [
        str(folder),
        "--user-dir", str(REPOSITORY / "echostream/fairseq_plugin"),
        "--task", "echostream", "--criterion", "echostream", "--arch", "echostream_tiny",
        "--target-code-size", str(UNITS), "--valid-subset", "dev", "--save-dir", str(save_dir),
        "--optimizer", "adam", "--adam-betas", "(0.9,0.98)", "--clip-norm", "10.0",
        "--max-tokens", "100000", "--cpu", "--num-workers", "0", "--seed", "1",
        "--log-format", "json", "--no-progress-bar",
        *extra,
    ]  # fmt: skip


def start_training(folder: Path, save_dir: Path, *extra: str) -> Forked:
    """Begin to train, without a GPU."""
    arguments = train_arguments(folder, save_dir, *extra)
    return Forked("fairseq_cli.train:cli_main", arguments, folder, {"CUDA_VISIBLE_DEVICES": ""})


def run_training(folder: Path, save_dir: Path, *extra: str, timeout_s: float = 900) -> str:
    """Train; returns what was logged."""
    return start_training(folder, save_dir, *extra).finish(timeout_s)


def logged(output: str, subset: str) -> list[dict[str, Any]]:
    """The JSON lines that a subset logged."""
    mark = f"| INFO | {subset} | "
    return [json.loads(line.split(mark)[1]) for line in output.split("\n") if mark in line]
