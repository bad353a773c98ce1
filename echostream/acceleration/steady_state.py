"""The Emformer's step in steady state, computed by something quicker.

A step over tensors alone, of shapes that never change, can be compiled ahead or captured as a graph
(:mod:`~echostream.acceleration.compiled`, :mod:`~echostream.acceleration.cuda_graphs`). State has
its full size from a stream's first step, and what is not filled yet is hidden by a mask, which is
an input like any. So every chunk of full length takes the quick way, the first one of a stream
apart, which is shorter; rows of different lengths and the stream's end are computed as ever.

Shapes: B rows, S segment frames, R right-context frames, L left-context frames, M memory slots, Q
queries (R + S, and one for the summary if there is memory), D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from echostream.config import ENCODER_FRAME_MS
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder
from echostream.models.echostream_model import EchoStreamModel
from echostream.models.emformer_layer import EmformerLayerState, EmformerStack, StepLayout
from echostream.streaming import PerRow, tensors_of, with_tensors

# Tensors in, tensors out, batch first; None for shapes that it is not made for.
Quick = Callable[[Sequence[Tensor]], Sequence[Tensor] | None]
StackState = tuple[EmformerLayerState, ...]


@dataclass(frozen=True)
class SteadyStep:
    """The step of a full chunk as a function of tensors.

    Attributes:
        stack: the layers.
        layout: of one row; all rows of a steady step have its lengths.
        state: of one row, for its structure.
        inputs: (1, S + R, D) frames, (1, 1, Q, M + L + R + S) mask, and the state's tensors.
    """

    stack: EmformerStack
    layout: StepLayout
    state: StackState
    inputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: EchoStreamModel, chunk_ms: int) -> SteadyStep:
        """
        Raises:
            ValueError: the encoder is no Emformer, or chunks are no whole number of its frames.
        """
        stack = getattr(model.encoder, "emformer", None)
        if not isinstance(stack, EmformerStack):
            raise ValueError("only an Emformer's steps can be compiled; this encoder is none")
        frames, rest = divmod(chunk_ms, ENCODER_FRAME_MS)
        if rest or not frames:
            raise ValueError(
                f"compiled steps are for chunks of whole frames of {ENCODER_FRAME_MS} ms, "
                f"got {chunk_ms} ms"
            )
        config = stack.config
        right, weight = config.right_context_frames, next(stack.parameters())
        x = weight.new_zeros(1, frames + right, config.embed_dim)
        full = (PerRow((config.left_context_frames,)), PerRow((config.memory_size,)))
        layout = stack.layout(PerRow((frames,)), PerRow((right,)), *full, x)
        state = stack.init_state().layers
        return cls(stack, layout, state, (x, whole_mask(layout, stack, x), *tensors_of(state)))

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of B rows, as ``inputs`` has them of one, to (B, S, D) and the new state's."""
        x, mask, *tensors = inputs
        rows, one = x.size(0), self.layout
        layout = replace(
            one,
            lengths=PerRow.of(one.size, rows),
            right=PerRow.of(one.right_size, rows),
            summaries=PerRow.of(1, rows),
            mask=mask,
        )
        out, following = EmformerStack.compute(
            self.stack, x, with_tensors(self.state, tensors), layout
        )
        return [out, *tensors_of(following)]


def whole_mask(layout: StepLayout, stack: EmformerStack, x: Tensor) -> Tensor:
    """The mask of a step in its full shape, (B, 1, Q, M + L + R + S)."""
    config = stack.config
    new = layout.right_size + layout.size
    shape = (
        x.size(0),
        1,
        new + bool(config.memory_size),
        config.memory_size + config.left_context_frames + new,
    )
    if layout.mask is None:
        return x.new_zeros(shape)
    return layout.mask.expand(shape).contiguous()


class QuickStack(EmformerStack):
    """The layers of another stack, whose steady steps ``quick`` computes.

    Attributes:
        quick: None: every step is computed as ever.
    """

    def __init__(self, stack: EmformerStack, quick: Quick) -> None:
        nn.Module.__init__(self)
        self.config, self.layers = stack.config, stack.layers
        self.quick: Quick | None = quick

    def compute(
        self, x: Tensor, state: StackState, layout: StepLayout
    ) -> tuple[Tensor, StackState]:
        steady = layout.averaging is None and layout.right.uniform and not torch.is_grad_enabled()
        if self.quick is not None and steady and x.size(1) == layout.size + layout.right_size:
            found = self.quick([x, whole_mask(layout, self, x), *tensors_of(state)])
            if found is not None:
                out, *following = found
                return out, with_tensors(state, following)
        return super().compute(x, state, layout)


def use(model: EchoStreamModel, quick: Quick) -> None:
    """Let the model's encoder take its steady steps quickly."""
    if not isinstance(model.encoder, EchoStreamSpeechEncoder):
        raise TypeError(f"only an Emformer has steady steps, got {type(model.encoder).__name__}")
    model.encoder.emformer = QuickStack(model.encoder.emformer, quick)


@contextmanager
def plain_steps(model: EchoStreamModel) -> Iterator[None]:
    """Within it, the model's encoder computes every step as ever."""
    stack = getattr(model.encoder, "emformer", None)
    if not isinstance(stack, QuickStack):
        yield
        return
    quick, stack.quick = stack.quick, None
    try:
        yield
    finally:
        stack.quick = quick
