"""The command behind ``scripts/prepare_cvss.py``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from echostream.training.preparation.cvss import Corpus
from echostream.training.preparation.cvss_tables import (
    write_lists,
    write_manifests,
    write_text_tasks,
    write_yaml_files,
)
from echostream.training.preparation.steps import (
    Options,
    complete_rows,
    extract_features,
    extract_units,
    write_settings,
)
from echostream.training.units.extractor import UnitExtractor

logger = logging.getLogger(__name__)

STEPS = ("units", "features", "manifests", "vocabularies", "configs", "simuleval")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prepare_cvss.py",
        description="Prepare CVSS-C and CoVoST 2 for training, in StreamSpeech's folders.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--covost-root", type=Path, required=True, help="holds <language>/clips")
    parser.add_argument("--cvss-root", type=Path, required=True, help="holds <language>-en/")
    parser.add_argument("--src-lang", required=True, help="source language: fr, es, de, ...")
    parser.add_argument("--out", type=Path, help="(default: CVSS_ROOT/<language>-en)")
    parser.add_argument("--vocab-size", type=int, default=6000, help="subwords per language")
    parser.add_argument("--num-units", type=int, default=1000, help="k-means clusters")
    parser.add_argument("--unit-model", type=Path, help="folder of a unit model")
    parser.add_argument("--hubert", type=Path, help="HuBERT checkpoint, instead of --unit-model")
    parser.add_argument("--layer", type=int, default=11, help="of HuBERT")
    parser.add_argument("--kmeans", type=Path, help="k-means over that layer")
    parser.add_argument("--device", default="cpu", help="for HuBERT: cpu or cuda")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, default=list(STEPS), help="which steps to run"
    )
    return parser


def load_extractor(args: argparse.Namespace, parser: argparse.ArgumentParser):
    """The unit extractor that the arguments name, or None."""
    if args.unit_model is not None and args.hubert is not None:
        parser.error("--unit-model and --hubert exclude each other")
    if (args.hubert is None) != (args.kmeans is None):
        parser.error("--hubert and --kmeans go together")
    if args.unit_model is not None:
        extractor = UnitExtractor.load(args.unit_model)
    elif args.hubert is not None:
        extractor = UnitExtractor.hubert_kmeans(args.hubert, args.layer, args.kmeans)
    else:
        return None
    if extractor.num_units != args.num_units:
        parser.error(
            f"the unit model has {extractor.num_units} units, --num-units is {args.num_units}"
        )
    if hasattr(extractor.features, "model"):
        extractor.features.model.to(args.device)
    return extractor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for name in ("vocab_size", "num_units", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    try:
        prepare(args, parser)
    except (OSError, ValueError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    return 0


def prepare(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Run what ``--steps`` names, in order."""
    corpus = Corpus.open(args.covost_root, args.cvss_root, args.src_lang)
    options = Options(
        out=corpus.cvss if args.out is None else args.out,
        unit_name=f"km{args.num_units}",
        num_units=args.num_units,
        vocab_size=args.vocab_size,
        jobs=args.jobs,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    write_settings(options, corpus.language)
    if "units" in args.steps:
        extract_units(corpus, options, load_extractor(args, parser))
    if "features" in args.steps:
        extract_features(corpus, options)
    if not {"manifests", "vocabularies", "simuleval"}.isdisjoint(args.steps):
        rows = complete_rows(corpus, options)
        if "manifests" in args.steps:
            write_manifests(rows, options)
        if "vocabularies" in args.steps:
            write_text_tasks(rows, options, corpus.language)
        if "simuleval" in args.steps:
            write_lists(rows, options)
    if "configs" in args.steps:
        write_yaml_files(options, corpus.language)
    logger.info("prepared %s", options.out)
