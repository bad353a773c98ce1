"""Number formats that a model can compute in.

``bf16`` needs a processor with instructions for it (AVX512-BF16, AMX, or a GPU): others emulate it,
several times slower than float32. ``int8`` keeps the weights of the large projections in eight bits
and quantises what is multiplied with them at every call (torch's dynamic quantisation); everything
else stays float32. It runs on CPUs alone. In ``fp32`` and ``bf16`` on a CPU the large projections
keep their weights laid out for the processor as well
(:mod:`echostream.acceleration.packed_linear`). A projection that is tied to embeddings is treated
like the others; the embeddings stay as they are.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from echostream.acceleration.packed_linear import pack, unpack
from echostream.config.compute import DTYPES

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Weights from which a projection of a few rows is quicker in int8 than in float32: below it,
# quantising the rows takes longer than the smaller product saves.
MIN_INT8_WEIGHTS = 256 * 512

ModelT = TypeVar("ModelT", bound=nn.Module)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster there. Processors without them imitate them, at a
    fourth of the speed of float32."""
    if device.type != "cpu":
        return True
    # Older versions of torch do not tell.
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


@runtime_checkable
class TiedOutput(Protocol):
    """A module with a projection that is tied to its embeddings."""

    @property
    def output(self) -> nn.Linear: ...

    def project_with(self, project: Callable[[Tensor], Tensor] | None) -> None: ...


def check_dtype(name: str | torch.dtype, device: str | torch.device) -> None:
    """
    Raises:
        ValueError: no such format, or none that the device computes in.
    """
    if isinstance(name, str) and name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    if name == "int8" and torch.device(device).type != "cpu":
        raise ValueError(f"dtype int8 computes on the CPU alone, got device {device!r}")


def convert(
    model: ModelT,
    dtype: str | torch.dtype,
    device: str | torch.device,
    *,
    min_int8_weights: int = MIN_INT8_WEIGHTS,
) -> ModelT:
    """Move a model to a device and a format; see the module docstring.

    Args:
        min_int8_weights: smaller projections stay float32.
    """
    check_dtype(dtype, device)
    tied = [module for module in model.modules() if isinstance(module, TiedOutput)]
    for module in tied:
        module.project_with(None)
    if dtype != "int8":
        number = FLOATS[dtype] if isinstance(dtype, str) else dtype
        model = unpack(model).to(device=device, dtype=number)
        if torch.device(device).type != "cpu":
            return model
        for module in tied if number == torch.bfloat16 else []:
            module.project_with(functools.partial(pack(nn.Sequential(module.output))))
        return pack(model)
    model = unpack(model).to(device=device, dtype=torch.float32)
    for module in tied:
        if module.output.weight.numel() >= min_int8_weights:
            module.project_with(functools.partial(_tied_int8(module.output)))
    large = {
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module.weight.numel() >= min_int8_weights
    }
    if large:
        with warnings.catch_warnings():
            # It is to move to torchao, which torch does not bring along.
            warnings.simplefilter("ignore")
            model = torch.ao.quantization.quantize_dynamic(
                model, large, dtype=torch.qint8, inplace=True
            )
    return model


def _tied_int8(linear: nn.Linear) -> nn.Module:
    """A projection with eight bits and a scale of its own for each output, since embeddings of
    frequent words are much shorter than others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(linear), {"0": torch.ao.quantization.per_channel_dynamic_qconfig}
        )
    return made
