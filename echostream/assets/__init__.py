"""Trained systems that ship with the package; their model card is ``echo_mini/README.md``."""

from __future__ import annotations

from pathlib import Path

ECHO_MINI = Path(__file__).parent / "echo_mini"
VOICE = Path(__file__).parent / "voice"  # English; docs/reference/voice.md
SYSTEMS = ("echostream", "streamspeech")
LANGUAGES = ("es", "en")  # source and target of all of them


def model_dir(system: str) -> Path:
    """The shipped model directory of one of :data:`SYSTEMS`, Spanish to English.

    Raises:
        ValueError: no such system.
    """
    if system not in SYSTEMS:
        raise ValueError(f"shipped systems are {', '.join(SYSTEMS)}, got {system!r}")
    return ECHO_MINI / system
