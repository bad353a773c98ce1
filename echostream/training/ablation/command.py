"""``scripts/speech_ablation.py``."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from echostream.checkpoint import load_model_dir
from echostream.evaluation.recognizers.loading import split_spec
from echostream.files import write_atomically
from echostream.training.ablation.conditions import CONDITIONS, Sentence
from echostream.training.ablation.report import listen, scores, table
from echostream.training.vocoder.command import read_target_texts
from echostream.training.vocoder.data import find_sound, load_speech_for


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speech_ablation.py",
        description="Where ASR-BLEU goes, one cause at a time: "
        + "; ".join(CONDITIONS.values())
        + ".",
    )
    parser.add_argument("--model-dir", type=Path, required=True, help="model directory that speaks")
    parser.add_argument("--units", type=Path, required=True, help="unit file, one unit per frame")
    parser.add_argument("--audio", type=Path, required=True, help="folder of real target speech")
    parser.add_argument("--sources", type=Path, required=True, help="folder of source speech")
    parser.add_argument("--texts", type=Path, required=True, help="TSV with id and tgt_text")
    parser.add_argument("--out", type=Path, required=True, help="folder for scores and transcripts")
    parser.add_argument("--chunk-ms", type=int, default=320, help="source per decision")
    parser.add_argument(
        "--recognizers",
        nargs="+",
        default=["pocketsphinx", "moonshine"],
        help="as --asr-model names them",
    )
    parser.add_argument("--limit", type=int, default=None, help="only so many sentences")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    return parser


def read_sentences(args: argparse.Namespace) -> list[Sentence]:
    """The sentences of a unit file that have a text.

    Raises:
        FileNotFoundError: a sound or a list is not there.
        ValueError: the model has no vocoder, or no sentence has a text.
    """
    config = load_model_dir(args.model_dir).config.vocoder
    speech = load_speech_for(config, args.model_dir, args.units, args.audio, args.limit)
    texts = read_target_texts(args.texts)
    known = [utterance for utterance in speech if utterance.id in texts]
    if not known:
        raise ValueError(f"{args.texts} has no text of any utterance in {args.units}")
    return [Sentence(one, find_sound(args.sources, one.id), texts[one.id]) for one in known]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    try:
        for spec in args.recognizers:
            split_spec(spec)
        sentences = read_sentences(args)
        heard = listen(
            sentences,
            args.model_dir,
            chunk_ms=args.chunk_ms,
            recognizers=args.recognizers,
            jobs=args.jobs,
        )
    except (ValueError, FileNotFoundError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    figures = scores(heard)
    lines = [
        json.dumps(
            {"id": sentence.target.id, "reference": one.log["reference"]}
            | {"translation": one.translation, "heard": one.texts}
        )
        for sentence, one in zip(sentences, heard, strict=True)
    ]
    write_atomically(args.out / "scores.json", json.dumps(figures, indent=1) + "\n")
    write_atomically(args.out / "heard.jsonl", "\n".join(lines) + "\n")
    write_atomically(args.out / "table.md", table(figures))
    print(table(figures), end="")
    return 0
