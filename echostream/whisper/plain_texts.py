"""Texts as the heads learn them."""

from __future__ import annotations

import re
import unicodedata

from num2words import num2words


def plain_source(text: str, language: str = "es") -> str:
    """A transcript in small letters, numbers in words, without punctuation; accents stay."""
    text = re.sub(r"\d+", lambda match: f" {num2words(int(match[0]), lang=language)} ", text)
    kept = "".join(c if unicodedata.category(c)[0] in "LM" else " " for c in text.lower())
    return " ".join(kept.split())
