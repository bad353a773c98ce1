"""The ``evaluate`` and ``compare`` subcommands of ``echostream``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from echostream.config import add_setting_args, given_settings
from echostream.config.compute import add_threads_arg

if TYPE_CHECKING:
    from echostream.evaluation.runs.run_folder import RunFolder

# What the subcommands run is imported when they run: these parsers are built on every start of
# ``echostream``, and SimulEval and matplotlib take seconds to load.

logger = logging.getLogger(__name__)


def add_compare_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``echostream compare``."""
    parser = subparsers.add_parser(
        "compare",
        help="tables, curves and timelines from SimulEval output folders",
        description="Compare SimulEval output folders of any systems: a table (Markdown, LaTeX, "
        "CSV, JSON), quality-latency curves, backlog and timelines (PNG, SVG).",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="DIR",
        help="output folder, or NAME=DIR to name its system. Folders of one name form a line",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for tables and pictures")
    parser.add_argument(
        "--asr-model",
        default=None,
        help="recognise the speech anew: pocketsphinx, moonshine, wav2vec2:PATH, hf:PATH or "
        "whisper:SIZE_OR_PATH (default: use the transcripts in the folders)",
    )
    parser.add_argument("--asr-device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--target-speech-lang", default="en", help="language of the speech")
    parser.add_argument(
        "--timeline",
        type=int,
        nargs="*",
        default=None,
        metavar="INDEX",
        help="utterances to draw (without a number: the longest one)",
    )
    parser.add_argument(
        "--plot-quality",
        metavar="NAME",
        default=None,
        help="the figure of quality that curves show, by its name in table.csv (default: ASR_BLEU "
        "of speech, BLEU of text)",
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=0,
        metavar="SAMPLES",
        help="paired bootstrap of every run against the first (1000 is customary, 0 means none)",
    )
    parser.add_argument(
        "--common-only",
        action="store_true",
        help="compare the utterances that all runs have instead of refusing",
    )
    parser.add_argument(
        "--only",
        type=Path,
        default=None,
        metavar="LIST",
        help="compare the utterances of this source list alone, found by file name",
    )
    parser.add_argument(
        "--segmentation",
        type=Path,
        default=None,
        help="YAML or JSON with wav, offset and duration of each segment, for LongYAAL",
    )
    parser.add_argument(
        "--segment-references", type=Path, default=None, help="one reference per segment"
    )
    parser.set_defaults(func=run_compare)


def run_compare(args: argparse.Namespace) -> int:
    """Compare folders and write everything under ``--output``."""
    if (args.segmentation is None) != (args.segment_references is None):
        raise ValueError("--segmentation and --segment-references belong together")
    from echostream.evaluation.figures.curves import (
        longest_common,
        plot_backlog,
        plot_curves,
        representatives,
    )
    from echostream.evaluation.figures.timeline import plot_timeline
    from echostream.evaluation.longform.folders import holds_talks
    from echostream.evaluation.runs import comparison, run_metrics, tables
    from echostream.evaluation.runs.run_folder import (
        check_same_utterances,
        keep_common,
        keep_listed,
        load_run,
    )

    run_metrics.check_quality(args.plot_quality)
    runs = [load_run(argument) for argument in args.runs]
    if args.only is not None:
        keep_listed(runs, args.only)
    if args.common_only:
        keep_common(runs)
    check_same_utterances(runs)
    if any(map(holds_talks, runs)):
        return _compare_talks(runs, args)
    results = comparison.compare_runs(
        runs,
        comparison.Rescoring(args.asr_model, args.asr_device, args.target_speech_lang),
        segmentation=args.segmentation,
        segment_references=args.segment_references,
    )
    for result in results:
        result.plotted = args.plot_quality
    significance = comparison.compare_paired(results, args.bootstrap) if args.bootstrap > 0 else []
    written = tables.write_tables(args.output, results, significance)
    written += plot_curves(results, args.output / "curves")
    longest = longest_common(runs)
    shown = representatives(runs)
    if len(shown) < len(runs):
        logger.info("pictures of one utterance show: %s", ", ".join(run.name for run in shown))
    written += plot_backlog(shown, longest, args.output / "backlog")
    for index in [longest] if args.timeline == [] else args.timeline or []:
        written += plot_timeline(shown, index, args.output / f"timeline_{index}")
    print(tables.markdown_table(results, significance), end="")
    logger.info("written: %s", ", ".join(str(path) for path in written))
    return 0


def _compare_talks(runs: list[RunFolder], args: argparse.Namespace) -> int:
    """Talks have a table of their own; what it does not have is refused."""
    from echostream.evaluation.longform.folders import holds_talks, noted_recognizer, talk_run
    from echostream.evaluation.longform.spoken import Recognition
    from echostream.evaluation.longform.talk_report import report

    others = [str(run.path) for run in runs if not holds_talks(run)]
    if others:
        raise ValueError(f"some runs are on talks, but {others[0]} has no sentences.tsv")
    for flag in ("timeline", "plot_quality", "segmentation"):
        if getattr(args, flag) not in (None, 0):
            raise ValueError(f"--{flag.replace('_', '-')} is not for talks")
    spec = args.asr_model or noted_recognizer(runs[0])
    recognition = Recognition(spec, args.asr_device, args.target_speech_lang) if spec else None
    talks = [talk_run(run) for run in runs]
    print(report(talks, args.output, recognition, args.bootstrap))
    return 0


def add_evaluate_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``echostream evaluate``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="run a grid of systems, chunk sizes and test sets through SimulEval",
        description="Run every cell of a grid file (eval_configs/grids/) through SimulEval and "
        "compare them. Finished cells are kept, interrupted ones continue.",
    )
    parser.add_argument("grid", type=Path, metavar="GRID.yaml", help="the grid file")
    parser.add_argument(
        "--output", type=Path, default=None, help="results (default: what the grid file says)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="B",
        help="utterances that each process translates at a time (default 1): quicker, with the "
        "same results, but without computation-aware figures",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="SimulEval processes at a time (default 1)"
    )
    add_threads_arg(parser)
    add_setting_args(parser)
    parser.set_defaults(func=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> int:
    """Run a grid, then write tables and curves for each of its test sets."""
    for name in ("jobs", "batch"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    from echostream.evaluation.figures.curves import plot_curves
    from echostream.evaluation.grid.definition import change_settings, load_grid
    from echostream.evaluation.grid.runner import run_grid
    from echostream.evaluation.grid.shards import CellError
    from echostream.evaluation.longform.folders import noted_recognizer, talk_run
    from echostream.evaluation.longform.spoken import Recognition
    from echostream.evaluation.longform.talk_report import report
    from echostream.evaluation.runs import comparison, tables
    from echostream.evaluation.runs.run_folder import check_same_utterances, load_run

    grid = change_settings(load_grid(args.grid, args.output), given_settings(args))
    try:
        cells = run_grid(grid, jobs=args.jobs, batch=args.batch, threads=args.threads)
    except CellError as error:
        logger.error("%s", error)
        return 1
    for test_set in grid.test_sets:
        runs = [load_run(cell.folder) for cell in cells if cell.test_set == test_set]
        check_same_utterances(runs)
        folder = Path(grid.output) / test_set.name
        if test_set.longform is not None:
            spec = noted_recognizer(runs[0])
            recognition = spec and Recognition(
                spec, language=grid.target_speech_lang, jobs=args.jobs
            )
            text = report([talk_run(run) for run in runs], folder, recognition or None)
            print(f"# {test_set.name}\n\n{text}\n")
            continue
        results = comparison.compare_runs(runs)
        tables.write_tables(folder, results)
        plot_curves(results, folder / "curves")
        print(f"# {test_set.name}\n\n{tables.markdown_table(results)}")
    return 0
