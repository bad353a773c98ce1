"""What sentences of a corpus are compared, drawn and told apart by."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

SPLITS = ("train", "dev", "test")

ItemT = TypeVar("ItemT")


def normalize(text: str) -> str:
    """Lower case without punctuation, as the text side of training and the references are."""
    return re.sub(r"[^\w\s]", "", text.lower())


class Chooser:
    """Seeded choice, the same on any platform: ``random()`` alone, whose sequence Python
    guarantees."""

    def __init__(self, *seed: object) -> None:
        self._random = random.Random(":".join(map(str, seed)))

    def fraction(self) -> float:
        return self._random.random()

    def choice(self, items: Sequence[ItemT]) -> ItemT:
        return items[int(self._random.random() * len(items))]

    def shuffled(self, items: Iterable[ItemT]) -> list[ItemT]:
        keyed = [(self._random.random(), index, item) for index, item in enumerate(items)]
        return [item for _, _, item in sorted(keyed, key=lambda triple: triple[:2])]


def digest(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text."""
    return hashlib.sha256("".join(line + "\n" for line in lines).encode("utf-8")).hexdigest()
