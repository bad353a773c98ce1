"""How a model of the live commands computes."""

from __future__ import annotations

import argparse
from pathlib import Path

from echostream.acceleration.compiled import compile_encoder
from echostream.checkpoint import System, load_model_dir
from echostream.config import settings_from_args
from echostream.threads import use_threads


def load_to_compute(model_dir: Path, args: argparse.Namespace, chunk_ms: int | None) -> System:
    """A model directory as the flags of ``live.options.add_run_args`` say. A chunk Conformer, which
    serves as an Emformer's baseline, is never compiled. Without ``chunk_ms`` what the model
    recommends counts."""
    system = load_model_dir(model_dir, device=args.device, dtype=args.dtype)
    use_threads(system.model, args.threads)
    if args.compile and not system.model.encoder.utterances_only:
        compile_encoder(system.model, chunk_ms=system.config.card.chunk_or(chunk_ms))
    return system.with_settings(settings_from_args(args, system.config))
