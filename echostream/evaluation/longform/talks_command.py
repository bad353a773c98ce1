"""``echostream talks``: figures of runs on talks, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_recognition_args(parser: argparse.ArgumentParser) -> None:
    """Options that say how speech is recognised; no model, no recognition."""
    parser.add_argument(
        "--asr-model",
        default=None,
        help="recognise the speech: pocketsphinx, wav2vec2:PATH, hf:PATH or whisper:SIZE_OR_PATH "
        "(default: only the text is scored, and speech by what its grid names)",
    )
    parser.add_argument("--asr-device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--target-speech-lang", default="en", help="language of the speech")


def add_talks_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``echostream talks``."""
    parser = subparsers.add_parser(
        "talks",
        help="score runs on long talks",
        description="Score SimulEval output folders of agents that translated long talks with "
        "--trace: words are put to the sentences they translate, and everything is also looked at "
        "over time.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="DIR", help="output folder, or NAME=DIR to name its system"
    )
    parser.add_argument(
        "--sentences",
        type=Path,
        default=None,
        help="sentences.tsv of the talks (default: the one in each folder)",
    )
    parser.add_argument(
        "--alone",
        nargs="+",
        default=None,
        metavar="DIR",
        help="for each run, in the same order, the output folder of the same sentences one a file",
    )
    parser.add_argument(
        "--alone-sentences",
        type=Path,
        default=None,
        help="sentences.tsv of those files (default: the one in each folder)",
    )
    add_recognition_args(parser)
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="recognising processes (default 1)"
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=0,
        metavar="SAMPLES",
        help="paired bootstrap of every run against the first, over sentences (0: none)",
    )
    parser.add_argument("--output", type=Path, default=None, help="also write JSON and a picture")
    parser.set_defaults(func=run_talks)


def run_talks(args: argparse.Namespace) -> int:
    """Score, print, and write under ``--output``."""
    if args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
    if args.alone is not None and len(args.alone) != len(args.runs):
        raise ValueError(
            f"--alone takes one folder for each run: {len(args.runs)} runs, {len(args.alone)} given"
        )
    from echostream.evaluation.longform.folders import noted_recognizer, talk_run
    from echostream.evaluation.longform.spoken import Recognition
    from echostream.evaluation.longform.talk_report import report
    from echostream.evaluation.runs.run_folder import load_run

    runs = [load_run(argument) for argument in args.runs]
    talks = [
        talk_run(run, args.sentences, alone, args.alone_sentences)
        for run, alone in zip(runs, args.alone or [None] * len(runs), strict=True)
    ]
    spec = args.asr_model or noted_recognizer(runs[0])
    recognition = spec and Recognition(spec, args.asr_device, args.target_speech_lang, args.jobs)
    print(report(talks, args.output, recognition or None, args.bootstrap))
    return 0
