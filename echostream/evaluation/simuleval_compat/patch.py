"""What a repair is, and how one tells whether the installed SimulEval needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

MARK = "echostream_patch"
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True)
class Patch:
    """One repair: ``is_needed`` looks at the installed SimulEval, ``apply`` changes it."""

    apply: Callable[[], None]
    is_needed: Callable[[], bool]

    @property
    def name(self) -> str:
        return self.apply.__name__.removeprefix("patch_")


def unmarked(owner: Any, attribute: str) -> Callable[[], bool]:
    """For defects that cannot be provoked without running a system: needed until patched."""

    def is_needed() -> bool:
        target = owner.__dict__.get(attribute)
        target = getattr(target, "fget", None) or target
        return not getattr(target, MARK, False)

    return is_needed


def mark(function: FunctionT) -> FunctionT:
    setattr(function, MARK, True)
    return function
