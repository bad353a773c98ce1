"""The Emformer's step compiled ahead of time, kept in the user's cache folder.

A chunk's encoder step is some hundred small operations on a few rows; what calls them costs as
much as they do. AOTInductor turns the step into one native function. It is compiled for the shapes
that a stream at the model's sample rate has once its caches are full; every other step (a stream's
beginning and end, chunks of other lengths, several streams at once) runs as ever, and both compute
the same up to rounding.

Compiling needs a C++ compiler and takes a minute or more for every model, chunk size and number of
threads; from then on the cached package loads in a fraction of a second. It is native code: the
folder belongs to its user alone. On a CUDA device there is nothing to compile: there the step is
captured as CUDA graphs (:mod:`echostream.cuda_graphs`).
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from echostream.cuda_graphs import graph_encoder
from echostream.files import atomic_path
from echostream.models import echostream_encoder, emformer_layer
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder, EncoderState
from echostream.models.echostream_model import EchoStreamModel
from echostream.usual_step import emformer_of, flatten, plain_steps, unflatten, usual_inputs


def cache_folder() -> Path:
    """Where compiled steps are kept: ``$XDG_CACHE_HOME/echostream`` or ``~/.cache/echostream``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "echostream"


def compile_encoder(
    model: EchoStreamModel, *, chunk_ms: int, folder: Path | None = None
) -> Path | None:
    """Let the encoder compute the steps of one stream's usual chunks with compiled code, or on a
    CUDA device those of one or several streams as CUDA graphs.

    Args:
        model: in evaluation mode; float32 if on the CPU.
        chunk_ms: source per decision.
        folder: of the cache; None: :func:`cache_folder`.

    Returns:
        The package, compiled now if it was not there; None for CUDA graphs, which are captured
        anew in a moment.

    Raises:
        ValueError: the encoder is no Emformer, or the model neither float32 on the CPU nor on a
            CUDA device.
        RuntimeError: it cannot be compiled, for want of a C++ compiler for instance.
    """
    encoder = emformer_of(model)
    weight = next(encoder.parameters())
    if weight.device.type == "cuda":
        graph_encoder(model, chunk_ms=chunk_ms)
        return None
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ValueError(
            f"compiled steps are for float32 on the CPU, got {weight.dtype} on {weight.device}"
        )
    inputs = usual_inputs(model, chunk_ms)
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


class _UsualStep:
    """Runs a compiled step where the shapes are those it was compiled for."""

    def __init__(
        self, run: Callable[[list[Tensor]], list[Tensor]], inputs: tuple[Tensor, ...]
    ) -> None:
        self.run, self.shapes = run, [x.shape for x in inputs]

    def __call__(self, features: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState] | None:
        """The step's results, or None for shapes of other steps."""
        inputs = [features, *flatten(state)]
        if [x.shape for x in inputs] != self.shapes:
            return None
        out, *following = self.run(inputs)
        return out, unflatten(following, state.frames + out.size(1))


class _Flat(nn.Module):
    """The encoder's step with tensors alone in and out."""

    def __init__(self, encoder: EchoStreamSpeechEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        out, following = self.encoder.step(features, unflatten(state, 0))
        return out, *flatten(following)


def _key(encoder: EchoStreamSpeechEncoder, inputs: tuple[Tensor, ...]) -> str:
    """Names all that the compiled code depends on."""
    digest = hashlib.sha256()
    for module in (echostream_encoder, emformer_layer):
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
