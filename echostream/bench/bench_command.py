"""``echostream bench``."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from echostream.bench.bench_options import CLOCKS, COMPILED, RECOMPUTE
from echostream.config import add_setting_args, given_settings
from echostream.config.compute import positive
from echostream.files import write_atomically

# What measures is imported when it does: see echostream.cli.


def add_bench_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "bench",
        help="time systems chunk by chunk, in turns",
        description="Time systems chunk by chunk over one stream, in turns, at forced rates of "
        "subwords and units. Reports every stage, the bare arithmetic, memory and start-up.",
    )
    parser.add_argument(
        "systems",
        nargs="+",
        metavar="SYSTEM",
        help="model directory or preset (random weights). Behind the name, ':bf16' or ':int8' sets "
        f"the number format, '{COMPILED}' compiles the Emformer's step, and '{RECOMPUTE}' times a "
        "chunk Conformer as the published agents compute. Ratios are to the first system",
    )
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[5, 10, 20, 40], help="positions in the stream"
    )
    parser.add_argument("--chunk-ms", type=int, default=320, help="source per decision")
    parser.add_argument("--task", choices=["asr", "s2tt", "s2st"], default="s2st")
    parser.add_argument(
        "--threads", type=positive, default=1, help="of the model, and cores to be pinned to"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each measured step")
    parser.add_argument("--tokens-per-second", type=float, default=3.0, help="subwords written")
    parser.add_argument("--units-per-second", type=float, default=25.0, help="units spoken")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="wall time (default), or cpu: time that this process computed, for shared machines, "
        "with one thread only",
    )
    parser.add_argument(
        "--sessions",
        type=int,
        nargs="+",
        metavar="N",
        help="also run so many sessions at once, ascending: whole chunks, computed together",
    )
    parser.add_argument("--startup", action="store_true", help="also time fresh processes")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables here too")
    add_setting_args(parser)
    parser.set_defaults(func=run_bench)


def run_bench(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from echostream.bench.bench_report import figures, markdown
    from echostream.bench.crowd import check_sizes, measure_sessions
    from echostream.bench.systems import Rates
    from echostream.bench.timing import Plan, measure, startup_s

    plan = Plan(
        tuple(args.systems),
        tuple(args.seconds),
        args.chunk_ms,
        args.threads,
        args.repeats,
        args.task,
        args.clock,
        Rates(args.tokens_per_second, args.units_per_second),
        given_settings(args),
    )
    if args.sessions:
        check_sizes(args.sessions)
    with tqdm(total=plan.chunks(plan.seconds[-1]), unit="chunk", disable=None) as bar:
        measured = measure(plan, bar.update)
    if args.startup:
        times: dict[str, float | None] = {name: startup_s(name, plan) for name in plan.systems}
        measured = replace(measured, startup_s=times)
    if args.sessions:
        measured = replace(measured, sessions=measure_sessions(args.sessions, plan))
    data = figures(measured)
    text = markdown(data)
    print(text, end="")
    for path, content in ((args.json, json.dumps(data, indent=2) + "\n"), (args.markdown, text)):
        if path is not None:
            write_atomically(path, content)
    return 0
