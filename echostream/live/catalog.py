"""The models that a server offers, each loaded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from echostream import assets
from echostream.checkpoint import System, load_model_dir
from echostream.live.protocol import ProtocolError
from echostream.streamspeech.recompute import RecomputePipeline, StreamSpeechPipeline
from echostream.translator.pipeline import Pipeline, Task

RECOMPUTE = ":recompute"  # behind a model's name: run as StreamSpeech was published
# A recomputing model's cost per chunk grows without bound; longer sources are refused.
RECOMPUTE_LIMIT_S = 120


@dataclass(frozen=True)
class ServedModel:
    """One model of the catalogue.

    Attributes:
        name: what clients call it.
        system: weights and vocabularies.
        recompute: run as StreamSpeech was published, everything again at every chunk; without
            it, StreamSpeech's models hear sentence by sentence and go on from what they know.
        source_language, target_language: of the model, if known.
    """

    name: str
    system: System
    recompute: bool
    source_language: str | None
    target_language: str | None

    @property
    def streamspeech(self) -> bool:
        """Whether it has StreamSpeech's encoder, made for single utterances."""
        return self.system.model.encoder.utterances_only

    @property
    def output_rate(self) -> int:
        vocoder = self.system.config.vocoder
        return vocoder.sampling_rate if vocoder else self.system.config.frontend.sample_rate

    @property
    def tasks(self) -> tuple[Task, ...]:
        return ("asr", "s2tt", "s2st") if self.system.config.vocoder else ("asr", "s2tt")

    @property
    def limit_s(self) -> float | None:
        """Longest source of a session; None: no limit of the model's own."""
        return RECOMPUTE_LIMIT_S if self.recompute else None

    def describe(self) -> dict[str, object]:
        """For ``GET /v1/models``."""
        return {
            "name": self.name,
            "encoder": self.system.config.encoder.kind,
            "recompute": self.recompute,
            "tasks": list(self.tasks),
            "sample_rate": self.output_rate,
            "source_language": self.source_language,
            "target_language": self.target_language,
            "limit_s": self.limit_s,
        }


class Catalog:
    """Models by name; the first is the default.

    Args:
        models: with different names.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        if not models:
            raise ValueError("a server needs at least one model")
        self.models = {model.name: model for model in models}
        if len(self.models) != len(models):
            names = ", ".join(model.name for model in models)
            raise ValueError(f"served models need different names, got {names}")
        self.default = models[0]
        # Pipelines hold no weights of their own; few settings are in use at a time.
        self._pipeline = lru_cache(maxsize=64)(self._build)

    @classmethod
    def load(
        cls, folders: Sequence[Path], *, load: Callable[[Path], System] = load_model_dir
    ) -> Catalog:
        """Load model directories; each is called like its folder, and those with StreamSpeech's
        encoder are offered a second time, recomputing.

        Args:
            load: reads one of them.

        Raises:
            FileNotFoundError, ValueError: a folder is missing or damaged, or two have one name.
        """
        models = []
        for folder in folders:
            model = served(folder, load(folder))
            models += [model, recomputing(model)] if model.streamspeech else [model]
        return cls(models)

    def find(self, name: str | None) -> ServedModel:
        """
        Raises:
            ProtocolError: ``unknown_model``, with the names there are.
        """
        if name is None:
            return self.default
        if name not in self.models:
            raise ProtocolError(
                "unknown_model", f"served models are {', '.join(self.models)}, got {name[:60]!r}"
            )
        return self.models[name]

    def pipeline(self, model: ServedModel, chunk_ms: int, task: Task):
        """The pipeline that all sessions with these settings share.

        Raises:
            ProtocolError: ``unsupported_task``.
        """
        if task not in model.tasks:
            raise ProtocolError(
                "unsupported_task",
                f"model {model.name} does {', '.join(model.tasks)}, not {task}",
            )
        return self._pipeline(model.name, chunk_ms, task)

    def _build(self, name: str, chunk_ms: int, task: Task) -> Pipeline | RecomputePipeline:
        model = self.models[name]
        kind = StreamSpeechPipeline if model.streamspeech else Pipeline
        if model.recompute:
            kind = RecomputePipeline
        return kind(model.system, chunk_ms=chunk_ms, task=task)


def served(folder: Path, system: System) -> ServedModel:
    """A loaded folder as a catalogue entry."""
    source, target = assets.languages(folder) or (None, None)
    return ServedModel(
        name=folder.resolve().name,
        system=system,
        recompute=False,
        source_language=source,
        target_language=target,
    )


def recomputing(model: ServedModel) -> ServedModel:
    """The same model, run as StreamSpeech was published."""
    return replace(model, name=f"{model.name}{RECOMPUTE}", recompute=True)
