#!/usr/bin/env python3
"""What a chunk costs on a GPU, and how many sessions it carries in real time.

    python scripts/gpu_bench.py --json gpu.json --markdown gpu.md
    python scripts/gpu_bench.py base:bf16 echostream/assets/echo_mini/echostream

Times the encoder's step plain and as a CUDA graph, alone and shared, listening with the CTC heads,
and whole chunks of several streams; see echostream/bench/capacity.py for what the numbers of
sessions mean. Matrix products are computed in float32; convolutions in TF32, as torch does by
default, but with --exact.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from echostream.bench.capacity import Load, capacity_figures, capacity_markdown, measure_load

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = ["base", str(ROOT / "echostream/assets/echo_mini/echostream")]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("systems", nargs="*", default=SYSTEMS, help="model directories or presets")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N or cpu")
    parser.add_argument("--batches", type=int, nargs="+", help="streams sharing an encoder step")
    parser.add_argument("--whole", type=int, nargs="+", help="streams sharing a whole chunk")
    parser.add_argument("--repeats", type=int, default=Load.repeats, help="of every step")
    parser.add_argument("--chunk-ms", type=int, default=Load.chunk_ms, help="source per decision")
    parser.add_argument(
        "--seconds", type=float, default=20, help="begin nothing more of a system after so long"
    )
    parser.add_argument("--exact", action="store_true", help="convolutions in float32, not TF32")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables here too")
    args = parser.parse_args()

    torch.backends.cudnn.allow_tf32 = not args.exact
    load = Load(
        tuple(args.batches or Load.batches),
        whole=tuple(args.whole or Load.whole),
        repeats=args.repeats,
        chunk_ms=args.chunk_ms,
        until_s=args.seconds,
    )
    on_gpu = torch.device(args.device).type == "cuda"
    where = f"{torch.cuda.get_device_name(args.device) if on_gpu else 'CPU'}, torch "
    where += torch.__version__
    if on_gpu:
        where += f", convolutions in {'float32' if args.exact else 'TF32'}"
    found = {}
    for name in args.systems:
        found[Path(name).name] = capacity_figures(
            measure_load(name, load, device=args.device), load
        )
        # Written after every system: what there is survives a time limit.
        data = {"where": where, "load": asdict(load), "systems": found}
        text = capacity_markdown(found, load, where)
        contents = {args.json: json.dumps(data, indent=2) + "\n", args.markdown: text}
        for path, content in contents.items():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
