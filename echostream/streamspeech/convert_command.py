"""``echostream convert``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

# What converts is imported when it converts: see echostream.cli.

logger = logging.getLogger(__name__)


def add_convert_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``convert`` to a command line; the parsed arguments' ``func`` runs it."""
    parser = subparsers.add_parser(
        "convert",
        help="convert StreamSpeech checkpoints to model directories and back",
        description="Convert a StreamSpeech checkpoint to a model directory, or back.",
    )
    parser.add_argument("--checkpoint", type=Path, help="fairseq checkpoint (.pt)")
    parser.add_argument(
        "--data-bin",
        type=Path,
        help="its data directory (YAML, vocabularies); checkpoints trained here need none",
    )
    parser.add_argument("--config-yaml", help="data YAML, default: the training run's")
    parser.add_argument("--multitask-config-yaml", help="task YAML, default: the training run's")
    parser.add_argument("--vocoder", type=Path, help="CodeHiFiGAN checkpoint")
    parser.add_argument("--vocoder-cfg", type=Path, help="its JSON configuration")
    parser.add_argument(
        "--vocoder-from",
        metavar="MODEL",
        help="speak with the vocoder of this model directory or name (checkpoints trained here)",
    )
    parser.add_argument(
        "--to-fairseq", type=Path, metavar="MODEL_DIR", help="model directory to convert back"
    )
    parser.add_argument(
        "--half", action="store_true", help="store the model directory's weights in float16"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to create")
    parser.set_defaults(func=run_convert, parser=parser)


def run_convert(args: argparse.Namespace) -> int:
    """Run ``convert``; returns the exit status."""
    import torch

    from echostream.checkpoint import save_model_dir
    from echostream.streamspeech.convert import read_streamspeech
    from echostream.streamspeech.fairseq_export import export_to_fairseq
    from echostream.streamspeech.trained import export_checkpoint, is_training_checkpoint
    from echostream.torch_files import read_checkpoint

    forward = (
        "checkpoint",
        "data_bin",
        "config_yaml",
        "multitask_config_yaml",
        "vocoder",
        "vocoder_from",
    )
    given = [name for name in (*forward, "vocoder_cfg") if getattr(args, name) is not None]
    dtype = torch.float16 if args.half else None
    if args.to_fairseq is not None:
        if args.half:
            given.append("half")
        if given:
            args.parser.error(f"--to-fairseq and --{given[0].replace('_', '-')} exclude each other")
        export_to_fairseq(args.to_fairseq, args.out)
    else:
        if args.checkpoint is None:
            args.parser.error("--checkpoint is required (or --to-fairseq)")
        if is_training_checkpoint(read_checkpoint(args.checkpoint, keep=("task_state",))):
            # Trained here: the checkpoint holds its configuration, vocabularies and CMVN.
            export_checkpoint(
                args.checkpoint,
                args.out,
                vocoder=args.vocoder,
                vocoder_cfg=args.vocoder_cfg,
                vocoder_from=args.vocoder_from,
                dtype=dtype,
            )
            logger.info("wrote %s", args.out)
            return 0
        if args.vocoder_from is not None:
            args.parser.error("--vocoder-from is for checkpoints of echostream's own training")
        if args.data_bin is None:
            args.parser.error("--data-bin is required for a StreamSpeech checkpoint")
        system = read_streamspeech(
            args.checkpoint,
            args.data_bin,
            config_yaml=args.config_yaml,
            multitask_config_yaml=args.multitask_config_yaml,
            vocoder=args.vocoder,
            vocoder_cfg=args.vocoder_cfg,
        )
        save_model_dir(args.out, system, dtype=dtype)
    logger.info("wrote %s", args.out)
    return 0
