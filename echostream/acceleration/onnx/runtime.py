"""An exported system for the same pipeline as ever, computed by onnxruntime; torch is not loaded.

system = load_onnx_dir(folder)
pipeline = onnx_pipeline(system, chunk_ms=320)
session = Session(pipeline)
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from echostream.acceleration.onnx.numpy_filterbank import ArrayFrontend, FilterbankTables
from echostream.acceleration.onnx.onnx_manifest import (
    FRONTEND_FILE,
    SIDES,
    Manifest,
    read_checked,
    read_manifest,
)
from echostream.acceleration.onnx.onnx_model import OnnxModel, Run
from echostream.acceleration.onnx.states import ArrayListening, ArrayMT, ArraySpeech
from echostream.config import EchoStreamConfig, Settings, SpeechConfig, settings_from_args
from echostream.models.ctc_output import CTCOutput
from echostream.models.decoders.hypothesis import Hypothesis
from echostream.text import Vocabulary
from echostream.threads import suitable_threads
from echostream.translator.pipeline import Pipeline
from echostream.translator.stages import Stages, Stopwatch

if TYPE_CHECKING:
    from echostream.checkpoint import System

FLOAT_BYTES = 4


@dataclass(frozen=True)
class OnnxSystem:
    """What :class:`echostream.checkpoint.System` is to torch."""

    config: EchoStreamConfig
    model: OnnxModel
    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    tables: FilterbankTables
    transcript_vocabulary: None = None  # their text decoders write none

    def frontend(self) -> ArrayFrontend:
        return ArrayFrontend(self.config.frontend, self.tables)

    def voice(self, speech: SpeechConfig | None = None) -> None:
        """Exported systems speak by their own unit decoder alone.

        Raises:
            ValueError: settings ask for a voice.
        """
        name = (self.config.speech if speech is None else speech).voice
        if name is not None:
            raise ValueError(f"the ONNX runtime speaks with units: voice must be none, got {name}")

    def with_settings(self, settings: Settings) -> OnnxSystem:
        """The same weights under other settings."""
        return replace(self, config=replace(self.config, **settings.sections()))


class OnnxStages(Stages):
    """What streams ask for, computed stream by stream."""

    model: OnnxModel

    def _listen(
        self,
        features: Sequence[np.ndarray],
        states: Sequence[ArrayListening],
        final: Sequence[bool],
        watch: Stopwatch,
    ) -> list[tuple[np.ndarray, CTCOutput, ArrayListening]]:
        # One graph holds encoder and heads, so their time is one figure.
        with watch("encoder"):
            rows = zip(features, states, final, strict=True)
            answers = [self.model.listen(*row) for row in rows]
        if not self.transcribe_only:
            return answers
        return [
            (frames, replace(output, st_tokens=(), st_frames=()), state)
            for frames, output, state in answers
        ]

    def _translate(
        self,
        states: Sequence[ArrayMT],
        limits: Sequence[int],
        final: Sequence[bool],
        tails: Sequence[None],
        stands: Sequence[None],
        guesses: Sequence[Sequence[int]],
        least: Sequence[int],
        watch: Stopwatch,
    ) -> list[Hypothesis]:
        with watch("mt"):
            rows = zip(states, limits, final, strict=True)
            return [self.model.translate(*row) for row in rows]

    def _speak(
        self, hidden: Sequence[np.ndarray], states: Sequence[ArraySpeech], watch: Stopwatch
    ) -> list[tuple[list[int], ArraySpeech]]:
        with watch("units"):
            return [self.model.speak(*row) for row in zip(hidden, states, strict=True)]

    def _vocode(
        self,
        units: Sequence[list[int]],
        states: Sequence[ArraySpeech],
        speeds: Sequence[float],
        watch: Stopwatch,
    ) -> list[tuple[np.ndarray, ArraySpeech]]:
        with watch("vocoder"):
            return [
                self.model.vocode(*row, dur_prediction=self.dur_prediction)
                for row in zip(units, states, speeds, strict=True)
            ]


class OnnxPipeline(Pipeline):
    """A pipeline over an exported system."""

    def build_stages(self, **options: Any) -> OnnxStages:
        return OnnxStages(**options)


def onnx_pipeline(system: OnnxSystem, **options: Any) -> OnnxPipeline:
    """A pipeline over an exported system.

    Args:
        options: of :class:`~echostream.translator.pipeline.Pipeline`.

    Raises:
        ValueError: a beam, or a policy that judges single subwords: exported decoders write
            greedily and hand out no attention.
    """
    if options.get("beam", 1) != 1:
        raise ValueError(f"the ONNX runtime writes greedily: beam must be 1, got {options['beam']}")
    # It has what a pipeline asks of a system.
    pipeline = OnnxPipeline(cast("System", system), **options)
    if pipeline.policy.evidence:
        asked = ", ".join(sorted(pipeline.policy.evidence))
        name = pipeline.policy_config.name
        raise ValueError(
            f"the ONNX runtime takes policies that see counts alone; {name!r} asks for {asked}"
        )
    return pipeline


def load_from_args(args: argparse.Namespace) -> OnnxSystem:
    """An exported model, as the flags of ``echostream translate`` say.

    Raises:
        ValueError: flags that are torch's alone.
    """
    for name, default in (("device", "cpu"), ("dtype", "fp32"), ("compile", False)):
        value = getattr(args, name)
        if value != default:
            raise ValueError(
                f"--runtime onnx computes in fp32 on the CPU; leave out --{name}, got {value}"
            )
    system = load_onnx_dir(args.model_dir, threads=args.threads)
    return system.with_settings(settings_from_args(args, system.config))


def load_onnx_dir(folder: Path, *, threads: int | None = None) -> OnnxSystem:
    """Load what ``echostream export-onnx`` wrote.

    Args:
        threads: to compute with; None: those that suit the model (see
            :mod:`echostream.threads`).

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file that is damaged, does not fit the manifest, or cannot be run; or
            onnxruntime is not installed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    tables = FilterbankTables.from_npz(
        read_checked(folder, FRONTEND_FILE, manifest), str(folder / FRONTEND_FILE)
    )
    source, target = (_vocabulary(folder, side, manifest) for side in SIDES)
    if threads is None:
        files = [folder / graph.file for graph in manifest.graphs.values()]
        weights = sum(file.stat().st_size for file in files if file.is_file()) // FLOAT_BYTES
        threads = suitable_threads(weights)
    model = OnnxModel(manifest, _runner(folder, manifest, threads), threads)
    return OnnxSystem(manifest.config, model, source, target, tables)


