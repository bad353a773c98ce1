"""Text that comes in parts, for tests of what speaks it."""

from __future__ import annotations

from typing import Any

import numpy as np


def say_in_parts(speaker: Any, text: str, seed: int | None) -> tuple[list[Any], Any]:
    """What a speaker says of a text letter by letter (no seed) or cut at random, to its end, and
    the state behind it."""
    parts = list(text)
    if seed is not None:
        cuts = np.sort(np.random.default_rng(seed).integers(0, len(text) + 1, 12))
        edges = [0, *cuts.tolist(), len(text)]
        parts = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    state, spoken = speaker.init_state(), []
    for part in parts:
        new, state = speaker.step(part, state)
        spoken += new
    new, state = speaker.step("", state, final=True)
    return spoken + new, state
