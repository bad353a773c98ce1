"""Train a streaming translator out of Whisper: ``python -m echostream.training.warm_start.train``.

Stopped at any place, the same command goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import math
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from tokenizers import Tokenizer

from echostream.checkpoint import System, save_model_dir
from echostream.config import EmformerConfig
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder
from echostream.text import read_lines
from echostream.training.warm_start.clips import SpeechPool
from echostream.training.warm_start.measure import Measured, measure, read_clips
from echostream.training.warm_start.parallel import join_ranks
from echostream.training.warm_start.trainer import TrainingOptions, WarmStartTrainer
from echostream.whisper.system import continue_model, start_with_texts
from echostream.whisper.tokens import CutTokenizer, read_tokenizer
from echostream.whisper.warm_start import interpolate, start_encoder
from echostream.whisper.weights import WhisperWeights, read_whisper

CHECKPOINT = "checkpoint.pt"


def read_translations(path: Path) -> list[tuple[str, str, str]]:
    """A table of ``id``, source and target text, separated by tabs, without a header."""
    rows = []
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        for number, row in enumerate(reader, start=1):
            if len(row) != 3:
                raise ValueError(
                    f"{path}, line {number}: expected id, source and target, got {len(row)} columns"
                )
            rows.append((row[0], row[1], row[2]))
    return rows


def weighted_folder(text: str) -> tuple[Path, float]:
    """``DIR`` or ``DIR:WEIGHT``; a folder whose name ends like a weight is written ``DIR/``."""
    folder, separator, weight = text.rpartition(":")
    if not separator or "/" in weight:
        return Path(text), 1.0
    try:
        value = float(weight)
    except ValueError:
        return Path(text), 1.0
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a weight must be above 0 and finite, got {text!r}")
    return Path(folder), value


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whisper", type=Path, required=True, help="Whisper's weights and tokens")
    parser.add_argument(
        "--texts", type=Path, required=True, help="id, source, target: of the speech"
    )
    parser.add_argument(
        "--more-targets", type=Path, nargs="*", default=[], help="target texts for the vocabulary"
    )
    parser.add_argument(
        "--more-texts",
        type=Path,
        nargs="*",
        default=[],
        help="the same of more speech, which leaves the vocabularies as they are",
    )
    parser.add_argument(
        "--speech",
        type=weighted_folder,
        nargs="+",
        required=True,
        metavar="DIR[:WEIGHT]",
        help="aligned speech; that of a weight of 3 is drawn three times as often",
    )
    parser.add_argument("--sounds", type=Path, nargs="*", default=[], help="speech without text")
    parser.add_argument("--held-out", type=Path, nargs="*", default=[], help="tables to measure on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--language", default="es")
    parser.add_argument(
        "--init",
        help="checkpoint of another run: its weights, not how far it came; or a model that started "
        "from this Whisper, by folder or name: its sizes and vocabularies too",
    )
    parser.add_argument("--segment-frames", type=int, default=8, help="of 40 ms")
    parser.add_argument("--left-context-frames", type=int, default=128, help="of 20 ms")
    parser.add_argument("--right-context-frames", type=int, default=0, help="of 20 ms")
    parser.add_argument("--source-pieces", type=int, default=500)
    parser.add_argument("--least", type=int, default=4, help="times that a kept subword occurs")
    parser.add_argument("--decoder-layers", type=int, nargs="*", help="of Whisper; default: all")
    parser.add_argument(
        "--decoder-share",
        type=float,
        default=0.5,
        help="of the trained text decoder in the model that is written; the rest is Whisper's",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers, which pays on a GPU"
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="store the model in eight bits, its encoder in a file of its own",
    )
    parser.add_argument("--measure-minutes", type=float, default=12.0)
    parser.add_argument("--save-minutes", type=float, default=4.0)
    for field in dataclasses.fields(TrainingOptions):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    options = TrainingOptions(
        **{f.name: getattr(args, f.name) for f in dataclasses.fields(TrainingOptions)}
    )
    ranks = join_ranks()
    torch.manual_seed(options.seed)
    # cuDNN plans attention anew for every shape, and sentences have many.
    torch.backends.cuda.enable_cudnn_sdp(False)
    weights, tokenizer = read_whisper(args.whisper), read_tokenizer(args.whisper)
    rows = read_translations(args.texts)
    fresh = args.init is None or Path(args.init).is_file()
    if fresh:
        system, tokens, transcripts = _start_fresh(args, weights, tokenizer, rows)
        start = copy.deepcopy(system.model.target_unigram_decoder.state_dict())
    else:
        system, tokens, transcripts, start = continue_model(args.init, weights, tokenizer)
    sizes = system.config.encoder
    assert isinstance(sizes, EmformerConfig)  # a start from Whisper has no other
    teacher = EchoStreamSpeechEncoder(sizes)
    start_encoder(teacher, weights)
    for path in args.more_texts:
        rows += read_translations(path)
    translations = {name: target for name, _, target in rows}
    weights_of = dict(args.speech)
    pool = SpeechPool(
        list(weights_of),
        args.sounds,
        translations,
        language=args.language,
        weights=weights_of,
        device=args.device,
    )
    pool.refresh()
    trainer = WarmStartTrainer(
        system, teacher, tokens, transcripts, pool, options, ranks, {} if args.compile else None
    )
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / CHECKPOINT
    if checkpoint.is_file():
        trainer.load(checkpoint)
    elif args.init is not None and fresh:
        trainer.load_weights(Path(args.init))
    held_out = {path.stem: read_clips(path, language=args.language) for path in args.held_out}
    _say("speech", "{:.2f} h with text, {:.2f} h without".format(*pool.hours))
    _run(trainer, held_out, checkpoint, args)
    if not ranks.first:
        return
    system.model.cpu()
    interpolate(system.model.target_unigram_decoder, start, args.decoder_share)
    _report(trainer, held_out)
    dtype = torch.int8 if args.int8 else None
    save_model_dir(args.out / "model", system, dtype=dtype, encoder_apart=args.int8)


def _start_fresh(
    args: argparse.Namespace,
    weights: WhisperWeights,
    tokenizer: Tokenizer,
    rows: list[tuple[str, str, str]],
) -> tuple[System, CutTokenizer, CutTokenizer | None]:
    """A system with vocabularies of the texts."""
    more = [line for path in args.more_targets for line in read_lines(path, "file of target texts")]
    return start_with_texts(
        weights,
        tokenizer,
        [text for _, text, _ in rows],
        [target for _, _, target in rows],
        more_targets=more,
        language=args.language,
        source_pieces=args.source_pieces,
        least=args.least,
        decoder_layers=args.decoder_layers,
        segment_frames=args.segment_frames,
        left_context_frames=args.left_context_frames,
        right_context_frames=args.right_context_frames,
    )


def _run(
    trainer: WarmStartTrainer, held_out: dict[str, list], checkpoint: Path, args: argparse.Namespace
) -> None:
    first = trainer.ranks.first
    say = _say if first else lambda *_: None
    saved = measured = trainer.progress.spent_s
    sums: dict[str, list[torch.Tensor]] = {}
    while trainer.share < 1.0:
        for name, value in trainer.update().items():
            sums.setdefault(name, []).append(value)
        progress = trainer.progress
        if progress.updates in (5, 20, 50) or progress.updates % 100 == 0:
            means = {name: torch.stack(values).mean() for name, values in sums.items()}
            losses = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
            speed = progress.audio_s / max(progress.spent_s, 1e-9)
            say(f"update {progress.updates}", f"{losses}; {speed:.1f} s of audio a second")
            sums = {}
        if progress.spent_s - saved > 60 * args.save_minutes:
            saved = progress.spent_s
            if first:
                trainer.save(checkpoint)
            if trainer.pool.refresh():
                say("speech", "{:.2f} h with text, {:.2f} h without".format(*trainer.pool.hours))
        if first and progress.spent_s - measured > 60 * args.measure_minutes:
            measured = progress.spent_s
            _report(trainer, held_out)
    if first:
        trainer.save(checkpoint)
        _report(trainer, held_out)


def _report(trainer: WarmStartTrainer, held_out: dict[str, list]) -> None:
    minutes = trainer.progress.spent_s / 60
    # Layers that training has compiled would be compiled anew for every step of decoding.
    eager = torch.compiler.set_stance("force_eager") if trainer.compiled else nullcontext()
    with eager:
        for name, clips in held_out.items():
            found: Measured = measure(trainer.system, clips)
            _say(f"{minutes:.1f} min, {name}", str(found))


def _say(what: str, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}: {text}", flush=True)


if __name__ == "__main__":
    main()
