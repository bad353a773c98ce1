"""The Emformer's step compiled ahead of time, kept in the user's cache folder.

A chunk's encoder step is some hundred small operations on a few rows; what calls them costs as
much as they do. AOTInductor turns the step into one native function. It is compiled for the shapes
that a stream at the model's sample rate has once its caches are full; every other step (a stream's
beginning and end, chunks of other lengths, several streams at once) runs as ever, and both compute
the same up to rounding.

Compiling needs a C++ compiler and takes a minute or more for every model, chunk size and number of
threads; from then on the cached package loads in a fraction of a second. It is native code: the
folder belongs to its user alone.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from echostream.audio import Frontend
from echostream.files import atomic_path
from echostream.models import echostream_encoder, emformer_layer, emformer_stack
from echostream.models.echostream_encoder import (
    EchoStreamSpeechEncoder,
    EncoderState,
    SubsamplerState,
)
from echostream.models.echostream_model import EchoStreamModel
from echostream.models.emformer_layer import EmformerLayerState

WARM_CHUNKS = 64  # most that an encoder may need until its caches are full


def add_compile_arg(parser: ArgumentParser) -> None:
    """The flag that asks for :func:`compile_encoder`."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the Emformer's step ahead (a minute or more, once per model and chunk size; "
        "needs a C++ compiler)",
    )


def cache_folder() -> Path:
    """Where compiled steps are kept: ``$XDG_CACHE_HOME/echostream`` or ``~/.cache/echostream``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "echostream"


def compile_encoder(model: EchoStreamModel, *, chunk_ms: int, folder: Path | None = None) -> Path:
    """Let the encoder compute the steps of one stream's usual chunks with compiled code.

    Args:
        model: in evaluation mode, on the CPU, float32.
        chunk_ms: source per decision.
        folder: of the cache; None: :func:`cache_folder`.

    Returns:
        The package, compiled now if it was not there.

    Raises:
        ValueError: the encoder is no Emformer, or the model not float32 on the CPU.
        RuntimeError: it cannot be compiled, for want of a C++ compiler for instance.
    """
    encoder = model.encoder
    if not isinstance(encoder, EchoStreamSpeechEncoder):
        raise ValueError("only an Emformer's steps can be compiled; this encoder is none")
    weight = next(encoder.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ValueError(
            f"compiled steps are for float32 on the CPU, got {weight.dtype} on {weight.device}"
        )
    with torch.no_grad():
        inputs = _usual_inputs(encoder, Frontend(model.config.frontend), chunk_ms)
    folder = cache_folder() if folder is None else folder
    package = folder / f"encoder-{_key(encoder, inputs)}.pt2"
    if not package.is_file():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _build(encoder, inputs, package)
    encoder.usual_step = _UsualStep(_load(package), inputs)
    return package


def _load(package: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    # What torch._inductor.aoti_load_package does, which first imports the compiler: seconds.
    return torch._C._aoti.AOTIModelPackageLoader(str(package), "model", False, 1, -1).run


@contextmanager
def plain_steps(encoder: nn.Module) -> Iterator[None]:
    """Within it, an encoder computes without compiled code."""
    usual = getattr(encoder, "usual_step", None)
    if usual is None:
        yield
        return
    encoder.usual_step = None
    try:
        yield
    finally:
        encoder.usual_step = usual


class _UsualStep:
    """Runs a compiled step where the shapes are those it was compiled for."""

    def __init__(
        self, run: Callable[[list[Tensor]], list[Tensor]], inputs: tuple[Tensor, ...]
    ) -> None:
        self.run, self.shapes = run, [x.shape for x in inputs]

    def __call__(self, features: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState] | None:
        """The step's results, or None for shapes of other steps."""
        inputs = [features, *_flatten(state)]
        if [x.shape for x in inputs] != self.shapes:
            return None
        out, *following = self.run(inputs)
        return out, _unflatten(following, state.frames + out.size(1))


class _Flat(nn.Module):
    """The encoder's step with tensors alone in and out."""

    def __init__(self, encoder: EchoStreamSpeechEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        out, following = self.encoder.step(features, _unflatten(state, 0))
        return out, *_flatten(following)


def _flatten(state: EncoderState) -> list[Tensor]:
    layers = [x for layer in state.layers for x in (layer.left, layer.memory, layer.conv)]
    return [*state.subsampler.buffers, state.lookahead, *layers]


def _unflatten(tensors: list[Tensor] | tuple[Tensor, ...], frames: int) -> EncoderState:
    first, second, lookahead, *rest = tensors
    layers = tuple(EmformerLayerState(*rest[i : i + 3]) for i in range(0, len(rest), 3))
    return EncoderState(SubsamplerState((first, second)), lookahead, layers, frames)


def _usual_inputs(
    encoder: EchoStreamSpeechEncoder, frontend: Frontend, chunk_ms: int
) -> tuple[Tensor, ...]:
    """Features of one chunk and a state with full caches, as a stream comes to have them."""
    rate = frontend.config.sample_rate
    silence = np.zeros(math.ceil(chunk_ms * rate / 1000), dtype=np.float32)
    heard, state = frontend.init_state(), encoder.init_state()
    shapes: list[torch.Size] = []
    for _ in range(WARM_CHUNKS):
        features, heard = frontend.step(silence, rate, heard)
        before, shapes = shapes, [x.shape for x in (features, *_flatten(state))]
        if shapes == before:
            break
        inputs = (features, *_flatten(state))
        _, state = encoder.step(features, state)
    return inputs


def _key(encoder: EchoStreamSpeechEncoder, inputs: tuple[Tensor, ...]) -> str:
    """Names all that the compiled code depends on."""
    digest = hashlib.sha256()
    for module in (echostream_encoder, emformer_stack, emformer_layer):
        digest.update(inspect.getsource(module).encode())
    parts = (
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),  # compiled in
        encoder.config,
        [tuple(x.shape) for x in inputs],
    )
    digest.update(repr(parts).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _build(encoder: EchoStreamSpeechEncoder, inputs: tuple[Tensor, ...], package: Path) -> None:
    flat = _Flat(encoder).eval()
    try:
        with plain_steps(encoder), torch.no_grad():
            program = torch.export.export(flat, inputs)
        with atomic_path(package) as temporary:
            torch._inductor.aoti_compile_and_package(program, package_path=str(temporary))
    except Exception as error:
        raise RuntimeError(
            f"the encoder's step could not be compiled (is there a C++ compiler?): {error}"
        ) from error
