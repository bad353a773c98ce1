"""What SimulEval costs around a step."""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

import numpy as np
from simuleval.data.segments import SpeechSegment

from echostream.agents.echostream_s2st import EchoStreamS2STAgent
from echostream.bench.systems import RATE
from echostream.translator.stages import Clock
from echostream.translator.stream import StreamPipeline


class _Watched:
    """A pipeline that adds up the time spent in it."""

    def __init__(self, pipeline: StreamPipeline, clock: Clock) -> None:
        self.pipeline, self.clock, self.seconds = pipeline, clock, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def step_states(self, *args: Any, **options: Any) -> Iterator[Any]:
        results = self.pipeline.step_states(*args, **options)
        while True:
            start = self.clock()
            try:
                result = next(results)
            except StopIteration:
                return
            finally:
                self.seconds += self.clock() - start
            yield result


def time_glue(
    model_dir: str,
    samples: np.ndarray,
    *,
    chunk_ms: int,
    threads: int,
    clock: Clock = time.perf_counter,
) -> float:
    """What SimulEval's agent takes of a chunk beside the pipeline: segments, states, lists of
    floats. Milliseconds, median over a clip's chunks.

    Args:
        samples: (S,) of 16 kHz.
        threads: of the model.
        clock: what is timed with.
    """
    parser = ArgumentParser()
    EchoStreamS2STAgent.add_args(parser)
    options = ["--model-dir", model_dir, "--chunk-ms", str(chunk_ms), "--threads", str(threads)]
    agent = EchoStreamS2STAgent(parser.parse_args(options))
    agent.pipeline = watched = _Watched(agent.pipeline, clock)
    states, spent = agent.build_states(), []
    for piece in np.array_split(samples, len(samples) * 1000 // (RATE * chunk_ms)):
        segment = SpeechSegment(content=piece.tolist(), sample_rate=RATE)
        watched.seconds, start = 0.0, clock()
        agent.pushpop(segment, states)
        spent.append(1000 * (clock() - start - watched.seconds))
    return statistics.median(spent)
