"""The command behind ``scripts/make_corpus.py``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from echostream.training.corpus import layout, synthesis
from echostream.training.corpus.build import BuildOptions, build
from echostream.training.corpus.speakers import speaker
from echostream.training.corpus.talk_files import build_talks, write_shipped_talk
from echostream.training.corpus.talks import DEMO_SET, TALK_SETS
from echostream.training.corpus.text_files import Utterance, read_texts

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "data" / "echo_mini"
TEST_AUDIO_SEEN, TEST_AUDIO_UNSEEN = 24, 6
_DEFAULTS = BuildOptions()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make_corpus.py",
        description="Make the Spanish-English corpus echo-mini.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="folder for speech, features, units, manifests")
    what.add_argument(
        "--write-test-audio",
        action="store_true",
        help="make the test utterances that ship with the repository, into --texts",
    )
    what.add_argument(
        "--write-talk",
        action="store_true",
        help="make the talk of the demonstration, which ships too, into --texts",
    )
    parser.add_argument(
        "--talks",
        nargs="*",
        metavar="SET",
        help="with --out, make only these sets of talks, which need nothing else of the corpus. "
        f"Without names: all of {', '.join(TALK_SETS)}",
    )
    parser.add_argument("--texts", type=Path, default=DATA, help="folder of the split files")
    parser.add_argument("--seed", type=int, default=_DEFAULTS.seed, help="of everything random")
    parser.add_argument("--jobs", type=int, default=_DEFAULTS.jobs, help="processes")
    parser.add_argument(
        "--num-units",
        type=int,
        help=f"fit k-means with so many clusters (default: the {_DEFAULTS.num_units} units of the "
        "shipped systems)",
    )
    parser.add_argument(
        "--vocab-size",
        type=int,
        default=_DEFAULTS.vocab_size,
        help="subwords per language, special symbols included",
    )
    parser.add_argument(
        "--kmeans-utterances",
        type=int,
        default=_DEFAULTS.kmeans_utterances,
        help="training utterances to fit k-means on",
    )
    parser.add_argument(
        "--like",
        type=Path,
        metavar="MODEL",
        help="with --out, use this model's vocabularies and normalisation instead of fitted ones, "
        "to train its weights further",
    )
    parser.add_argument(
        "--limit", type=int, help="only the first N utterances of every split, for a trial"
    )
    return parser


def shipped_test_utterances(test: Sequence[Utterance]) -> list[Utterance]:
    """The test utterances that ship: every tenth sentence of seen and of unseen patterns."""
    seen = [utterance for utterance in test if not utterance.unseen]
    unseen = [utterance for utterance in test if utterance.unseen]
    return [
        *seen[:: len(seen) // TEST_AUDIO_SEEN][:TEST_AUDIO_SEEN],
        *unseen[:: len(unseen) // TEST_AUDIO_UNSEEN][:TEST_AUDIO_UNSEEN],
    ]


def write_test_audio(folder: Path, seed: int) -> None:
    """Make the shipped FLAC files and SimulEval lists, with paths relative to the checkout."""
    synthesis.require_synthesizers()
    chosen = shipped_test_utterances(read_texts(folder)["test"])
    synthesis.require_voices({speaker(utterance.speaker) for utterance in chosen})
    target = folder / "test_audio"
    for utterance in chosen:
        samples = synthesis.synthesize_source(
            utterance.id, utterance.src_text, speaker(utterance.speaker), seed
        )
        synthesis.save_flac(samples, target / f"{utterance.id}.flac")
    base = target.relative_to(ROOT) if target.is_relative_to(ROOT) else target
    sounds = [(base / f"{utterance.id}.flac").as_posix() for utterance in chosen]
    layout.write_simuleval_lists(target, chosen, sounds)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit must be positive, got {args.limit}")
    if args.num_units is not None and args.num_units < 1:
        parser.error(f"--num-units must be positive, got {args.num_units}")
    if args.talks is not None and args.out is None:
        parser.error("--talks makes sound and goes with --out DIR")
    try:
        if args.write_test_audio:
            write_test_audio(args.texts.resolve(), args.seed)
            return 0
        if args.write_talk:
            folder = args.texts.resolve()
            test = read_texts(folder)["test"]
            write_shipped_talk(folder / "talk", ROOT, DEMO_SET, test, args.seed)
            return 0
        options = BuildOptions(
            seed=args.seed,
            jobs=args.jobs,
            num_units=args.num_units or _DEFAULTS.num_units,
            unit_model=None if args.num_units else DATA / "units",
            vocab_size=args.vocab_size,
            kmeans_utterances=args.kmeans_utterances,
            like=args.like,
        )
        splits = {name: rows[: args.limit] for name, rows in read_texts(args.texts).items()}
        if args.talks is not None:
            names = args.talks or list(TALK_SETS)
            build_talks(args.out, splits, names, seed=args.seed, jobs=args.jobs)
            return 0
        build(args.out, splits, options)
    except (ValueError, FileNotFoundError, RuntimeError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    return 0
