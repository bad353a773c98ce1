"""Steps over tensors as CUDA graphs.

A step is some hundred small kernels, and starting them one by one takes the host longer than the
GPU computes. A CUDA graph starts them all with one call. Graphs are captured for a few numbers of
rows: other numbers take the next larger graph, whose spare rows compute what nobody reads.

A graph reads and writes memory of its own. What comes in is copied there and what goes out is
copied from there, so states are the caller's to keep and streams can take turns. To copy a state,
its many small tensors are laid side by side: one kernel in, one out.

Shapes: B rows, N values of all tensors of one row.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from echostream.acceleration.steady_state import SteadyStep, use
from echostream.models.echostream_model import EchoStreamModel

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
WARM_RUNS = 3  # libraries choose kernels and take their memory in the first ones

Run = Callable[[], tuple[Tensor, ...]]
Capture = Callable[[Run], tuple[Callable[[], None], tuple[Tensor, ...]]]
Step = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def graph_encoder(
    model: EchoStreamModel, *, chunk_ms: int, batch_sizes: Sequence[int] = BATCH_SIZES
) -> None:
    """Let the encoder compute the steps of the steady state as CUDA graphs.

    Args:
        model: in evaluation mode, on a CUDA device, in any number format. Once its weights are
            moved or converted the graphs are of no use: make them anew.
        chunk_ms: source per decision.
        batch_sizes: numbers of streams to capture graphs for.

    Raises:
        ValueError: the encoder is no Emformer, chunks are no whole number of its frames, the model
            is not on a CUDA device, or a batch size is below 1.
    """
    step = SteadyStep.of(model, chunk_ms)
    device = step.inputs[0].device
    if device.type != "cuda":
        raise ValueError(f"CUDA graphs need a model on a CUDA device, got one on {device}")
    with torch.cuda.device(device):
        use(model, GraphedStep(step, step.inputs, batch_sizes))


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


class GraphedStep:
    """A step for some numbers of rows. Threads may share it, CUDA streams may not: only what is
    started on one stream waits for its turn.

    Args:
        step: batch-first tensors to batch-first tensors, all of one number format.
        inputs: of one row.
        batch_sizes: numbers of rows to capture graphs for.
        capture: as :func:`capture_graph`.
    """

    def __init__(
        self,
        step: Step,
        inputs: Sequence[Tensor],
        batch_sizes: Sequence[int] = BATCH_SIZES,
        capture: Capture = capture_graph,
    ) -> None:
        if not batch_sizes or min(batch_sizes) < 1:
            raise ValueError(f"batch sizes must be at least 1, got {tuple(batch_sizes)}")
        self.shapes = [x.shape[1:] for x in inputs]
        self.dtype, self.device = inputs[0].dtype, inputs[0].device
        # A graph's memory is filled, run and read in one go.
        self.lock = threading.Lock()
        with torch.no_grad():
            self.graphs = [_Graph(step, inputs, n, capture) for n in sorted(set(batch_sizes))]

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """The step's results, or None for other shapes and more rows than any graph takes."""
        first = inputs[0]
        if first.dtype != self.dtype or first.device != self.device:
            return None
        if [x.shape[1:] for x in inputs] != self.shapes:
            return None
        graph = next((graph for graph in self.graphs if graph.rows >= first.size(0)), None)
        if graph is None:
            return None
        with self.lock:
            return graph.run(inputs)


class _Graph:
    """The step of so many rows, with the memory that its graph works in."""

    def __init__(self, step: Step, inputs: Sequence[Tensor], rows: int, capture: Capture) -> None:
        self.rows = rows
        self.inputs = _side_by_side(inputs).repeat(rows, 1)  # (B, N)
        shapes = [x.shape[1:] for x in inputs]

        def run() -> tuple[Tensor, ...]:
            results = step(_apart(self.inputs, shapes))
            self.shapes = [x.shape[1:] for x in results]
            return (_side_by_side(results),)

        self.replay, (self.results,) = capture(run)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """At most B rows' inputs to their results."""
        own = slice(inputs[0].size(0))
        _side_by_side(inputs, out=self.inputs[own])
        self.replay()
        return _apart(self.results[own].clone(), self.shapes)


def _side_by_side(tensors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """(B, ...) tensors to (B, N)."""
    return torch.cat([x.flatten(1) for x in tensors], dim=1, out=out)


def _apart(values: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Undo :func:`_side_by_side` without copying."""
    parts = values.split([math.prod(shape) for shape in shapes], dim=1)
    return [part.view(len(values), *shape) for part, shape in zip(parts, shapes, strict=True)]
