#!/usr/bin/env python3
"""How many sessions a GPU carries in real time: real sessions through the driver.

    python scripts/gpu_bench.py --json gpu.json --markdown gpu.md
    python scripts/gpu_bench.py base:bf16 echostream/assets/echo_mini/echostream --graphs off

Every system runs twice, with the encoder's step as CUDA graphs and without, for ascending numbers
of sessions until they no longer keep up or the time is up (about five minutes in all). Matrix
products are computed in float32; convolutions in TF32, as torch does by default, but with --exact.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from echostream.acceleration.cuda_graphs import graph_encoder
from echostream.bench.crowd import crowd_figures, crowd_markdown, crowds
from echostream.bench.systems import Rates, load_system
from echostream.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = ["base", str(ROOT / "echostream/assets/echo_mini/echostream")]
SESSIONS = [1, 8, 32, 64, 128, 200, 256, 350, 500]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("systems", nargs="*", default=SYSTEMS, help="model directories or presets")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N or cpu")
    parser.add_argument("--sessions", type=int, nargs="+", default=SESSIONS, help="at once")
    parser.add_argument("--rounds", type=int, default=8, help="measured chunks of each session")
    parser.add_argument("--chunk-ms", type=int, default=320, help="source per decision")
    parser.add_argument(
        "--graphs", choices=["both", "on", "off"], default="both", help="CUDA graphs (default both)"
    )
    parser.add_argument(
        "--seconds", type=float, default=70, help="begin nothing more of a run after so long"
    )
    parser.add_argument("--exact", action="store_true", help="convolutions in float32, not TF32")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables here too")
    args = parser.parse_args()

    torch.backends.cudnn.allow_tf32 = not args.exact
    rates = Rates()
    on_gpu = torch.device(args.device).type == "cuda"
    where = f"{torch.cuda.get_device_name(args.device) if on_gpu else 'CPU'}, torch "
    where += torch.__version__
    if on_gpu:
        where += f", convolutions in {'float32' if args.exact else 'TF32'}"
    where += (
        f"; {args.chunk_ms} ms chunks, {rates.tokens:g} subwords and {rates.units:g} units a second"
    )
    kinds = {"both": [False, True], "on": [True], "off": [False]}[args.graphs if on_gpu else "off"]
    found, text = {}, ""
    for name in args.systems:
        for graphs in kinds:
            system = load_system(name, chunk_ms=args.chunk_ms, device=args.device)
            if graphs:
                graph_encoder(system.model, chunk_ms=args.chunk_ms, batch_sizes=args.sessions)
            rows, label = [], Path(name).name + (", graphs" if graphs else "")
            until = time.monotonic() + args.seconds
            options = {"chunk_ms": args.chunk_ms, "rounds": args.rounds, "until": until}
            for row in crowds(name, system, args.sessions, rates, **options):
                rows.append(row)
                found[label] = crowd_figures(rows, args.chunk_ms)
                # Written after every number: what there is survives a time limit.
                data = {"where": where, "systems": found}
                text = f"{where}.\n\n{crowd_markdown(found)}"
                contents = {args.json: json.dumps(data, indent=2) + "\n", args.markdown: text}
                for path, content in contents.items():
                    if path is not None:
                        write_atomically(path, content)
    print(text, end="")


if __name__ == "__main__":
    main()
