#!/usr/bin/env python3
"""What speaking costs: CPU time per second of speech of CodeVocos and of CodeHiFiGAN (V1 size).

    python scripts/vocoder_cost.py --seconds 10

Both speak random units with random weights (cost does not depend on them) in one process and on one
thread, a third of a second at a time. CPU time, not wall time, so other programs matter little.
CodeVocos also as an ONNX graph with fixed shapes, if onnxruntime and onnxscript are installed.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from echostream.config import VocoderConfig
from echostream.models.decoders.codevocos import CodeVocos, CodeVocosState
from echostream.models.decoders.codevocos_vocoder import CodeVocosVocoder, StreamingCodeVocos
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder
from echostream.models.decoders.vocoder_integration import StreamingVocoder
from echostream.training.vocoder.training_settings import preset

PIECE_S = 0.32


def cpu_per_second(step: Callable[[], float], seconds: float) -> float:
    """CPU time over the length of what is spoken; ``step`` speaks and returns seconds."""
    step()  # what is only done once
    spoken, started = 0.0, time.process_time()
    while spoken < seconds:
        spoken += step()
    return (time.process_time() - started) / spoken


def front_step(vocoder: CodeHiFiGANVocoder | CodeVocosVocoder) -> Callable[[], float]:
    """Speaks the next piece of a stream, a unit a frame."""
    kind = StreamingCodeVocos if isinstance(vocoder, CodeVocosVocoder) else StreamingVocoder
    front = kind(vocoder, dur_prediction=False)
    config = vocoder.config
    count = round(PIECE_S * config.sampling_rate / config.unit_samples)
    state = front.init_state()

    def step() -> float:
        nonlocal state
        units = torch.randint(config.num_embeddings, (count,)).tolist()
        samples, _, state = front.step(units, state)
        return max(len(samples), 1) / config.sampling_rate

    return step


class Graph(torch.nn.Module):
    """A step of the network with plain tensors in and out."""

    def __init__(self, network: CodeVocos) -> None:
        super().__init__()
        self.network = network

    def forward(self, units, counts, *state):
        out = self.network.step(units, counts, CodeVocosState(*state))
        return (out.samples, *vars(out.state).values())


def onnx_step(network: CodeVocos, folder: Path) -> Callable[[], float]:
    """The same by onnxruntime."""
    import onnxruntime

    config = network.config
    count = round(PIECE_S * config.sampling_rate / config.unit_samples)
    units, counts = torch.zeros(1, count, dtype=torch.long), torch.tensor([count])
    state = list(vars(network.init_state(1)).values())
    names = ["units", "counts", *vars(network.init_state(1))]
    path = folder / "step.onnx"
    torch.onnx.export(
        Graph(network).eval(), (units, counts, *state), str(path), input_names=names, dynamo=True
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    values = [value.numpy() for value in state]

    def step() -> float:
        nonlocal values
        drawn = torch.randint(config.num_embeddings, (1, count)).numpy()
        fed = dict(zip(names, [drawn, counts.numpy(), *values], strict=True))
        _, *values = session.run(None, fed)
        return PIECE_S

    return step


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--voice", type=Path, help="vocoder file (default: sizes of --preset vocos)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of speech, each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.voice is None:
        small = CodeVocosVocoder(preset("vocos").vocoder).eval().requires_grad_(False)
    else:
        small = CodeVocosVocoder.load(args.voice)
    large = CodeHiFiGANVocoder(VocoderConfig()).eval().requires_grad_(False)
    costs = {}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        costs["CodeHiFiGAN, V1 size, 16 kHz"] = cpu_per_second(front_step(large), args.seconds)
        rate = small.config.sampling_rate // 1000
        costs[f"CodeVocos, {rate} kHz"] = cpu_per_second(front_step(small), args.seconds)
        if all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnxscript")):
            step = onnx_step(small.network, Path(folder))
            costs[f"CodeVocos, {rate} kHz, ONNX"] = cpu_per_second(step, args.seconds)
    first = next(iter(costs.values()))
    print(f"{'':32s} CPU s per s of speech   share")
    for name, cost in costs.items():
        print(f"{name:32s} {cost:21.4f} {cost / first:7.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
