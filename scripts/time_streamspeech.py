"""Per-chunk compute of a full-size StreamSpeech, recomputing against incremental, by stage.

    python scripts/time_streamspeech.py [--seconds 5 10 20 40] [--chunk-ms 320] [--threads 2]

Weights are random. The CTC heads' blanks are raised until they emit about as many tokens a second
as speech has subwords, because an untrained head emits one almost every frame, and text decoder
and vocoder would be timed on nonsense lengths. Prints a table in milliseconds per chunk: the mean
over the chunks of the two seconds before each point, each the quickest of a few runs. On a shared
machine use one thread: threads that wait for a busy core measure the other jobs.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import torch

from echostream.audio import CMVN
from echostream.checkpoint import System
from echostream.config import preset
from echostream.models.echostream_model import seeded_model
from echostream.streamspeech.recompute import (
    RecomputePipeline,
    RecomputeState,
    StreamSpeechPipeline,
)
from echostream.text import Vocabulary

STAGES = ("features", "encoder", "ctc", "mt", "units", "vocoder")
TOKENS_PER_SECOND = 3.0
SAMPLE_RATE = 48000


def build_system() -> System:
    """Random weights at the published sizes."""
    config = preset("streamspeech")
    config = dataclasses.replace(
        config,
        mt=dataclasses.replace(config.mt, context_tokens=None, source_context_frames=None),
        t2u=dataclasses.replace(config.t2u, context_tokens=None),
        unit=dataclasses.replace(config.unit, context_tokens=None),
    )
    model = seeded_model(config)
    words = Vocabulary([f"\u2581{i}" for i in range(config.source_vocab_size - 4)])
    return System(
        config, model, words, words, CMVN(torch.full((80,), 12.0), torch.full((80,), 3.0))
    )


@torch.no_grad()
def calibrate(system: System, samples: np.ndarray) -> None:
    """Raise both blanks until tokens come at the rate of speech."""
    model = system.model
    features = RecomputePipeline(system).features(samples[: 10 * SAMPLE_RATE], SAMPLE_RATE)
    encoded = model.encoder(features[None], torch.tensor([features.size(0)]), 8)["encoder_out"][0]
    share = TOKENS_PER_SECOND / 25
    for head in (model.source_unigram_decoder, model.ctc_target_unigram_decoder):
        logits = head(encoded)[:, 0]
        lead = logits[:, 1:].max(dim=1).values - logits[:, 0]
        head.proj.bias[0] += lead.quantile(1 - share)


def speechlike(seconds: float) -> np.ndarray:
    """Noise with the loudness contour of syllables."""
    generator = np.random.default_rng(0)
    count = int(seconds * SAMPLE_RATE)
    contour = np.interp(
        np.arange(count) / SAMPLE_RATE,
        np.arange(0, seconds + 1, 0.1),
        generator.uniform(0.02, 1.0, size=len(np.arange(0, seconds + 1, 0.1))),
    )
    return (0.2 * contour * generator.standard_normal(count)).astype(np.float32)


def timed_step(pipeline, piece: np.ndarray, state, repeats: int) -> tuple[object, object]:
    """Step several times from the same state and keep the quickest: the machine may be shared."""
    runs = [pipeline.step(piece, SAMPLE_RATE, state) for _ in range(repeats)]
    outputs, state = min(runs, key=lambda run: sum(run[0][0].compute_ms.values()))
    return outputs[0], state


def mean_stages(outputs: list) -> dict[str, float]:
    return {s: float(np.mean([o.compute_ms.get(s, 0.0) for o in outputs])) for s in STAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--chunk-ms", type=int, default=320)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.chunk_ms < 1:
        parser.error(f"--chunk-ms must be at least 1, got {args.chunk_ms}")
    chunk = args.chunk_ms * SAMPLE_RATE // 1000
    window = max(2000 // args.chunk_ms, 1)
    for second in args.seconds:
        if int(second * SAMPLE_RATE) // chunk < window:
            parser.error(
                f"--seconds must cover the {window} x {args.chunk_ms} ms that are "
                f"averaged before each point, got {second:g}"
            )
    torch.set_num_threads(args.threads)
    samples = speechlike(max(args.seconds) + 1)
    system = build_system()
    calibrate(system, samples)
    fast = StreamSpeechPipeline(system, chunk_ms=args.chunk_ms)
    slow = RecomputePipeline(system, chunk_ms=args.chunk_ms)
    marks = {int(second * SAMPLE_RATE) // chunk: second for second in args.seconds}
    measured = {number for mark in marks for number in range(mark - window, mark)}
    state, text, units = fast.init_state(), [], []
    timings: dict[int, tuple[object, object]] = {}
    for number in range(max(marks)):
        piece = samples[number * chunk : (number + 1) * chunk]
        # The original's memory as it would be here, and the same chunk.
        heard = number * chunk
        original = RecomputeState(
            samples=samples[:heard],
            sample_rate=SAMPLE_RATE,
            received=heard,
            processed=heard,
            asr_count=state.policy.asr,
            st_count=state.policy.st,
            prefix=tuple(text) or None,
            units=tuple(units) or None,
        )
        repeats = args.repeats if number in measured else 1
        output, state = timed_step(fast, piece, state, repeats)
        text += output.mt_tokens
        units += output.units
        if number in measured:
            again, _ = timed_step(slow, piece, original, repeats)
            timings[number] = (again, output)
    print("source s | mode        | " + " | ".join(f"{s:>8}" for s in STAGES) + " |    total")
    for mark, second in sorted(marks.items()):
        for index, mode in enumerate(("recompute", "incremental")):
            stages = mean_stages([timings[n][index] for n in range(mark - window, mark)])
            values = " | ".join(f"{stages[stage]:8.1f}" for stage in STAGES)
            print(f"{second:8.0f} | {mode:11} | {values} | {sum(stages.values()):8.1f}")


if __name__ == "__main__":
    main()