def _vocabulary(folder: Path, side: str, manifest: Manifest) -> Vocabulary:
    names = [name for name in (f"{side}.dict.txt", f"{side}.spm.model") if name in manifest.sha256]
    for name in names:
        read_checked(folder, name, manifest)
    vocabulary = Vocabulary.load(folder / f"{side}.dict.txt", folder / f"{side}.spm.model")
    expected = manifest.vocabularies[side]
    if len(vocabulary) != expected:
        raise ValueError(
            f"{folder}: the {side} vocabulary has {len(vocabulary)} entries, the manifest says "
            f"{expected}"
        )
    return vocabulary


def _runner(folder: Path, manifest: Manifest, threads: int) -> Run:
    """Sessions of all graphs behind one function."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise ValueError("onnxruntime is not installed; pip install 'echostream[onnx]'")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Threads that wait do not spin: the cores may be somebody else's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Lengths vary from step to step: memory that is kept for each of them only grows.
    options.enable_mem_pattern = False
    sessions = {}
    for name, graph in manifest.graphs.items():
        content = read_checked(folder, graph.file, manifest)
        try:
            sessions[name] = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as problem:  # its own exceptions have no common public base
            raise ValueError(f"{folder / graph.file}: cannot be run: {problem}") from problem

    def run(name: str, inputs: dict[str, Any]) -> Sequence[np.ndarray]:
        return sessions[name].run(None, inputs)

    return run
