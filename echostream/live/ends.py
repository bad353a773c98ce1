"""Streams through models that know no ends of sentences.

Converted StreamSpeech checkpoints were trained on utterances, and take a stream for one sentence.
SimulEval's agents run them so, as published. Where people speak on, a voice activity detector cuts
the source into utterances (``listen``, ``translate``), or a pause without a token ends a sentence
and the detector keeps what is no speech from the model (``serve``).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from echostream.config import Task
from echostream.live.speech_gate import SpeechGate, open_gate
from echostream.live.utterances import UtteranceCutter
from echostream.translator.pipeline import Pipeline

if TYPE_CHECKING:
    from echostream.acceleration.onnx.runtime import OnnxSystem
    from echostream.checkpoint import System

SystemT = TypeVar("SystemT", bound="System | OnnxSystem")


def ends_are_given(args: argparse.Namespace) -> bool:
    """Whether the command line says where sentences end."""
    return "endpoint.method" in vars(args)


def knows_ends(system: System | OnnxSystem) -> bool:
    """Whether the model says where sentences end."""
    return system.config.endpoint.method == "learned"


def for_streams(system: SystemT, *, given: bool = False) -> SystemT:
    """The same weights, set to hear one sentence after the other: a pause ends one if nothing else
    does.

    Args:
        given: the system is set as somebody wants it, and stays so.
    """
    endpoint = system.config.endpoint
    if given or endpoint.method != "off":
        return system
    endpoint = replace(endpoint, method="pause")
    return replace(system, config=replace(system.config, endpoint=endpoint))


def gate_for(system: System | OnnxSystem, choice: str) -> SpeechGate | None:
    """The gate before a model; see ``--vad``."""
    if choice == "auto" and knows_ends(system):
        return None
    return open_gate(choice)


def cutter_for(system: System | OnnxSystem, choice: str) -> UtteranceCutter | None:
    """What cuts a stream into utterances for a model; None where the model says ends itself, or no
    detector is asked for or installed."""
    gate = None if knows_ends(system) else open_gate(choice)
    return None if gate is None else UtteranceCutter(gate.detector)


def open_pipeline(system: System, *, chunk_ms: int, task: Task = "s2st", beam: int = 1) -> Pipeline:
    """The incremental pipeline of a model; StreamSpeech's models hear what its agents hear."""
    kind = Pipeline
    if system.model.encoder.utterances_only:
        from echostream.streamspeech.recompute import StreamSpeechPipeline

        kind = StreamSpeechPipeline
    return kind(system, chunk_ms=chunk_ms, task=task, beam=beam)
