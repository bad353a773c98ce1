"""EchoStream: simultaneous speech-to-speech translation with a streaming Emformer encoder.

translator = echostream.load("echo-mini")
print(translator.translate("in.wav").text)
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Loaded when first asked for: a version or a command line's help needs no model.
_PUBLIC = ("LiveTranslation", "Translation", "Translator", "available_models", "load")
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module("echostream.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
