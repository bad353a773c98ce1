"""A voice by what settings call it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from echostream import assets
from echostream.voice.folder import Voice

if TYPE_CHECKING:  # its packages are optional
    from echostream.voice.streaming_voice import StreamingVoice

SHIPPED, OWN = "shipped", "own"
OWN_FOLDER = "voice"  # in a model directory


def voice_folder(name: str, model_dir: Path | None) -> Path:
    """Where the voice of ``speech.voice`` lies.

    Raises:
        ValueError: a model's own voice is asked for where there is no model directory.
    """
    if name == SHIPPED:
        return assets.VOICE
    if name != OWN:
        return Path(name)
    if model_dir is None:
        raise ValueError("speech.voice is 'own', but this model was not read from a directory")
    return model_dir / OWN_FOLDER


def open_voice(folder: Path, device: torch.device | str = "cpu") -> StreamingVoice:
    """Load a voice to speak with.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file is damaged, or what reading English text needs is not on this machine.
    """
    voice = Voice.load(folder).to(device)
    try:
        from echostream.voice.phonemes import Phonemizer
        from echostream.voice.streaming_voice import StreamingVoice

        return StreamingVoice(replace(voice, phonemizer=Phonemizer()))
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"the voice cannot speak here ({error}); it needs espeak-ng "
            "(apt-get install espeak-ng) and pip install 'echostream[voice]'"
        ) from error
