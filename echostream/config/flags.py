"""Flags and YAML keys made from the dataclasses of settings, for agents and commands alike.

Every field of every section of :class:`~echostream.config.policy.Settings` becomes

- a flag, ``--stride-n 2``,
- an assignment, ``--set policy.stride_n=2``,
- a key in YAML files, ``stride_n: 2`` or ``policy.stride_n: 2``,

with help, type, choices and bounds from the field alone. What is not given stays as it is in the
model directory. Where something is given twice, the last one counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

from echostream.config.fields import ABOUT, About
from echostream.config.policy import Settings

SettingsT = TypeVar("SettingsT", bound=Settings)
SWITCH = {"on": True, "off": False}


@dataclass(frozen=True)
class Setting:
    """One field of one section.

    Attributes:
        section, name: where it is kept, ``policy`` and ``stride_n``.
        about: help, unit and bounds.
        words: what may be written for it, with its values; empty where a number is expected.
        number: ``int`` or ``float`` where a number may be written, ``str`` where any text may,
            otherwise None.
    """

    section: str
    name: str
    about: About
    words: Mapping[str, Any]
    number: type | None

    @property
    def key(self) -> str:
        """``policy.stride_n``: how ``--set`` and a parsed namespace call it."""
        return f"{self.section}.{self.name}"

    @property
    def flag(self) -> str:
        """``--stride-n``"""
        return f"--{self.about.flag or self.name.replace('_', '-')}"

    @property
    def yaml_key(self) -> str:
        """``stride_n``: its flag as a key of YAML files."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def allowed(self) -> str:
        """What may be written, in words."""
        parts = [f"one of {', '.join(self.words)}"] if self.words else []
        if self.number is not None:
            kind = {int: "an integer", float: "a number", str: "a text"}[self.number]
            parts.append(" ".join(filter(None, (kind, self.about.range))))
        return " or ".join(parts)

    def parse(self, text: str) -> Any:
        """The value that a text stands for.

        Raises:
            ValueError: none; names the setting and what is allowed.
        """
        if text in self.words:
            return self.words[text]
        if self.number is not None:
            try:
                value = self.number(text)
            except ValueError:
                pass
            else:
                if self.about.allows(value):
                    return value
        raise self._mistake(text)

    def accept(self, value: Any) -> Any:
        """The value that one read from YAML stands for; ``on`` and ``off`` are booleans there.

        Raises:
            ValueError: none; names the setting and what is allowed.
        """
        text = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
        if value is None or (isinstance(value, bool) and text not in self.words):
            raise self._mistake(value)
        return self.parse(text)

    def text(self, value: Any) -> str:
        """What :meth:`parse` reads as that value."""
        for word, meaning in self.words.items():
            if meaning is value or (isinstance(meaning, str) and meaning == value):
                return word
        return str(value)

    def _mistake(self, got: Any) -> ValueError:
        return ValueError(f"{self.key} must be {self.allowed}, got {got!r}")


def settings_of(kind: type[Settings] = Settings) -> tuple[Setting, ...]:
    """Every field of every section, in order.

    Raises:
        TypeError: a field that no flag can be made of, or two with one flag.
    """
    found: dict[str, Setting] = {}
    sections = typing.get_type_hints(kind)
    for section in dataclasses.fields(kind):
        hints = typing.get_type_hints(sections[section.name])
        for field in dataclasses.fields(sections[section.name]):
            where = f"{section.name}.{field.name}"
            if ABOUT not in field.metadata:
                raise TypeError(f"{where}: a setting needs a help text; declare it with setting()")
            words, number = _written(hints[field.name], where)
            made = Setting(section.name, field.name, field.metadata[ABOUT], words, number)
            if made.flag in found:
                raise TypeError(f"{where} and {found[made.flag].key} have one flag, {made.flag}")
            found[made.flag] = made
    return tuple(found.values())


def _written(hint: Any, where: str) -> tuple[dict[str, Any], type | None]:
    """Words and kind of number that may be written for a type."""
    words: dict[str, Any] = {}
    options = [hint]
    if typing.get_origin(hint) in (Union, types.UnionType):
        options = list(typing.get_args(hint))
    if type(None) in options:
        options.remove(type(None))
        words["auto" if bool in options else "none"] = None
    if len(options) == 1:
        (option,) = options
        if option is bool:
            return words | SWITCH, None
        if typing.get_origin(option) is Literal and all(
            isinstance(word, str) for word in typing.get_args(option)
        ):
            return words | {word: word for word in typing.get_args(option)}, None
        if option in (int, float, str):
            return words, option
    raise TypeError(f"{where}: no flag can be made of {hint}")


