#!/usr/bin/env python3
"""Per-chunk compute over a long stream: is a chunk at the end as cheap as at the start?

    python scripts/benchmark.py                          10 minutes, base preset, random weights
    python scripts/benchmark.py --minutes 2 --preset streamspeech-recipe

Streams speech-like audio chunk by chunk and reports milliseconds per chunk and stage, and the
ratio of the mean of the last 50 chunks to the mean of chunks 20 to 70, measured in one run. The
arithmetic floor (the bare matrix products of the Emformer on the same shapes) is timed in turns
with the chunks, so that the machine's drift hits both.
"""

import argparse
import json
import sys
import time
from dataclasses import replace

import numpy as np
import torch

from echostream.audio import CMVN
from echostream.checkpoint import System
from echostream.config import EmformerConfig, PolicyConfig, preset
from echostream.models.echostream_model import seeded_model
from echostream.pipeline import Pipeline
from echostream.streaming import state_bytes
from echostream.synthetic import syllables, synthetic_clip
from echostream.text import SPECIALS, WORD_START, Vocabulary

RATE = 16000
EARLY = slice(20, 70)
LATE = 50
STAGES = ("features", "encoder", "ctc", "mt", "units", "vocoder")


def build_system(name: str) -> System:
    """A random system of full size; pieces are made up to fill the vocabulary."""
    config = preset(name)
    base = syllables(60)
    count = config.source_vocab_size - len(SPECIALS)
    pieces = [
        f"{WORD_START if i % 2 else ''}{base[i % 60].strip(WORD_START)}{i}" for i in range(count)
    ]
    bins = config.frontend.num_mel_bins
    cmvn = CMVN(torch.full((bins,), 12.0), torch.full((bins,), 4.0))
    return System(config, seeded_model(config), Vocabulary(pieces), Vocabulary(pieces), cmvn)


def floor_operands(config: EmformerConfig, segment: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Operands of one segment's matrix products, all layers, with weights of their own."""
    dim, ffn = config.embed_dim, config.ffn_dim
    rows = segment + config.right_context_frames + (config.memory_size > 0)
    keys = config.memory_size + config.left_context_frames + segment
    heads = config.attention_heads
    pairs = []
    for _ in range(config.layers):
        for shape in ((dim, dim), (dim, 2 * dim), (dim, dim), (dim, ffn), (ffn, dim)):
            pairs.append((torch.randn(rows, shape[0]), torch.randn(*shape)))
        pairs.append(
            (torch.randn(heads, rows, dim // heads), torch.randn(heads, dim // heads, keys))
        )
        pairs.append((torch.randn(heads, rows, keys), torch.randn(heads, keys, dim // heads)))
        if config.depthwise_kernel_size:
            frames = segment + config.right_context_frames
            for shape in ((dim, 2 * dim), (dim, dim)):
                pairs.append((torch.randn(frames, shape[0]), torch.randn(*shape)))
    return pairs


def time_floor(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    start = time.perf_counter()
    for left, right in pairs:
        torch.matmul(left, right)
    return 1000 * (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="base")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--chunk-ms", type=int, default=320)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--task",
        default="s2st",
        choices=["asr", "s2tt", "s2st"],
        help="asr: features, encoder and ASR head; s2st: everything, one subword a chunk (default)",
    )
    parser.add_argument("--json", default=None, help="also write the figures to this file")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    system = build_system(args.preset)
    system = replace(system, model=system.model.to(args.device))
    policy = PolicyConfig(name="wait_k", segment_size=args.chunk_ms)
    pipeline = Pipeline(system, chunk_ms=args.chunk_ms, task=args.task, policy=policy)
    chunk = synthetic_clip(args.chunk_ms / 1000, RATE, seed=0)
    total = int(args.minutes * 60_000 / args.chunk_ms)
    if total < 2 * EARLY.stop:
        parser.error(f"--minutes {args.minutes} is too short: {total} chunks")
    encoder = system.config.encoder
    pairs = []
    if isinstance(encoder, EmformerConfig) and args.device == "cpu":
        pairs = floor_operands(encoder, args.chunk_ms // 40)

    noise = np.random.default_rng(0)
    state, rows, floor, sizes = pipeline.init_state(), [], [], []
    for _ in range(total):
        samples = chunk + 0.01 * noise.standard_normal(len(chunk)).astype(np.float32)
        outputs, state = pipeline.step(samples, RATE, state)
        rows.append([outputs[0].compute_ms.get(stage, 0.0) for stage in STAGES])
        sizes.append(state_bytes(state))
        if pairs:
            floor.append(time_floor(pairs))
    table = np.array(rows)

    def ratio(values: np.ndarray) -> float:
        return float(values[-LATE:].mean() / values[EARLY].mean())

    everything = table.sum(axis=1)
    front = table[:, 0] + table[:, 1]
    print(
        f"{args.preset}, {total} chunks of {args.chunk_ms} ms, {args.threads} threads, "
        f"{args.device}"
    )
    for index, stage in enumerate(STAGES):
        if table[:, index].any():
            share = table[:, index].sum() / everything.sum()
            print(
                f"  {stage:10s} mean {table[:, index].mean():7.2f} ms   "
                f"median {np.median(table[:, index]):7.2f} ms   share {100 * share:5.1f} %"
            )
    print(
        f"  {'sum':10s} mean {everything.mean():7.2f} ms   median {np.median(everything):7.2f} ms"
    )
    print(f"features + encoder, last {LATE} chunks / chunks 20 to 70: {ratio(front):.3f}")
    print(f"everything,         last {LATE} chunks / chunks 20 to 70: {ratio(everything):.3f}")
    if floor:
        own = np.median(table[:, 1])
        print(
            f"encoder / bare matrix products (medians, in turns): {own:.2f} / "
            f"{np.median(floor):.2f} ms = {own / np.median(floor):.2f}"
        )
    print(
        f"state: {sizes[EARLY.stop] / 2**20:.2f} MiB at chunk {EARLY.stop}, "
        f"{sizes[-1] / 2**20:.2f} at the end"
    )
    print(f"real-time factor: {everything.mean() / args.chunk_ms:.3f}")
    if args.json:
        figures = {
            "front_ratio": ratio(front),
            "ratio": ratio(everything),
            "mean_ms": dict(zip(STAGES, table.mean(axis=0).tolist(), strict=True)),
        }
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
