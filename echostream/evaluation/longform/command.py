"""``echostream talks``: figures of runs on talks, side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

ROWS = (
    ("bleu", "text BLEU, re-segmented", 1),
    ("word_ratio", "words out / words of the reference", 3),
    ("sentences", "sentences", 0),
    ("ends", "sentences that the system ended", 0),
    ("long_yaal_ms", "LongYAAL, ms", 0),
    ("long_yaal_ca_ms", "LongYAAL with computation, ms", 0),
    ("first_tenth_bleu", "text BLEU, first tenth", 1),
    ("last_tenth_bleu", "text BLEU, last tenth", 1),
    ("first_tenth_ms", "compute per decision, first tenth, ms", 1),
    ("last_tenth_ms", "compute per decision, last tenth, ms", 1),
    ("highest_backlog_ms", "highest backlog, ms", 0),
    ("final_backlog_ms", "backlog at the end, ms", 0),
)


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
    parser.add_argument("--sentences", type=Path, required=True, help="sentences.tsv of the talks")
    parser.add_argument("--output", type=Path, default=None, help="also write JSON and a picture")
    parser.set_defaults(func=run_talks)


def table(names: Sequence[str], scores: Sequence[dict]) -> str:
    """Markdown: figures as rows, systems as columns."""
    lines = ["| | " + " | ".join(names) + " |", "| :-- |" + " --: |" * len(names)]
    for key, heading, decimals in ROWS:
        cells = ["-" if s[key] is None else f"{s[key]:.{decimals}f}" for s in scores]
        lines.append(f"| {heading} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run_talks(args: argparse.Namespace) -> int:
    """Score, print, and write under ``--output``."""
    from echostream.evaluation.atomic import write_text
    from echostream.evaluation.longform.figure import plot_talk
    from echostream.evaluation.longform.talks import read_sentences, score_talks
    from echostream.evaluation.runs.run_folder import load_run

    talks = read_sentences(args.sentences)
    runs = [load_run(argument) for argument in args.runs]
    scores = [asdict(score_talks(run, talks)) for run in runs]
    names = [run.name for run in runs]
    print(table(names, scores))
    if args.output is not None:
        content = json.dumps(dict(zip(names, scores, strict=True)), indent=1)
        write_text(args.output / "talks.json", content + "\n")
        write_text(args.output / "talks.md", table(names, scores) + "\n")
        plot_talk(runs, args.output / "talk.png")
    return 0
