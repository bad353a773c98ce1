"""Trained systems that ship with the package; each folder's ``README.md`` is a model card."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

ECHO_MINI = Path(__file__).parent / "echo_mini"
VOICE = Path(__file__).parent / "voice"  # English; docs/reference/voice.md
EVERYDAY = Path(__file__).parent / "everyday"
SYSTEMS = ("echostream", "streamspeech")  # of echo-mini, for controlled comparisons
FOLDERS = {name: ECHO_MINI / name for name in SYSTEMS} | {"everyday": EVERYDAY / "model"}
LANGUAGES = ("es", "en")  # source and target of all of them
_VOICE_NEEDS = ("phonemizer", "num2words")  # extra ``voice``


def model_dir(system: str) -> Path:
    """The shipped model directory of one of :data:`FOLDERS`, Spanish to English.

    Raises:
        ValueError: no such system.
    """
    if system not in FOLDERS:
        raise ValueError(f"shipped systems are {', '.join(FOLDERS)}, got {system!r}")
    return FOLDERS[system]


def default_systems() -> list[str]:
    """What runs where no model is named, the first choice first.

    ``everyday`` speaks with a voice that needs espeak-ng and the extra ``voice``: where they are
    missing, echo-mini's two systems are left.
    """
    speaks = shutil.which("espeak-ng") and all(map(importlib.util.find_spec, _VOICE_NEEDS))
    return ["everyday", *SYSTEMS] if speaks else list(SYSTEMS)


def default_model_dir() -> Path:
    """Model directory of the first choice."""
    return model_dir(default_systems()[0])
