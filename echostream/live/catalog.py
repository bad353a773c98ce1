"""The models that a server offers, each loaded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from echostream.checkpoint import System, load_model_dir
from echostream.config import Task
from echostream.hub.names import is_model_name, name_of
from echostream.live.ends import for_streams, gate_for, open_pipeline
from echostream.live.messages import ProtocolError
from echostream.live.speech_gate import SpeechGate
from echostream.streamspeech.recompute import RecomputePipeline
from echostream.translator.pipeline import Pipeline

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
        title: for people.
        source_language, target_language: of the model, if known.
        gate: keeps what is no speech from it; None: it gets everything.
    """

    name: str
    system: System
    recompute: bool
    title: str
    source_language: str | None
    target_language: str | None
    gate: SpeechGate | None = None

    @property
    def streamspeech(self) -> bool:
        """Whether it has StreamSpeech's encoder, made for single utterances."""
        return self.system.model.encoder.utterances_only

    @property
    def output_rate(self) -> int:
        voice, vocoder = self.system.voice(), self.system.config.vocoder
        if voice is not None:
            return voice.sample_rate
        return vocoder.sampling_rate if vocoder else self.system.config.frontend.sample_rate

    @property
    def tasks(self) -> tuple[Task, ...]:
        can: tuple[Task, ...] = (
            ("asr", "s2tt", "s2st") if self.system.config.speaks else ("asr", "s2tt")
        )
        made_for = self.system.config.card.tasks
        return tuple(task for task in can if task in made_for) or can

    @property
    def limit_s(self) -> float | None:
        """Longest source of a session; None: no limit of the model's own."""
        return RECOMPUTE_LIMIT_S if self.recompute else None

    def describe(self) -> dict[str, object]:
        """For ``GET /v1/models``."""
        return {
            "name": self.name,
            "title": self.title,
            "licence": self.system.config.card.licence,
            "recommended_chunk_ms": self.system.config.card.chunk_ms,
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
        cls,
        folders: Sequence[Path],
        *,
        load: Callable[[Path], System] = load_model_dir,
        given: bool = False,
        vad: str = "off",
    ) -> Catalog:
        """Load models; each is called by its name, or like its folder, and those with
        StreamSpeech's encoder are offered a second time, recomputing.

        Args:
            load: reads one of them.
            given, vad: see :mod:`echostream.live.ends`.

        Raises:
            FileNotFoundError, ValueError: a folder is missing or damaged, or two have one name.
        """
        models = []
        for folder in folders:
            loaded = load(folder)
            model = served(folder, loaded)
            # As published, a stream is one sentence, and all of it is read.
            more = [recomputing(model)] if model.streamspeech else []
            system, gate = for_streams(loaded, given=given), gate_for(loaded, vad)
            models += [replace(model, system=system, gate=gate), *more]
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
        if model.recompute:
            return RecomputePipeline(model.system, chunk_ms=chunk_ms, task=task)
        return open_pipeline(model.system, chunk_ms=chunk_ms, task=task)


def served(folder: Path, system: System) -> ServedModel:
    """A loaded folder, or a model given by its name, as a catalogue entry."""
    named = is_model_name(str(folder)) and not folder.is_dir()
    name = str(folder) if named else name_of(folder)
    card = system.config.card
    return ServedModel(
        name=name,
        system=system,
        recompute=False,
        title=card.title or name,
        source_language=card.source_language,
        target_language=card.target_language,
    )


def recomputing(model: ServedModel) -> ServedModel:
    """The same model, run as StreamSpeech was published."""
    return replace(
        model,
        name=f"{model.name}{RECOMPUTE}",
        title=f"{model.title}, recomputing",
        recompute=True,
    )
