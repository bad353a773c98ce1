"""Lists of layers that say what their layers are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

from torch import nn

LayerT = TypeVar("LayerT", bound=nn.Module)


def module_list(layers: Iterable[LayerT]) -> Sequence[LayerT]:
    """An ``nn.ModuleList``, read as a sequence of layers of one kind: torch's type says of its
    items that they are modules, and no more."""
    return cast("Sequence[LayerT]", nn.ModuleList(layers))