def add_setting_args(parser: argparse.ArgumentParser, kind: type[Settings] = Settings) -> None:
    """Add the flag of every setting, and ``--set`` for all of them."""
    group = parser.add_argument_group(
        "settings", "What is not given stays as the model directory has it."
    )
    every = settings_of(kind)
    for one in every:
        shown = [*one.words]
        if one.number is not None:
            shown.append(one.about.unit.upper() or ("N" if one.number is int else "X"))
        group.add_argument(
            one.flag,
            dest=one.key,
            type=_argument_type(one),
            default=argparse.SUPPRESS,
            metavar="|".join(shown),
            help=one.about.help,
        )
    group.add_argument(
        "--set",
        action=_Assign,
        settings={one.key: one for one in every},
        metavar="SECTION.NAME=VALUE",
        default=argparse.SUPPRESS,
        help="any of them by its name in config.yaml, such as policy.stride_n=2, repeatable",
    )


def _argument_type(one: Setting) -> Any:
    def parse(text: str) -> Any:
        try:
            return one.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


class _Assign(argparse.Action):
    """``--set``: leaves in the namespace what the setting's own flag would."""

    def __init__(self, *args: Any, settings: Mapping[str, Setting], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        try:
            key, equals, text = values.partition("=")
            if not equals:
                raise ValueError(f"expected SECTION.NAME=VALUE, got {values!r}")
            setattr(namespace, key, _find(key, self.settings).parse(text))
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from error


def _find(key: str, every: Mapping[str, Setting]) -> Setting:
    """
    Raises:
        ValueError: no setting of that name; says which there are.
    """
    if key in every:
        return every[key]
    section, _, name = key.partition(".")
    names = [one.name for one in every.values() if one.section == section]
    if not names:
        sections = ", ".join(dict.fromkeys(one.section for one in every.values()))
        raise ValueError(f"unknown section {section!r} in {key!r}; sections are {sections}")
    raise ValueError(f"unknown setting {name!r} in {key!r}; {section} has {', '.join(names)}")


def given_settings(args: argparse.Namespace, kind: type[Settings] = Settings) -> dict[str, Any]:
    """What flags of :func:`add_setting_args` gave, by key (``policy.stride_n``)."""
    found = vars(args)
    return {one.key: found[one.key] for one in settings_of(kind) if one.key in found}


def settings_from_args(
    args: argparse.Namespace, config: Any, kind: type[Settings] = Settings
) -> Settings:
    """Overlay the flags that were given on the model directory's settings.

    Args:
        config: the model directory's, ``system.config``; or settings.

    Raises:
        ValueError: values that do not go together.
    """
    return overlay(kind.of(config), given_settings(args, kind))


def overlay(default: SettingsT, values: Mapping[str, Any]) -> SettingsT:
    """Replace values by key, ``policy.stride_n``."""
    changes: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        changes.setdefault(section, {})[name] = value
    return dataclasses.replace(
        default,
        **{
            section: dataclasses.replace(getattr(default, section), **change)
            for section, change in changes.items()
        },
    )


def read_settings(
    values: Mapping[str, Any], where: str, kind: type[Settings] = Settings
) -> dict[str, Any]:
    """Settings from YAML, by key as :func:`overlay` takes them.

    Args:
        values: by the flag's name (``stride_n``) or with its section (``policy.stride_n``).
        where: what a message begins with.

    Raises:
        ValueError: an unknown name, or a value that is not allowed.
    """
    return {one.key: value for one, value in _named(values, where, kind)}


def setting_flags(
    values: Mapping[str, Any], where: str, kind: type[Settings] = Settings
) -> list[str]:
    """The command line that says what :func:`read_settings` reads."""
    named = _named(values, where, kind)
    return [part for one, value in named for part in (one.flag, one.text(value))]


def _named(
    values: Mapping[str, Any], where: str, kind: type[Settings]
) -> Iterator[tuple[Setting, Any]]:
    """Each setting with its value."""
    every = settings_of(kind)
    by_key = {one.key: one for one in every}
    by_flag = {one.yaml_key: one for one in every}
    for name, value in values.items():
        try:
            if name in by_flag:
                one = by_flag[name]
            elif "." in str(name):
                one = _find(name, by_key)
            else:
                raise ValueError(f"unknown setting {name!r}; known: {', '.join(by_flag)}")
            accepted = one.accept(value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        yield one, accepted
