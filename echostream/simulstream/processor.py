"""EchoStream behind simulstream's speech-processor interface: audio in, translated words out.

A YAML file for simulstream's server and inference::

    type: echostream.simulstream.EchoStreamProcessor
    model_dir: PATH            # optional; the shipped system if left out
    speech_chunk_size: 0.32    # seconds of source per decision
    task: s2tt                 # or asr
    stride_n: 2                # or any other setting: the agents' flags, with underscores
    threads: 1                 # of the model; left out: what suits it
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from simulstream.server.speech_processors import SAMPLE_RATE, SpeechProcessor
from simulstream.server.speech_processors.incremental_output import IncrementalOutput

from echostream import assets
from echostream.checkpoint import System, load_model_dir
from echostream.config import Settings, Task, overlay, read_settings, settings_of
from echostream.session import Session
from echostream.threads import use_threads
from echostream.translator.pipeline import Pipeline

KEYS = ("type", "model_dir", "speech_chunk_size", "task", "device", "beam", "threads")
TASKS = ("s2tt", "asr")


class EchoStreamProcessor(SpeechProcessor):
    """One stream at a time on a pipeline; tokens are whole words, and no word is ever taken back.

    Args:
        config: the YAML file's keys, see the module's words.

    Raises:
        ValueError: an unknown key, task or chunk size.
    """

    _loaded: dict[tuple[str, str], System] = {}  # one copy of the weights for all processors

    def __init__(self, config: SimpleNamespace) -> None:
        check_config(config)
        super().__init__(config)
        self.task: Task = getattr(config, "task", "s2tt")
        system = self._system(config)
        settings = overlay(Settings.of(system.config), given(config))
        self.pipeline = Pipeline(
            system,
            chunk_ms=round(1000 * config.speech_chunk_size),
            task=self.task,
            beam=getattr(config, "beam", 1),
            **settings.sections(),
        )
        self.clear()

    @classmethod
    def _system(cls, config: SimpleNamespace) -> System:
        folder = getattr(config, "model_dir", None) or assets.model_dir("echostream")
        key = (str(Path(folder).resolve()), getattr(config, "device", "cpu"))
        if key not in cls._loaded:
            cls._loaded[key] = load_model_dir(Path(folder), device=key[1])
            use_threads(cls._loaded[key].model, getattr(config, "threads", None))
        return cls._loaded[key]

    @classmethod
    def load_model(cls, config: SimpleNamespace) -> None:
        """Load the weights, once for all processors."""
        check_config(config)
        cls._system(config)

    def process_chunk(self, waveform: np.ndarray) -> IncrementalOutput:
        """(T,) float32 samples at 16 kHz to the words that they complete."""
        return self._push(waveform, final=False)

    def end_of_stream(self) -> IncrementalOutput:
        """The words that were held back."""
        return self._push(np.zeros(0, dtype=np.float32), final=True)

    def _push(self, waveform: np.ndarray, *, final: bool) -> IncrementalOutput:
        outputs = self.session.push(waveform, SAMPLE_RATE, final=final)
        said = "transcript" if self.task == "asr" else "translation"
        words = [word for output in outputs for word in getattr(output, said)]
        return IncrementalOutput(words, self.tokens_to_string(words), [], "")

    def set_source_language(self, language: str) -> None:
        """A model has one source language."""

    def set_target_language(self, language: str) -> None:
        """A model has one target language."""

    def tokens_to_string(self, tokens: list[str]) -> str:
        # Strings are joined as they are, so every word brings the space before it along.
        return "".join(f" {token}" for token in tokens)

    def clear(self) -> None:
        """Begin a new stream."""
        self.session = Session(self.pipeline, keep_tokens=False)


def given(config: SimpleNamespace) -> dict[str, Any]:
    """Settings among the keys of a YAML file, by ``policy.stride_n``.

    Raises:
        ValueError: an unknown key, or a value that is not allowed.
    """
    values = {key: value for key, value in vars(config).items() if key not in KEYS}
    settings = settings_of()
    unknown = sorted(set(values) - {name for s in settings for name in (s.key, s.yaml_key)})
    if unknown:
        known = ", ".join((*KEYS, *(s.yaml_key for s in settings)))
        raise ValueError(f"speech processor: unknown key {unknown[0]!r}; known: {known}")
    return read_settings(values, "speech processor")


def check_config(config: SimpleNamespace) -> None:
    """
    Raises:
        ValueError: names the key, the rule and what arrived.
    """
    given(config)
    threads = getattr(config, "threads", None)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"speech processor: threads must be an integer >= 1, got {threads!r}")
    size = getattr(config, "speech_chunk_size", None)
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0.01 <= size <= 60:
        raise ValueError(
            f"speech processor: speech_chunk_size must be 0.01 to 60 seconds, got {size!r}"
        )
    task = getattr(config, "task", "s2tt")
    if task not in TASKS:
        raise ValueError(f"speech processor: task must be s2tt or asr, got {task!r}")
