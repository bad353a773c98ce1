"""Rules that several components share; each names the component, the rule and what arrived."""

from __future__ import annotations

import importlib.util


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def require_heads(name: str, embed_dim: int, heads: int) -> None:
    require(
        heads > 0 and embed_dim > 0 and embed_dim % heads == 0,
        f"{name}: embed_dim must be a multiple of attention_heads, got {embed_dim} and {heads}",
    )


def require_layers(name: str, layers: int, least: int = 1) -> None:
    require(layers >= least, f"{name}: layers must be at least {least}, got {layers}")


def require_window(name: str, field: str, value: int | None) -> None:
    require(value is None or value > 0, f"{name}: {field} must be positive or null, got {value}")


def require_extra(extra: str, *modules: str) -> None:
    """
    Raises:
        ValueError: one of ``modules`` is not installed; names the extra that has it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"{module} is not installed; pip install 'echostream[{extra}]'")
