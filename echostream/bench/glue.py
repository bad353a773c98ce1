"""What SimulEval costs around a step."""

from __future__ import annotations

import statistics
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

import numpy as np
from simuleval.data.segments import SpeechSegment

from echostream.agents.echostream_s2st import EchoStreamS2STAgent
from echostream.bench.systems import RATE
from echostream.translator.stream import StreamPipeline, stage_clock


class _Watched:
    """A pipeline that adds up the time spent in it."""

    def __init__(self, pipeline: StreamPipeline) -> None:
        self.pipeline, self.seconds = pipeline, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def iterate(self, *args: Any, **options: Any) -> Iterator[Any]:
        clock, decisions = stage_clock.get(), self.pipeline.iterate(*args, **options)
        while True:
            start = clock()
            try:
                decision = next(decisions)
            except StopIteration:
                return
            finally:
                self.seconds += clock() - start
            yield decision


def time_glue(model_dir: str, samples: np.ndarray, *, chunk_ms: int, threads: int) -> float:
    """What SimulEval's agent takes of a chunk beside the pipeline: segments, states, lists of
    floats. Milliseconds, median over a clip's chunks.

    Args:
        samples: (S,) of 16 kHz.
        threads: of the model.
    """
    parser = ArgumentParser()
    EchoStreamS2STAgent.add_args(parser)
    options = ["--model-dir", model_dir, "--chunk-ms", str(chunk_ms), "--threads", str(threads)]
    agent = EchoStreamS2STAgent(parser.parse_args(options))
    agent.pipeline = watched = _Watched(agent.pipeline)
    clock, states, spent = stage_clock.get(), agent.build_states(), []
    for piece in np.array_split(samples, len(samples) * 1000 // (RATE * chunk_ms)):
        segment = SpeechSegment(content=piece.tolist(), sample_rate=RATE)
        watched.seconds, start = 0.0, clock()
        agent.pushpop(segment, states)
        spent.append(1000 * (clock() - start - watched.seconds))
    return statistics.median(spent)
