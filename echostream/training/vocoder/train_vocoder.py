"""The command behind ``scripts/train_vocoder.py``."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from echostream.config import CodeVocosConfig, from_dict, load_yaml, to_dict
from echostream.training.vocoder.codevocos_training import CodeVocosTrainer
from echostream.training.vocoder.data import SegmentSampler, SpeechWithUnits, load_speech
from echostream.training.vocoder.training_settings import PRESETS, VocoderTrainingConfig, preset
from echostream.training.vocoder.validation import validate
from echostream.training.vocoder.vocoder_trainer import CHECKPOINT, VocoderTrainer

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_vocoder.py",
        description="Train a vocoder, CodeHiFiGAN or CodeVocos, on speech and its units.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, weights, reports")
    parser.add_argument("--units", type=Path, required=True, help="unit file, one unit per frame")
    parser.add_argument("--audio", type=Path, required=True, help="folder of the speech in --units")
    parser.add_argument(
        "--pitch", type=Path, help="pitch file of the speech in --units, which CodeVocos needs"
    )
    parser.add_argument("--valid-pitch", type=Path, help="held-out pitch file")
    parser.add_argument("--valid-units", type=Path, required=True, help="held-out unit file")
    parser.add_argument("--valid-audio", type=Path, required=True, help="held-out speech")
    parser.add_argument(
        "--valid-texts", type=Path, help="TSV with id and tgt_text, to measure ASR-BLEU"
    )
    parser.add_argument(
        "--preset",
        default="mini",
        choices=PRESETS,
        help="starting settings",
    )
    parser.add_argument("--config", type=Path, help="YAML of all settings instead of --preset")
    parser.add_argument(
        "--init-from", type=Path, help="begin with the generator of this vocoder file"
    )
    parser.add_argument("--updates", type=int, help="train until this update")
    parser.add_argument("--num-units", type=int, help="embeddings of the vocoder")
    parser.add_argument(
        "--pitch-classes", type=int, help="pitch classes of a unit, for vocoders that know them"
    )
    parser.add_argument("--seed", type=int, help="of weights, segments and dropout")
    parser.add_argument("--limit", type=int, help="use only the first N training utterances")
    parser.add_argument("--valid-utterances", type=int, default=50, help="held-out utterances")
    parser.add_argument("--log-every", type=int, default=50, help="updates")
    parser.add_argument("--save-every", type=int, default=500, help="updates")
    parser.add_argument("--validate-every", type=int, default=2000, help="updates")
    parser.add_argument("--max-minutes", type=float, help="stop, saved, after so many minutes")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (cuda if there is one)")
    return parser


def settings_from(args: argparse.Namespace) -> VocoderTrainingConfig:
    """Preset or file, with the command's overrides."""
    if args.config is not None:
        config = from_dict(VocoderTrainingConfig, load_yaml(args.config), str(args.config))
    else:
        config = preset(args.preset)
    changes = {name: getattr(args, name) for name in ("updates", "seed")}
    changes = {name: value for name, value in changes.items() if value is not None}
    sizes = {"num_embeddings": args.num_units, "pitch_classes": args.pitch_classes}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    if "pitch_classes" in sizes and not isinstance(config.vocoder, CodeVocosConfig):
        raise ValueError("--pitch-classes needs a CodeVocos vocoder (--preset vocos)")
    if sizes:
        changes["vocoder"] = dataclasses.replace(config.vocoder, **sizes)
    return dataclasses.replace(config, **changes)


def read_target_texts(path: Path) -> dict[str, str]:
    """Texts by utterance from a TSV with ``id`` and ``tgt_text``."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file of texts: {path}")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        if not {"id", "tgt_text"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path}, line 1: needs columns id and tgt_text")
        return {row["id"]: row["tgt_text"] for row in reader}


def _append(path: Path, record: dict[str, float]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def run_training(
    trainer: VocoderTrainer,
    valid: Sequence[SpeechWithUnits],
    args: argparse.Namespace,
    texts: dict[str, str] | None,
) -> None:
    """Update until the end or the time limit, with logs, checkpoints and validations."""
    config, started = trainer.config, time.monotonic()
    parameters = sum(p.numel() for p in trainer.generator.parameters())
    logger.info("generator: %.2f M parameters on %s", parameters / 1e6, trainer.device)

    def check() -> None:
        report = validate(trainer.vocoder(), valid, texts=texts, sample_folder=args.out / "samples")
        logger.info("update %d: %s", trainer.update, report)
        _append(args.out / "validation.jsonl", {"update": trainer.update, **report})

    bar = tqdm(total=config.updates, initial=trainer.update, desc="vocoder", mininterval=2.0)
    with bar:
        while trainer.update < config.updates:
            losses = trainer.step()
            bar.update()
            if trainer.update % args.log_every == 0:
                bar.set_postfix(loss=f"{losses['generator']:.3f}")
                minutes = (time.monotonic() - started) / 60
                _append(
                    args.out / "training.jsonl",
                    {"update": trainer.update, "minutes": round(minutes, 2), **losses},
                )
            if trainer.update % args.save_every == 0:
                trainer.save(args.out)
            if trainer.update % args.validate_every == 0 and trainer.update < config.updates:
                check()
            if args.max_minutes and time.monotonic() - started > 60 * args.max_minutes:
                logger.info("time is up at update %d", trainer.update)
                break
    trainer.save(args.out)
    trainer.export(args.out)
    check()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for name in ("log_every", "save_every", "validate_every", "valid_utterances"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive, got {getattr(args, name)}")
    try:
        config = settings_from(args)
        device = args.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        trainers: dict[type, type[VocoderTrainer]] = {CodeVocosConfig: CodeVocosTrainer}
        speech = {
            "num_units": config.vocoder.num_embeddings,
            "sample_rate": config.vocoder.sampling_rate,
            "frame_samples": config.vocoder.unit_samples,
            "pitch_per_frame": getattr(config.vocoder, "frames_per_unit", 1),
        }
        sampler = SegmentSampler(
            load_speech(args.units, args.audio, limit=args.limit, pitch_file=args.pitch, **speech),
            segment_frames=config.segment_frames,
            frame_samples=config.vocoder.unit_samples,
            seed=config.seed,
        )
        valid = load_speech(
            args.valid_units,
            args.valid_audio,
            limit=args.valid_utterances,
            pitch_file=args.valid_pitch,
            **speech,
        )
        texts = read_target_texts(args.valid_texts) if args.valid_texts else None
        args.out.mkdir(parents=True, exist_ok=True)
        kind = trainers.get(type(config.vocoder), VocoderTrainer)
        trainer = kind(config, sampler, torch.device(device))
        if (args.out / CHECKPOINT).is_file():
            trainer.restore(args.out / CHECKPOINT)
            logger.info("resuming at update %d", trainer.update)
        elif args.init_from is not None:
            trainer.start_from(args.init_from)
        logger.info("settings: %s", json.dumps(to_dict(config)))
        run_training(trainer, valid, args, texts)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    return 0
