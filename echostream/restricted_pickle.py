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
import struct
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

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
_STAND_IN_PACKAGES = ("omegaconf", "fairseq")
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

    def __init__(self, call: Any) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the file tries to set {name!r} on a function")


# Named tuples, because nothing a pickle can do alters one.
class _StorageType(NamedTuple):
    dtype: torch.dtype


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    numel: int


class _TensorRecord(NamedTuple):
    """A tensor that has not been read: a strided view of a storage."""

    storage: _Storage
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


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _TensorRecord:
    if not isinstance(storage, _Storage):
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
    return _TensorRecord(storage, offset, size, stride)


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
    """Unpickler that resolves admitted names only; one object per file."""

    def __init__(self, stream: BinaryIO) -> None:
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
        if module.split(".")[0] in _STAND_IN_PACKAGES or (module, name) in _STAND_IN_NAMES:
            return self._stand_in(module, name)
        raise pickle.UnpicklingError(
            f"the file names {module}.{name}, which is not admitted (admitted are tensors, plain "
            "containers, numbers, strings, and settings of argparse, omegaconf and fairseq)"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError(f"unknown reference {reprlib.repr(pid)}")
        kind, key, numel = pid[1], pid[2], pid[4]
        if len(pid) == 6 and pid[5] is not None:
            raise pickle.UnpicklingError("views of storages (PyTorch before 0.4) are not read")
        if not isinstance(kind, _StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"unknown storage {reprlib.repr(pid)}")
        (numel,) = _whole_numbers((numel,), "storage size")
        return _Storage(key, kind.dtype, numel)

    def _stand_in(self, module: str, name: str) -> type:
        key = (module, name)
        if key not in self._stand_ins:
            body = {"__slots__": (), "qualified_name": f"{module}.{name}"}
            self._stand_ins[key] = _Frozen(name, (StandIn,), body)
        return self._stand_ins[key]


def read_checkpoint(path: Path, keep: Iterable[str] | None = None) -> dict[str, Any]:
    """Read a checkpoint whose top level is a dictionary.

    Args:
        path: a file written by ``torch.save``.
        keep: top-level keys to return, those that exist; ``None`` returns all. Tensors under
            other keys (an optimizer's, say) are not read.

    Returns:
        Plain containers, numbers, strings and tensors. Namespaces and configuration objects
        become dictionaries, enum members their value; other objects stay :class:`StandIn`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty, truncated, no checkpoint, or names something that is not
            admitted; nothing in it was run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    try:
        with path.open("rb") as stream:
            if zipfile.is_zipfile(stream):
                stream.seek(0)
                return _read_archive(stream, keep)
            stream.seek(0)
            return _read_legacy(stream, path.stat().st_size, keep)
    except FileNotFoundError:
        raise
    except Exception as error:
        # A damaged pickle can fail anywhere in the unpickler with almost any exception.
        raise ValueError(f"{path}: cannot be read as a checkpoint: {error}") from error


class _Plain:
    """Turns unpickled objects into plain ones; ``storages`` gives a storage's 1-D tensor.

    What the file holds once is converted once, however often it is referred to: references to
    references would otherwise multiply without bound.
    """

    def __init__(self, storages: Callable[[_Storage], torch.Tensor]) -> None:
        self._storages = storages
        self._open: set[int] = set()
        # By id, with the object itself, which must live as long as its id is remembered.
        self._converted: dict[int, tuple[Any, Any]] = {}

    def convert(self, value: Any) -> Any:
        if isinstance(value, _TensorRecord):
            return self._tensor(value)
        if not isinstance(value, (Mapping, list, tuple, set, frozenset, StandIn)):
            return value
        if id(value) in self._converted:
            return self._converted[id(value)][1]
        if id(value) in self._open:
            raise pickle.UnpicklingError("a container holds itself")
        self._open.add(id(value))
        try:
            result = self._container(value)
        finally:
            self._open.discard(id(value))
        self._converted[id(value)] = value, result
        return result

    def _container(self, value: Any) -> Any:
        if isinstance(value, StandIn):
            return self._stand_in(value)
        if isinstance(value, Mapping):
            return {self.convert(key): self.convert(item) for key, item in value.items()}
        if isinstance(value, (set, frozenset)):
            return set(value)
        return type(value)(self.convert(item) for item in value)

    def _stand_in(self, value: StandIn) -> Any:
        state = value.state if isinstance(value.state, Mapping) else {}
        if value.qualified_name == "argparse.Namespace":
            return self.convert(state)
        if value.qualified_name.startswith("omegaconf."):
            for field in ("_content", "_val"):
                if field in state:
                    return self.convert(state[field])
        if value.qualified_name.startswith("pathlib."):
            return "/".join(str(part) for part in value.args)
        if len(value.args) == 1 and isinstance(value.args[0], (str, int)) and not state:
            return value.args[0]  # an enum member, pickled as its class called on its value
        return value

    def _tensor(self, record: _TensorRecord) -> torch.Tensor:
        data = self._storages(record.storage)
        return data.as_strided(record.size, record.stride, record.offset)


def _select(root: Any, keep: Iterable[str] | None) -> dict[str, Any]:
    if not isinstance(root, Mapping):
        raise pickle.UnpicklingError(f"expected a dictionary, found {type(root).__name__}")
    return dict(root) if keep is None else {key: root[key] for key in keep if key in root}


def _as_tensor(data: bytearray, storage: _Storage) -> torch.Tensor:
    size = storage.numel * storage.dtype.itemsize
    if len(data) != size:
        raise pickle.UnpicklingError(
            f"storage {storage.key} holds {len(data)} bytes where {size} are announced"
        )
    if size == 0:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(data, dtype=storage.dtype)


def _read_archive(stream: BinaryIO, keep: Iterable[str] | None) -> dict[str, Any]:
    with zipfile.ZipFile(stream) as archive:
        packed = [i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise pickle.UnpicklingError(f"compressed member {packed[0]}: not written by torch")
        members = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        if len(members) != 1:
            raise pickle.UnpicklingError("the archive has no data.pkl, so torch did not write it")
        folder = members[0].removesuffix("data.pkl")
        names = set(archive.namelist())
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("big-endian data is not read")
        with archive.open(members[0]) as program:
            root = RestrictedUnpickler(program).load()
        cache: dict[str, torch.Tensor] = {}

        def storage(wanted: _Storage) -> torch.Tensor:
            if wanted.key not in cache:
                name = f"{folder}data/{wanted.key}"
                if name not in names:
                    raise pickle.UnpicklingError(f"storage {wanted.key} is missing")
                cache[wanted.key] = _as_tensor(bytearray(archive.read(name)), wanted)
            if cache[wanted.key].dtype != wanted.dtype:
                raise pickle.UnpicklingError(f"storage {wanted.key} is given two types")
            return cache[wanted.key]

        return _Plain(storage).convert(_select(root, keep))


def _read_legacy(stream: BinaryIO, size: int, keep: Iterable[str] | None) -> dict[str, Any]:
    """The format before PyTorch 1.6: magic number, version, platform, object, keys, raw data."""
    first = RestrictedUnpickler(stream).load()
    if first != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("neither of torch.save's formats")
    version = RestrictedUnpickler(stream).load()
    platform = RestrictedUnpickler(stream).load()
    if version != _LEGACY_PROTOCOL or not isinstance(platform, dict):
        raise pickle.UnpicklingError(f"unknown format version {reprlib.repr(version)}")
    if platform.get("little_endian") is not True:
        raise pickle.UnpicklingError("big-endian data is not read")
    root = RestrictedUnpickler(stream).load()
    keys = RestrictedUnpickler(stream).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise pickle.UnpicklingError("the list of storages is damaged")
    wanted: dict[str, _Storage] = {}
    _collect_storages(root, wanted, set())
    data: dict[str, torch.Tensor] = {}
    for key in keys:
        if key not in wanted:
            raise pickle.UnpicklingError(f"storage {key} belongs to no tensor that can be read")
        storage = wanted[key]
        length = stream.read(8)
        if len(length) < 8:
            raise pickle.UnpicklingError(f"storage {key} is truncated")
        (numel,) = struct.unpack("<q", length)
        length = numel * storage.dtype.itemsize
        if numel != storage.numel or length > size - stream.tell():
            raise pickle.UnpicklingError(f"storage {key} is truncated")
        data[key] = _as_tensor(bytearray(stream.read(length)), storage)
    missing = [key for key in wanted if key not in data]
    if missing:
        raise pickle.UnpicklingError(f"storage {missing[0]} is missing")
    return _Plain(lambda storage: data[storage.key]).convert(_select(root, keep))


def _collect_storages(value: Any, found: dict[str, _Storage], seen: set[int]) -> None:
    if isinstance(value, _TensorRecord):
        found.setdefault(value.storage.key, value.storage)
    elif id(value) not in seen:
        seen.add(id(value))
        parts: list[Any] = []
        if isinstance(value, Mapping):
            parts = list(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            parts = list(value)
        elif isinstance(value, StandIn):
            parts = [value.args, value.state, value.items]
        for part in parts:
            _collect_storages(part, found, seen)
