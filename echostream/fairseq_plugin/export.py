"""A training checkpoint to a model directory; what ``echostream convert`` calls."""

from echostream.streamspeech.trained import (
    STATE_KEY,
    export_checkpoint,
    is_training_checkpoint,
    read_training_checkpoint,
    with_vocoder,
)

__all__ = [
    "STATE_KEY",
    "export_checkpoint",
    "is_training_checkpoint",
    "read_training_checkpoint",
    "with_vocoder",
]
