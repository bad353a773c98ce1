"""What the quicker ways to compute an Emformer's usual step have in common.

The usual step is that of a stream at the model's sample rate whose caches are full: from then on
every chunk brings the same shapes, so that code or a graph can be made for them ahead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from echostream.audio import Frontend
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder, EncoderState
from echostream.models.echostream_model import EchoStreamModel
from echostream.models.emformer_layer import EmformerLayerState

WARM_CHUNKS = 64  # most that an encoder may need until its caches are full


def emformer_of(model: EchoStreamModel) -> EchoStreamSpeechEncoder:
    """
    Raises:
        ValueError: the model's encoder is no Emformer.
    """
    if not isinstance(model.encoder, EchoStreamSpeechEncoder):
        raise ValueError("only an Emformer's steps can be compiled; this encoder is none")
    return model.encoder


@contextmanager
def plain_steps(encoder: nn.Module) -> Iterator[None]:
    """Within it, an encoder computes every step alike."""
    usual = getattr(encoder, "usual_step", None)
    if usual is None:
        yield
        return
    encoder.usual_step = None
    try:
        yield
    finally:
        encoder.usual_step = usual


def flatten(state: EncoderState) -> list[Tensor]:
    """All tensors of a state, in a fixed order."""
    layers = [x for layer in state.layers for x in (layer.left, layer.memory, layer.conv)]
    return [*state.subsampler.buffers, state.lookahead, *layers]


def unflatten(tensors: Sequence[Tensor], frames: int) -> EncoderState:
    """The state that :func:`flatten` took apart."""
    first, second, lookahead, *rest = tensors
    layers = tuple(EmformerLayerState(*rest[i : i + 3]) for i in range(0, len(rest), 3))
    return EncoderState((first, second), lookahead, layers, frames)


@torch.no_grad()
def usual_inputs(model: EchoStreamModel, chunk_ms: int) -> tuple[Tensor, ...]:
    """(1, T, bins) features of one chunk and a state with full caches, as a stream comes to have
    them, where the model is and in its format."""
    encoder, frontend = emformer_of(model), Frontend(model.config.frontend)
    weight, rate = next(encoder.parameters()), frontend.config.sample_rate
    silence = np.zeros(math.ceil(chunk_ms * rate / 1000), dtype=np.float32)
    heard, state = frontend.init_state(), encoder.init_state()
    shapes: list[torch.Size] = []
    with plain_steps(encoder):
        for _ in range(WARM_CHUNKS):
            features, heard = frontend.step(silence, rate, heard)
            inputs = (features.to(weight), *flatten(state))
            before, shapes = shapes, [x.shape for x in inputs]
            if shapes == before:
                break
            _, state = encoder.step(inputs[0], state)
    return inputs
