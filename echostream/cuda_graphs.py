"""The Emformer's step as CUDA graphs.

A chunk's encoder step is some hundred small kernels, and starting them one by one takes the host
longer than the GPU computes. A CUDA graph starts them all with one call. Graphs are captured for
the shapes that streams at the model's sample rate have once their caches are full, and for a few
numbers of streams: other numbers take the next larger graph, whose spare rows compute what nobody
reads. Every other step (a stream's beginning and end, chunks of other lengths, more streams) runs
as ever, and both compute the same up to rounding.

A graph reads and writes memory of its own. What comes in is copied there and what goes out is
copied from there, so states are the caller's to keep and streams can take turns. To copy a state,
its many small tensors are laid side by side: one kernel in, one out.

Shapes: B streams, T filterbank frames, S encoder frames, D model width, N values of all tensors of
one stream.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from echostream.models.echostream_encoder import EchoStreamSpeechEncoder, EncoderState
from echostream.models.echostream_model import EchoStreamModel
from echostream.usual_step import emformer_of, flatten, plain_steps, unflatten, usual_inputs

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
WARM_RUNS = 3  # libraries choose kernels and take their memory in the first ones

Run = Callable[[], tuple[Tensor, ...]]
Capture = Callable[[Run], tuple[Callable[[], None], tuple[Tensor, ...]]]


def graph_encoder(
    model: EchoStreamModel, *, chunk_ms: int, batch_sizes: Sequence[int] = BATCH_SIZES
) -> None:
    """Let the encoder compute the steps of usual chunks as CUDA graphs.

    Args:
        model: in evaluation mode, on a CUDA device, in any number format. Once its weights are
            moved or converted the graphs are of no use: make them anew.
        chunk_ms: source per decision.
        batch_sizes: numbers of streams to capture graphs for.

    Raises:
        ValueError: the encoder is no Emformer, the model is not on a CUDA device, or a batch size
            is below 1.
    """
    encoder = emformer_of(model)
    device = next(encoder.parameters()).device
    if device.type != "cuda":
        raise ValueError(f"CUDA graphs need a model on a CUDA device, got one on {device}")
    with torch.cuda.device(device):
        encoder.usual_step = GraphedSteps(encoder, usual_inputs(model, chunk_ms), batch_sizes)


def capture_graph(run: Run) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """Capture what ``run`` starts on the current CUDA device.

    Returns:
        What starts all of it again, and the tensors that then hold its results.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = run()
    return graph.replay, results


class GraphedSteps:
    """The usual step for some numbers of streams, as an encoder's ``usual_step``. Threads may share
    it, CUDA streams may not: only what is started on one stream waits for its turn.

    Args:
        encoder: in evaluation mode.
        usual: (1, T, bins) features and the tensors of a state, as
            :func:`~echostream.usual_step.usual_inputs` returns them.
        batch_sizes: numbers of streams to capture graphs for.
        capture: as :func:`capture_graph`.
    """

    def __init__(
        self,
        encoder: EchoStreamSpeechEncoder,
        usual: Sequence[Tensor],
        batch_sizes: Sequence[int] = BATCH_SIZES,
        capture: Capture = capture_graph,
    ) -> None:
        if not batch_sizes or min(batch_sizes) < 1:
            raise ValueError(f"batch sizes must be at least 1, got {tuple(batch_sizes)}")
        self.shapes = [x.shape[1:] for x in usual]
        self.dtype, self.device = usual[0].dtype, usual[0].device
        # A graph's memory is filled, run and read in one go.
        self.lock = threading.Lock()
        with torch.no_grad():
            self.steps = [
                _GraphedStep(encoder, usual, size, capture) for size in sorted(set(batch_sizes))
            ]

    @torch.no_grad()
    def __call__(self, features: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState] | None:
        """(B, T, bins) features to (B, S, D) and the new state, or None for shapes of other steps
        and more streams than any graph takes."""
        inputs = [features, *flatten(state)]
        if features.dtype != self.dtype or features.device != self.device:
            return None
        if [x.shape[1:] for x in inputs] != self.shapes:
            return None
        step = next((step for step in self.steps if step.streams >= features.size(0)), None)
        if step is None:
            return None
        with self.lock:
            out, following = step.run(inputs)
        return out, unflatten(following, state.frames + out.size(1))


class _GraphedStep:
    """The step of so many streams, with the memory that its graph works in."""

    def __init__(
        self,
        encoder: EchoStreamSpeechEncoder,
        usual: Sequence[Tensor],
        streams: int,
        capture: Capture,
    ) -> None:
        self.streams = streams
        self.inputs = _side_by_side(usual).repeat(streams, 1)  # (B, N)
        shapes = [x.shape[1:] for x in usual]

        def run() -> tuple[Tensor, ...]:
            features, *state = _apart(self.inputs, shapes)
            with plain_steps(encoder):
                out, following = encoder.step(features, unflatten(state, 0))
            tensors = flatten(following)
            self.following = [x.shape[1:] for x in tensors]
            return out, _side_by_side(tensors)

        self.replay, (self.out, self.state) = capture(run)

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """At most B streams' features and state to their frames and new state."""
        own = slice(inputs[0].size(0))
        _side_by_side(inputs, out=self.inputs[own])
        self.replay()
        return self.out[own].clone(), _apart(self.state[own].clone(), self.following)


def _side_by_side(tensors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """(B, ...) tensors to (B, N)."""
    return torch.cat([x.flatten(1) for x in tensors], dim=1, out=out)


def _apart(values: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Undo :func:`_side_by_side` without copying."""
    parts = values.split([math.prod(shape) for shape in shapes], dim=1)
    return [part.view(len(values), *shape) for part, shape in zip(parts, shapes, strict=True)]
