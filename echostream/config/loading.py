"""Configuration to plain containers and strictly back."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union

import yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAY_BE_MISSING = {"may_be_missing": True}

ConfigT = TypeVar("ConfigT", bound="DataclassInstance")


def to_dict(config: Any) -> dict[str, Any]:
    """Return plain containers (tuples become lists) that :func:`from_dict` reads back."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return value

    found: dict[str, Any] = plain(config)
    return found


def from_dict(cls: type[ConfigT], data: Any, where: str = "config") -> ConfigT:
    """Build ``cls`` from plain containers.

    Every field must be present (but for those marked ``MAY_BE_MISSING``) and no other; integers
    are accepted for floats.

    Raises:
        ValueError: unknown or missing key, wrong type, or a value that breaks a rule; the message
            names ``where`` and the key.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected a mapping, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    required = [f.name for f in dataclasses.fields(cls) if not f.metadata.get("may_be_missing")]
    unknown = [key for key in data if key not in names]
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(names)}")
    missing = [name for name in required if name not in data]
    if missing:
        raise ValueError(f"{where}: missing key {missing[0]!r}; required: {', '.join(required)}")
    values = {name: _convert(hints[name], data[name], f"{where}: {name}") for name in data}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if value is None and len(options) < len(typing.get_args(hint)):
            return None
        if len(options) > 1:
            return _convert_tagged(options, value, where)
        return _convert(options[0], value, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"{where}: must be one of {typing.get_args(hint)}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where}: expected a list, got {type(value).__name__}")
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _convert_tagged(options: list[Any], value: Any, where: str) -> Any:
    """Pick the dataclass of a union by its ``kind`` field; one of them may be missing."""
    kinds = {option().kind: option for option in options}
    unsaid = [
        option.kind
        for option in options
        for f in dataclasses.fields(option)
        if f.name == "kind" and f.metadata == MAY_BE_MISSING
    ]
    kind = value.get("kind", *unsaid) if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{where}: kind must be one of {', '.join(kinds)}, got {kind!r}")
    return from_dict(kinds[kind], value, where)


def load_yaml(path: Path) -> Any:
    """Read a YAML file with the safe loader.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: the file is not valid YAML.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such configuration file: {path}")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
