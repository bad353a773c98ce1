"""What recognisers hear, word by word."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecognizedWord:
    """A recognised word and when it is said, in ms from the first sample."""

    text: str
    start_ms: float
    end_ms: float
