"""Read PyTorch checkpoints without running anything they contain.

A checkpoint is a pickle, and a pickle is a program: it names functions and calls them. This
reader admits a fixed list of names. Tensors become records of where their data lies and are read
only when they are asked for, settings objects of argparse, omegaconf and fairseq become inert
stand-ins, and any other name is refused before it is imported, let alone called. Both file
formats of ``torch.save`` are understood: the zip archive and the older sequence of pickles.
"""

from __future__ import annotations

import math
import pickle
import reprlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import IO, Any, NamedTuple

import torch

_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# How a pickle names a type; a table, because asking torch for other names can import modules.
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _STORAGE_DTYPES.values()}
# Only settings and bookkeeping live here, and of those only attributes are ever looked at.
STAND_IN_PACKAGES = ("omegaconf", "fairseq", "hydra", "examples")
_STAND_IN_NAMES = {
    ("argparse", "Namespace"),
    ("typing", "Any"),
    ("torch", "device"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib", "Path"),
}
_BUILTIN_TYPES = ("int", "float", "str", "bool", "bytes", "object", "NoneType")
_CONTAINERS = {"list": list, "dict": dict, "tuple": tuple, "set": set, "frozenset": frozenset}


class _Frozen(type):
    """Classes that a pickle cannot alter: BUILD may try to set attributes on anything."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the file tries to set {name!r} on {cls.__name__}")


class StandIn(metaclass=_Frozen):
    """An object of a class that is not loaded: constructor arguments, state and items as data."""

    __slots__ = ("args", "state", "items")
    qualified_name = ""
    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        self = super().__new__(cls)
        self.args, self.state, self.items = args, dict(kwargs), []
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2:
            state = {**(state[0] or {}), **(state[1] or {})}
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        self.items.append(value)

    def extend(self, values: Iterable[Any]) -> None:
        self.items.extend(values)

    def __repr__(self) -> str:
        return f"<stand-in for {self.qualified_name}>"


class _Function(metaclass=_Frozen):
    """A callable without attributes to overwrite."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Any) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the file tries to set {name!r} on a function")


# Named tuples, because nothing a pickle can do alters one.
class _StorageType(NamedTuple):
    dtype: torch.dtype


class Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    numel: int


class TensorRecord(NamedTuple):
    """A tensor that has not been read: a strided view of a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _whole_numbers(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or any(
        type(number) is not int or number < 0 for number in value
    ):
        raise pickle.UnpicklingError(
            f"tensor {what} must be non-negative integers, got {reprlib.repr(value)}"
        )
    return tuple(value)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorRecord:
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor is built on something that is no storage")
    (offset,) = _whole_numbers((offset,), "offset")
    size, stride = _whole_numbers(size, "size"), _whole_numbers(stride, "stride")
    if len(size) != len(stride):
        raise pickle.UnpicklingError(f"tensor size {size} and stride {stride} disagree")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.numel:
        raise pickle.UnpicklingError(
            f"a tensor of size {size} reaches past its storage of {storage.numel} numbers"
        )
    if math.prod(size) > storage.numel:
        raise pickle.UnpicklingError(
            f"a tensor of size {size} and stride {stride} holds more numbers than its storage, "
            f"{storage.numel}"
        )
    return TensorRecord(storage, offset, size, stride)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How Python 2 pickles spell bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"cannot read bytes in encoding {reprlib.repr(encoding)}")
    return text.encode("latin1")


def _default_dict(*args: Any) -> dict[Any, Any]:
    return defaultdict(None)


_FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    ("_codecs", "encode"): _Function(_encode),
    ("torch", "Size"): _Function(tuple),
    ("collections", "defaultdict"): _Function(_default_dict),
}


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickler that resolves admitted names only; one object per file.

    Attributes:
        packages: whose classes become inert stand-ins.
    """

    packages: tuple[str, ...] = STAND_IN_PACKAGES

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream, encoding="utf-8")
        self._stand_ins: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGE_DTYPES:
            return _StorageType(_STORAGE_DTYPES[name])
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module in ("builtins", "__builtin__"):
            if name in _CONTAINERS:
                return _CONTAINERS[name]
            if name in _BUILTIN_TYPES:
                return self._stand_in("builtins", name)
        if module.split(".")[0] in self.packages or (module, name) in _STAND_IN_NAMES:
            return self._stand_in(module, name)
        raise pickle.UnpicklingError(
            f"the file names {module}.{name}, which is not admitted (admitted are tensors, plain "
            f"containers, numbers, strings, settings of argparse and of {', '.join(self.packages)})"
        )

    def persistent_load(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError(f"unknown reference {reprlib.repr(pid)}")
        kind, key, numel = pid[1], pid[2], pid[4]
        if len(pid) == 6 and pid[5] is not None:
            raise pickle.UnpicklingError("views of storages (PyTorch before 0.4) are not read")
        if not isinstance(kind, _StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"unknown storage {reprlib.repr(pid)}")
        (numel,) = _whole_numbers((numel,), "storage size")
        return Storage(key, kind.dtype, numel)

    def _stand_in(self, module: str, name: str) -> type:
        key = (module, name)
        if key not in self._stand_ins:
            body = {"__slots__": (), "qualified_name": f"{module}.{name}"}
            self._stand_ins[key] = _Frozen(name, (StandIn,), body)
        return self._stand_ins[key]
