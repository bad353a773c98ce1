"""Settings that describe themselves: one dataclass field is value, rule, flag and help text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from echostream.config.checks import require
from echostream.config.loading import MAY_BE_MISSING

ABOUT = "about"  # key in a field's metadata


@dataclass(frozen=True)
class About:
    """What a setting is.

    Attributes:
        help: one line for ``--help``.
        flag: its flag, without the dashes; None: the field's name.
        unit: of the value, such as ``ms``; empty for a plain number.
        at_least, at_most: bounds of the value, themselves allowed; None: none.
    """

    help: str
    flag: str | None = None
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def range(self) -> str:
        """The rule about the value, in words; empty where there is none."""
        if self.at_least is not None and self.at_most is not None:
            return f"between {self.at_least} and {self.at_most}"
        if self.at_least is not None:
            return f">= {self.at_least}"
        return "" if self.at_most is None else f"<= {self.at_most}"

    def allows(self, value: Any) -> bool:
        """Whether a number lies within the bounds. NaN lies within none."""
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )


def setting(
    default: Any,
    help: str,  # as argparse calls it
    *,
    flag: str | None = None,
    unit: str = "",
    at_least: float | None = None,
    at_most: float | None = None,
    may_be_missing: bool = False,
) -> Any:
    """A dataclass field that :mod:`echostream.config.flags` makes a flag of.

    Args:
        may_be_missing: model directories written before the field existed still load.
    """
    about = About(help, flag, unit, at_least, at_most)
    return dataclasses.field(
        default=default, metadata={ABOUT: about, **(MAY_BE_MISSING if may_be_missing else {})}
    )


def check_ranges(config: Any, section: str) -> None:
    """
    Raises:
        ValueError: a value lies beyond the bounds of its :func:`setting`; names the section, the
            field, the rule and the value.
    """
    for field in dataclasses.fields(config):
        about = field.metadata.get(ABOUT)
        value = getattr(config, field.name)
        if about is not None and about.range and value is not None:
            require(
                about.allows(value), f"{section}: {field.name} must be {about.range}, got {value}"
            )
