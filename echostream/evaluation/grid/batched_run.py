"""SimulEval's loop over a test set, several utterances at a time.

Every utterance has its own states and reads its own segments in their order, so what is written,
when in the source, and the log of it are what SimulEval's own loop leaves. Time is not: an
utterance waits for its neighbours, and what was computed together belongs to nobody. So the log
holds no ``elapsed`` (as stock SimulEval's of speech does not), and computation-aware figures cannot
be had from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from simuleval.data.segments import Segment
from simuleval.evaluator.evaluator import SentenceLevelEvaluator


class BatchedAgent(Protocol):
    """An agent that can serve several streams in one call."""

    def build_states(self) -> Any: ...

    def pushpop_batch(self, segments: list[Segment], states: list[Any]) -> list[Segment]: ...


@dataclass
class _Utterance:
    """One that is being translated: SimulEval's account of it, and the agent's states."""

    instance: Any
    states: Any


def use_batches(size: int) -> None:
    """Let SimulEval's evaluator take ``size`` utterances at a time."""

    def run(self: SentenceLevelEvaluator, system: BatchedAgent) -> None:
        evaluate_batched(self, system, size)

    SentenceLevelEvaluator.__call__ = run


def evaluate_batched(evaluator: SentenceLevelEvaluator, system: BatchedAgent, size: int) -> None:
    """Run an evaluator's utterances, at most ``size`` of them under way, and score them.

    Raises:
        ValueError: the agent serves one stream at a time, computation-aware scores were asked
            for, or there is no output folder.
    """
    if not hasattr(system, "pushpop_batch"):
        raise ValueError(
            f"a batch of {size} utterances needs an agent with pushpop_batch; "
            f"{type(system).__name__} takes one at a time"
        )
    if evaluator.args.computation_aware:
        raise ValueError(
            "computation-aware figures need utterances one at a time, got a batch of "
            f"{size} and --computation-aware"
        )
    if evaluator.output is None:
        raise ValueError(f"a batch of {size} utterances needs an output folder")
    with (evaluator.output / "instances.log").open("a", buffering=1, encoding="utf-8") as log:
        for line in _lines(evaluator, system, size):
            log.write(line)
    evaluator.build_instances_from_log()
    if not evaluator.no_scoring:
        evaluator.dump_results()
        evaluator.dump_metrics()


def _lines(evaluator: SentenceLevelEvaluator, system: BatchedAgent, size: int) -> Iterator[str]:
    """Log lines in the order of the test set: a run that is continued goes on behind the last."""
    waiting = iter(evaluator.iterator)
    live: list[_Utterance] = []
    order: list[int] = []
    finished: dict[int, str] = {}
    exhausted = False
    while live or not exhausted:
        while len(live) < size and not exhausted:
            instance = next(waiting, None)
            exhausted = instance is None
            if instance is not None:
                order.append(instance.index)
                live.append(_Utterance(instance, system.build_states()))
        segments = [u.instance.send_source(evaluator.source_segment_size) for u in live]
        outputs = system.pushpop_batch(segments, [u.states for u in live]) if live else []
        for utterance, output in zip(list(live), outputs, strict=True):
            instance = utterance.instance
            instance.receive_prediction(output)
            if evaluator.is_finished(instance):
                instance.elapsed = []
                finished[instance.index] = json.dumps(instance.summarize()) + "\n"
                live.remove(utterance)
            elif instance.finish_prediction:
                utterance.states = system.build_states()
        while order and order[0] in finished:
            yield finished.pop(order.pop(0))
