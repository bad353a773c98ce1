"""Steps compiled ahead of time, kept in the user's cache folder.

An encoder's step is some hundred small operations on a few rows; what calls them costs as much as
they do. AOTInductor turns a step over tensors into one native function.

Compiling needs a C++ compiler and takes a minute or more for every model, chunk size and number of
threads; from then on the cached package loads in a second or two, most of which is torch's
compiler being imported. It is native code: the folder belongs to its user alone. On a CUDA device
there is nothing to compile: there the step is captured as CUDA graphs
(:mod:`echostream.acceleration.cuda_graphs`).
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from echostream import streaming
from echostream.acceleration.cuda_graphs import graph_encoder
from echostream.acceleration.steady_state import SteadyStep, use
from echostream.files import atomic_path
from echostream.models import causal_convolution, emformer_layer
from echostream.models.echostream_model import EchoStreamModel

Step = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def cache_folder() -> Path:
    """Where compiled steps are kept: ``$XDG_CACHE_HOME/echostream`` or ``~/.cache/echostream``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "echostream"


def compile_encoder(
    model: EchoStreamModel, *, chunk_ms: int, folder: Path | None = None
) -> Path | None:
    """Let the encoder compute the steps of one stream's steady state with compiled code, or on a
    CUDA device those of one or several streams as CUDA graphs.

    Args:
        model: in evaluation mode; float32 if on the CPU.
        chunk_ms: source per decision.
        folder: of the cache; None: :func:`cache_folder`.

    Returns:
        The package, compiled now if it was not there; None for CUDA graphs, which are captured
        anew in a moment.

    Raises:
        ValueError: the encoder is no Emformer, chunks are no whole number of its frames, or the
            model is neither float32 on the CPU nor on a CUDA device.
        RuntimeError: it cannot be compiled, for want of a C++ compiler for instance.
    """
    weight = next(model.parameters())
    if weight.device.type == "cuda":
        graph_encoder(model, chunk_ms=chunk_ms)
        return None
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ValueError(
            f"compiled steps are for float32 on the CPU, got {weight.dtype} on {weight.device}"
        )
    step = SteadyStep.of(model, chunk_ms)
    folder = cache_folder() if folder is None else folder
    sources = [inspect.getsource(m) for m in (streaming, causal_convolution, emformer_layer)]
    package = folder / f"encoder-{_key(step.stack, step.inputs, sources)}.pt2"
    if not package.is_file():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        compile_step(step, step.stack, step.inputs, package)
    use(model, CompiledStep(torch._inductor.aoti_load_package(str(package)), step.inputs))
    return package


def compile_step(step: Step, module: nn.Module, inputs: Sequence[Tensor], package: Path) -> None:
    """Compile a function of tensors for the shapes of ``inputs``.

    Args:
        step: computes with the weights of ``module``, whatever state they belong to taken apart
            with :func:`echostream.streaming.tensors_of`.
        package: the file to write.

    Raises:
        RuntimeError: it cannot be compiled, for want of a C++ compiler for instance.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(_Exported(step, module).eval(), tuple(inputs))
        with atomic_path(package) as temporary:
            torch._inductor.aoti_compile_and_package(program, package_path=str(temporary))
    except Exception as error:
        raise RuntimeError(
            f"the step could not be compiled (is there a C++ compiler?): {error}"
        ) from error


class CompiledStep:
    """Runs a compiled step where the shapes are those of ``inputs``, which it was compiled for."""

    def __init__(self, run: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> None:
        self.run, self.kinds = run, _kinds(inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor] | None:
        """The step's results, or None for other shapes."""
        return self.run(*inputs) if _kinds(inputs) == self.kinds else None


class _Exported(nn.Module):
    def __init__(self, step: Step, module: nn.Module) -> None:
        super().__init__()
        self.step, self.module = step, module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.step(inputs))


def _kinds(tensors: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(x.shape, x.dtype) for x in tensors]


def _key(module: nn.Module, inputs: Sequence[Tensor], sources: Sequence[str]) -> str:
    """Names all that the compiled code depends on."""
    digest = hashlib.sha256("".join(sources).encode())
    parts = (
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),  # compiled in
        module.config,
        [tuple(x.shape) for x in inputs],
    )
    digest.update(repr(parts).encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
