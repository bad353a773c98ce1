"""Load a model by name, translate files and streams: what most programs need.

Who needs state in their hands (rollback, many streams in one step, stages) takes
:mod:`echostream.translator.pipeline` and :mod:`echostream.session` instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from echostream.assets import default_model_dir
from echostream.checkpoint import System, load_model_dir
from echostream.config import Task
from echostream.hub.names import find_model
from echostream.hub.table import KNOWN
from echostream.live.ends import for_streams, open_pipeline
from echostream.samples import read_audio
from echostream.session import Session
from echostream.threads import use_threads
from echostream.translator.stream import Decision


def available_models() -> dict[str, bool]:
    """Names that :func:`load` knows, and whether each one is on this machine."""
    return {name: find_model(name) is not None for name in KNOWN}


def load(
    model: str | Path | None = None,
    *,
    device: str = "cpu",
    dtype: str = "fp32",
    task: Task = "s2st",
    chunk_ms: int | None = None,
    beam: int = 1,
    threads: int | None = None,
    voice: str | Path | None = None,
) -> Translator:
    """Load a model.

    Args:
        model: a name (:func:`available_models`, ``hf:owner/name``) or a model directory; None:
            ``everyday``, or ``echo-mini`` where its voice cannot speak, which takes the extra
            ``voice`` and espeak-ng.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: number format, as ``--dtype`` takes it.
        task: ``s2st`` speaks, ``s2tt`` stops behind the translated text, ``asr`` behind the
            transcript.
        chunk_ms: source per decision; None: what the model recommends, else 320.
        beam: beam width of the text decoder.
        threads: of the model, on a CPU; None: as many as suit its size.
        voice: ``shipped`` or a folder (docs/howto/speak.md), to speak English instead of the
            model's own way of speaking.

    Raises:
        FileNotFoundError: no such model here; says the nearest names, or how to fetch it.
        ValueError: the directory holds no usable model, or it cannot do this task.
    """
    model = default_model_dir() if model is None else model
    system = load_model_dir(model, device=device, dtype=dtype)
    use_threads(system.model, threads)
    if voice is not None:
        speech = replace(system.config.speech, voice=str(voice))
        system = replace(system, config=replace(system.config, speech=speech))
    return Translator(system, task=task, chunk_ms=chunk_ms, beam=beam)


@dataclass(frozen=True)
class Translation:
    """What was said of a source.

    Attributes:
        transcript: the source in words.
        text: the translation; empty for recognition alone.
        speech: (T,) float32 samples; empty without speech output.
        sample_rate: of the speech, in Hz.
        sentences: transcript and translation of each sentence, in order.
        decisions: what came when; ``source_ms`` of each says how much source it had read.
    """

    transcript: str
    text: str
    speech: np.ndarray
    sample_rate: int
    sentences: tuple[tuple[str, str], ...]
    decisions: tuple[Decision, ...]


class Translator:
    """A loaded model; any number of streams can share it.

    Args:
        system: model, vocabularies and settings.
        task, chunk_ms, beam: as :func:`load` takes them.
    """

    def __init__(
        self,
        system: System,
        *,
        task: Task = "s2st",
        chunk_ms: int | None = None,
        beam: int = 1,
    ) -> None:
        card = system.config.card
        chunk_ms = card.chunk_or(chunk_ms)
        self.source_language, self.target_language = card.source_language, card.target_language
        self.pipeline = open_pipeline(for_streams(system), chunk_ms=chunk_ms, task=task, beam=beam)

    @property
    def sample_rate(self) -> int:
        """Of the speech, in Hz."""
        return self.pipeline.output_rate

    def translate(
        self, source: str | Path | np.ndarray, sample_rate: int | None = None
    ) -> Translation:
        """Translate a sound file, or samples, as a stream would.

        Args:
            source: a file, or samples (T,) or (T, channels), float or signed integer.
            sample_rate: of samples, in Hz.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a readable sound file, or samples without a usable rate.
        """
        if isinstance(source, (str, Path)):
            samples, rate = read_audio(Path(source))
        elif sample_rate is None:
            raise ValueError("samples need their sample_rate, got None")
        else:
            samples, rate = source, sample_rate
        stream = self.stream()
        decisions = [*stream.push(samples, rate), *stream.finish()]
        return stream.translation(decisions)

    def stream(self) -> LiveTranslation:
        """Begin a stream."""
        return LiveTranslation(Session(self.pipeline))


class LiveTranslation:
    """A stream under way.

    Args:
        session: a fresh one.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._rate: int | None = None

    def push(self, samples: object, sample_rate: int) -> list[Decision]:
        """Samples of any number, (T,) or (T, channels), float or signed integer, to the decisions
        that they complete: new words and new speech of each."""
        self._rate = sample_rate
        return self.session.push(samples, sample_rate)

    def finish(self) -> list[Decision]:
        """The source has ended: what is left of the translation."""
        rate = self._rate or self.session.model_rate
        return self.session.push(np.zeros(0, dtype=np.float32), rate, final=True)

    def translation(self, decisions: Sequence[Decision]) -> Translation:
        """Everything that was said so far, as one translation.

        Args:
            decisions: all that :meth:`push` and :meth:`finish` returned.
        """
        session = self.session
        waves = [decision.waveform for decision in decisions]
        sentences = tuple(
            (" ".join(one.transcript), " ".join(one.translation)) for one in session.sentences
        )
        return Translation(
            transcript=" ".join(session.transcript),
            text=" ".join(session.translation),
            speech=np.concatenate(waves) if waves else np.zeros(0, dtype=np.float32),
            sample_rate=session.pipeline.output_rate,
            sentences=tuple(pair for pair in sentences if any(pair)),
            decisions=tuple(decisions),
        )
