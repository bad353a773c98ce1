"""One chunk of several streams at once: they listen together, then each writes what it has to.

A stream whose samples complete exactly one chunk listens with all others whose chunk brings as many
features; streams that end, that bring more or less than a chunk, or whose encoder starts anew with
every sentence go on alone. Results are those of :meth:`Pipeline.step`, up to rounding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from echostream.audio import check_same_rate, check_samples
from echostream.models.batched import batch_key, listen, stack_states, unstack_states
from echostream.pipeline import ChunkOutput, Pipeline, PipelineState
from echostream.spine import Stopwatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Push:
    """New samples of one stream, as :meth:`Pipeline.step` takes them."""

    samples: np.ndarray
    sample_rate: int
    state: PipelineState
    final: bool = False


@dataclass(frozen=True)
class _Waiting:
    """A chunk whose features are there, before it is listened to."""

    index: int
    features: torch.Tensor
    watch: Stopwatch
    state: PipelineState


Result = tuple[list[ChunkOutput], PipelineState]


def step_batch(pipeline: Pipeline, pushes: Sequence[Push]) -> list[Result | Exception]:
    """Push audio to several streams.

    Returns:
        For each push, in order, what :meth:`Pipeline.step` returns, or the exception it raises:
        a stream that cannot go on does not keep the others from it. A stage that was computed
        together counts as each stream's equal share of its time.
    """
    results = dict(iterate_batch(pipeline, pushes))
    return [results[index] for index in range(len(pushes))]


@torch.no_grad()
def iterate_batch(
    pipeline: Pipeline, pushes: Sequence[Push]
) -> Iterator[tuple[int, Result | Exception]]:
    """:func:`step_batch`, each push's index and result as soon as they are there, in any order."""
    groups: dict[object, list[_Waiting]] = {}
    alone: list[int] = []
    for index, push in enumerate(pushes):
        try:
            chunk = _single_chunk(pipeline, push)
            if chunk is None:
                alone.append(index)
                continue
            watch = Stopwatch(next(pipeline.system.model.parameters()).device)
            with watch("features"):
                features, state = pipeline.features(*chunk)
        except Exception as problem:  # noqa: BLE001  (handed to the stream's owner)
            yield index, problem
            continue
        key = batch_key(features, state.model)
        waiting = _Waiting(index, features, watch, state)
        groups.setdefault(index if key is None else key, []).append(waiting)
    for group in groups.values():
        yield from _hear_together(pipeline, group)
    for index in alone:
        push = pushes[index]
        try:
            result = pipeline.step(push.samples, push.sample_rate, push.state, final=push.final)
        except Exception as problem:  # noqa: BLE001  (handed to the stream's owner)
            result = problem
        yield index, result


def _single_chunk(pipeline: Pipeline, push: Push) -> tuple[np.ndarray, PipelineState] | None:
    """The samples and the state with which the stream takes in one chunk, or None where the push
    is not exactly that."""
    state = push.state
    if push.final or state.finished or pipeline.restarts:
        return None
    samples = check_samples(push.samples, state.received)
    check_same_rate(state.sample_rate, push.sample_rate)
    chunk = math.ceil(pipeline.chunk_ms * push.sample_rate / 1000)
    if len(state.pending) + len(samples) != chunk:
        return None
    available = np.concatenate([state.pending, samples])
    return available, replace(
        state,
        sample_rate=push.sample_rate,
        received=state.received + len(samples),
        pending=available[:0].copy(),
    )


def _hear_together(
    pipeline: Pipeline, group: list[_Waiting]
) -> Iterator[tuple[int, Result | Exception]]:
    """Listen to streams whose features are equally many; then each for itself."""
    states = [waiting.state for waiting in group]
    listened: list[tuple[torch.Tensor, object] | None] = [None] * len(group)
    if len(group) > 1:
        try:
            states, listened = _listen_together(pipeline, group)
        except Exception:
            # One of them is to blame: each listens alone, and that one fails alone.
            logger.exception("%d streams could not listen together", len(group))
    for waiting, state, part in zip(group, states, listened, strict=True):
        try:
            result = pipeline.follow(waiting.features, part, waiting.watch, state)
        except Exception as problem:  # noqa: BLE001  (handed to the stream's owner)
            result = problem
        yield waiting.index, result


def _listen_together(
    pipeline: Pipeline, group: list[_Waiting]
) -> tuple[list[PipelineState], list[tuple[torch.Tensor, object]]]:
    """The streams' states behind listening, and the encoder frames and tokens of each."""
    shared = Stopwatch(group[0].watch.device)
    with shared("encoder"):
        frames, heard, batched = listen(
            pipeline.system.model,
            torch.cat([waiting.features for waiting in group]),
            stack_states([waiting.state.model for waiting in group]),
            transcribe_only=pipeline.task == "asr",
        )
        inner = unstack_states(batched)
    for waiting in group:
        waiting.watch.ms["encoder"] = shared.ms["encoder"] / len(group)
    states = [replace(w.state, model=m) for w, m in zip(group, inner, strict=True)]
    return states, [(frames[row : row + 1], heard[row]) for row in range(len(group))]
