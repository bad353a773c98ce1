"""What a model directory says of itself to people."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from echostream.config.checks import require
from echostream.config.loading import MAY_BE_MISSING

_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


DEFAULT_CHUNK_MS = 320

# Where a translation stops: behind the transcript, the translated text, or its speech.
Task = Literal["asr", "s2tt", "s2st"]


@dataclass(frozen=True)
class CardConfig:
    """Title, languages, licence, tasks and a recommended setting; nothing computes with them.

    Attributes:
        title: for lists; empty: the name says enough.
        source_language, target_language: BCP 47 tags, if known.
        licence: in one line, if known.
        tasks: what the model was made for; empty: whatever its parts can do.
        chunk_ms: recommended source per decision; None: no recommendation.
    """

    title: str = field(default="", metadata=MAY_BE_MISSING)
    source_language: str | None = field(default=None, metadata=MAY_BE_MISSING)
    target_language: str | None = field(default=None, metadata=MAY_BE_MISSING)
    licence: str | None = field(default=None, metadata=MAY_BE_MISSING)
    tasks: tuple[Task, ...] = field(default=(), metadata=MAY_BE_MISSING)
    chunk_ms: int | None = field(default=None, metadata=MAY_BE_MISSING)

    def __post_init__(self) -> None:
        for name in ("source_language", "target_language"):
            value = getattr(self, name)
            require(
                value is None or bool(_LANGUAGE.fullmatch(value)),
                f"card: {name} must be a BCP 47 tag such as 'fr', got {value!r}",
            )
        require(
            "\n" not in f"{self.title}{self.licence or ''}",
            "card: title and licence must be one line each",
        )
        require(
            self.chunk_ms is None or self.chunk_ms > 0,
            f"card: chunk_ms must be positive or null, got {self.chunk_ms}",
        )

    def chunk_or(self, chosen_ms: int | None) -> int:
        """Source per decision: what was chosen, else what is recommended, else 320 ms."""
        return (self.chunk_ms or DEFAULT_CHUNK_MS) if chosen_ms is None else chosen_ms
