"""Who computes next: many streams, one worker thread.

A stream is ready when a whole chunk (or its end) has arrived. Ready streams run in the order of
their due times, so none starves: a due time is when the chunk was complete, but a stream that sends
faster than live is due at most ``PACE`` times as often as its chunks last, so its surplus waits
behind everybody else's present. Streams of one pipeline that are ready together form a batch.

The event loop never waits here: it appends samples under a lock held for microseconds, and results
come back through callbacks on the worker thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from echostream.live.translator import Chunk, Translator, Update, push_together

logger = logging.getLogger(__name__)

PACE = 2.0


@dataclass(frozen=True)
class Job:
    """One chunk of one stream on its way through the model."""

    stream: Stream
    samples: np.ndarray
    final: bool
    arrived: float


@dataclass(frozen=True)
class StepResult:
    """What a job brought.

    Attributes:
        updates: in order.
        final: the stream has ended.
        lag_ms: from the arrival of the chunk's last sample to now.
        compute_ms: wall time that the chunk took; of what was computed together, its share.
        batch: number of streams in it.
        processed: samples of the stream that went through the model.
        queued: samples that wait behind them.
    """

    updates: list[Update]
    final: bool
    lag_ms: float
    compute_ms: float
    batch: int
    processed: int
    queued: int


class Stream:
    """Samples of one session that wait for the model; the scheduler guards every field.

    Args:
        translator: makes the stream's translator, on the worker thread.
        batch_key: streams with equal keys may be computed together.
        chunk: samples per decision.
        sample_rate: in Hz.
        on_result, on_error: called on the worker thread.
    """

    def __init__(
        self,
        translator: Callable[[], Translator],
        *,
        batch_key: object,
        chunk: int,
        sample_rate: int,
        on_result: Callable[[StepResult], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self.make_translator, self.translator = translator, None
        self.batch_key, self.chunk, self.sample_rate = batch_key, chunk, sample_rate
        self.on_result, self.on_error = on_result, on_error
        self.blocks: deque[tuple[np.ndarray, float]] = deque()
        self.queued = self.processed = 0
        self.due = 0.0
        self.last_arrival = 0.0
        self.ended = self.running = self.held = self.over = False

    @property
    def ready(self) -> bool:
        idle = not (self.running or self.held or self.over)
        return idle and (self.queued >= self.chunk or self.ended)

    def _next_due(self) -> float:
        """When the next chunk was complete, or when a paced sender would have completed it."""
        missing = self.chunk
        arrived = self.last_arrival
        for block, when in self.blocks:
            missing -= len(block)
            if missing <= 0:
                arrived = when
                break
        return max(arrived, self.due)

    def _take(self) -> Job:
        """The next chunk; everything left once the stream has ended and fits into one."""
        final = self.ended and self.queued <= self.chunk
        wanted = self.queued if final else self.chunk
        parts: list[np.ndarray] = []
        arrived = self.last_arrival
        while wanted:
            block, arrived = self.blocks.popleft()
            if len(block) > wanted:
                self.blocks.appendleft((block[wanted:], arrived))
                block = block[:wanted]
            parts.append(block)
            wanted -= len(block)
        samples = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
        self.queued -= len(samples)
        self.processed += len(samples)
        self.running, self.over = True, final
        self.due = self._paced(arrived)
        return Job(self, samples, final, arrived)

    def _paced(self, arrived: float) -> float:
        return max(arrived, self.due) + self.chunk / self.sample_rate / PACE


Outcome = tuple[Job, "list[Update] | Exception"]


def run_together(jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Advance every job's stream by its chunk, all at once where the model can; each job with its
    updates or its exception as soon as they are there. A fault stays with its stream."""
    chunks: list[Chunk] = []
    able: list[Job] = []
    for job in jobs:
        stream = job.stream
        try:
            if stream.translator is None:
                stream.translator = stream.make_translator()
        except Exception as error:  # noqa: BLE001  (handed to the stream's owner)
            yield job, error
            continue
        chunks.append(Chunk(stream.translator, job.samples, stream.sample_rate, job.final))
        able.append(job)
    for index, result in push_together(chunks):
        yield able[index], result


class Scheduler:
    """Runs streams on a worker thread of its own.

    Args:
        run: advances a batch of jobs, all of one ``batch_key``, and yields each with its result.
        max_batch: most streams in a batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Job]], Iterable[Outcome]] = run_together,
        *,
        max_batch: int = 16,
    ) -> None:
        self._run, self._max_batch = run, max_batch
        self._streams: list[Stream] = []
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="translation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Finish the batch under way and stop."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def add(self, stream: Stream) -> None:
        with self._wake:
            self._streams.append(stream)

    def remove(self, stream: Stream) -> None:
        """Forget a stream; nothing is called back from then on."""
        with self._wake:
            stream.over = True
            stream.blocks.clear()
            if stream in self._streams:
                self._streams.remove(stream)

    def feed(self, stream: Stream, samples: np.ndarray) -> int:
        """Queue (T,) samples; returns how many wait now."""
        now = time.monotonic()
        with self._wake:
            if len(samples):
                stream.blocks.append((samples, now))
                stream.queued += len(samples)
                stream.last_arrival = now
                self._wake.notify()
            return stream.queued

    def end(self, stream: Stream) -> None:
        """No more samples will come."""
        with self._wake:
            if not stream.ended:
                stream.ended = True
                stream.last_arrival = time.monotonic()
                self._wake.notify()

    def hold(self, stream: Stream, held: bool) -> None:
        """Pause a stream whose results nobody takes."""
        with self._wake:
            stream.held = held
            self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                jobs = self._gather()
                while not jobs and not self._closing:
                    self._wake.wait()
                    jobs = self._gather()
                if self._closing:
                    return
            self._run_and_deliver(jobs)

    def _run_and_deliver(self, jobs: Sequence[Job]) -> None:
        """Whatever goes wrong ends the streams that were to be advanced, and no other."""
        unanswered = {id(job): job for job in jobs}
        try:
            for job, result in self._run(jobs):
                del unanswered[id(job)]
                self._deliver(job, result, len(jobs))
        except Exception as error:  # noqa: BLE001  (handed to the streams' owners)
            for job in unanswered.values():
                self._deliver(job, error, len(jobs))

    def _gather(self) -> list[Job]:
        """The most overdue stream's chunk, and those of ready streams that can run with it."""
        ready = sorted(
            (
                (stream._next_due(), index)
                for index, stream in enumerate(self._streams)
                if stream.ready
            )
        )
        if not ready:
            return []
        first = self._streams[ready[0][1]]
        mates = [
            stream
            for _, index in ready
            if (stream := self._streams[index]).batch_key == first.batch_key
        ]
        return [stream._take() for stream in mates[: self._max_batch]]

    def _deliver(self, job: Job, result: list[Update] | Exception, batch: int) -> None:
        stream = job.stream
        with self._wake:
            stream.running = False
            if stream not in self._streams:
                return
            if isinstance(result, Exception):
                stream.over = True
            queued = stream.queued
        if isinstance(result, Exception):
            logger.error("a stream failed", exc_info=result)
            stream.on_error(result)
            return
        stream.on_result(
            StepResult(
                updates=result,
                final=job.final,
                lag_ms=1000 * (time.monotonic() - job.arrived),
                compute_ms=sum(sum(update.compute_ms.values()) for update in result),
                batch=batch,
                processed=stream.processed,
                queued=queued,
            )
        )
