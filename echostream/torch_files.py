"""Checkpoint files in both formats of ``torch.save``: zip archives and older pickle sequences.

What a file holds passes the restricted unpickler and becomes plain containers and tensors.
"""

from __future__ import annotations

import pickle
import reprlib
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from echostream.restricted_unpickler import (
    RestrictedUnpickler,
    StandIn,
    Storage,
    TensorRecord,
)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


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

    def __init__(self, storages: Callable[[Storage], torch.Tensor]) -> None:
        self._storages = storages
        self._open: set[int] = set()
        # By id, with the object itself, which must live as long as its id is remembered.
        self._converted: dict[int, tuple[Any, Any]] = {}

    def convert(self, value: Any) -> Any:
        if isinstance(value, TensorRecord):
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

    def _tensor(self, record: TensorRecord) -> torch.Tensor:
        data = self._storages(record.storage)
        return data.as_strided(record.size, record.stride, record.offset)


def _select(root: Any, keep: Iterable[str] | None) -> dict[str, Any]:
    if not isinstance(root, Mapping):
        raise pickle.UnpicklingError(f"expected a dictionary, found {type(root).__name__}")
    return dict(root) if keep is None else {key: root[key] for key in keep if key in root}


def _as_tensor(data: bytearray, storage: Storage) -> torch.Tensor:
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

        def storage(wanted: Storage) -> torch.Tensor:
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
    wanted: dict[str, Storage] = {}
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


def _collect_storages(value: Any, found: dict[str, Storage], seen: set[int]) -> None:
    if isinstance(value, TensorRecord):
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
