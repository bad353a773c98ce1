"""Who computes next: many sessions, a few worker threads.

A stream is ready when a whole chunk (or its end) has arrived. Ready streams run in the order of
their due times, so none starves: a due time is when the chunk was complete, but a stream that sends
faster than live is due at most ``PACE`` times as often as its chunks last, so its surplus waits
behind everybody else's present. Streams of one pipeline that are ready together are computed
together, and shared out where several workers have nothing to do.

The event loop never waits here: it feeds sessions under a lock held for microseconds, and results
come back through callbacks on a worker's thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from echostream.session import Session, advance_sessions
from echostream.translator.stream import Decision, chunk_samples

logger = logging.getLogger(__name__)

PACE = 2.0


@dataclass(frozen=True)
class Turn:
    """What one chunk of a stream brought.

    Attributes:
        decisions: in order.
        final: the stream has ended.
        lag_ms: from the arrival of the chunk's last sample to now.
        compute_ms: wall time that the chunk took; of what was computed together, its share.
        batch: number of streams in it.
        processed: samples of the stream that went through the model.
        queued: samples that wait behind them.
    """

    decisions: list[Decision]
    final: bool
    lag_ms: float
    compute_ms: float
    batch: int
    processed: int
    queued: int


class Stream:
    """A session's place in the queue; the scheduler guards every field.

    Args:
        session: nobody else feeds or advances it.
        sample_rate: in Hz.
        on_turn, on_error: called on a worker's thread.
    """

    def __init__(
        self,
        session: Session,
        sample_rate: int,
        *,
        on_turn: Callable[[Turn], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self.session, self.sample_rate = session, sample_rate
        self.chunk = chunk_samples(session.pipeline.chunk_ms, sample_rate)
        self.on_turn, self.on_error = on_turn, on_error
        # So many samples had come at these times; the first entry is the oldest that matters.
        self.arrivals: deque[tuple[int, float]] = deque()
        self.due = self.arrived = 0.0
        self.running = self.held = self.over = False

    @property
    def ready(self) -> bool:
        return not (self.running or self.held or self.over) and self.session.ready

    @property
    def queued(self) -> int:
        """Samples that wait, those of a chunk under way included."""
        return self.session.received - self.session.processed

    def next_due(self) -> float:
        """When the next chunk was complete, or when a paced sender would have completed it."""
        return max(self._complete(), self.due)

    def start(self) -> None:
        """The next chunk is on its way through the model."""
        self.arrived, self.running = self._complete(), True
        self.due = self.next_due() + self.chunk / self.sample_rate / PACE

    def _complete(self) -> float:
        """When the last sample of the next chunk came."""
        end = self.session.processed + self.chunk
        while len(self.arrivals) > 1 and self.arrivals[0][0] < end:
            self.arrivals.popleft()
        return self.arrivals[0][1]


Outcome = tuple[Stream, "list[Decision] | Exception"]


def run_batch(streams: Sequence[Stream]) -> Iterator[Outcome]:
    """Advance streams of one pipeline by a chunk each, all at once where the model can; each with
    its decisions or its exception as soon as they are there."""
    for index, result in advance_sessions([stream.session for stream in streams], chunks=1):
        yield streams[index], result


class Scheduler:
    """Runs streams on worker threads of its own.

    Args:
        run: advances a batch of streams, all of one pipeline, and yields each with its result.
        max_batch: most streams in a batch.
        workers: threads.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Stream]], Iterable[Outcome]] = run_batch,
        *,
        max_batch: int = 16,
        workers: int = 1,
    ) -> None:
        self._run, self._max_batch = run, max_batch
        self._streams: list[Stream] = []
        self._wake = threading.Condition()
        self._closing = False
        self._idle = 0  # workers that wait
        self._threads = [
            threading.Thread(target=self._work, name=f"translation-{index}", daemon=True)
            for index in range(workers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Finish the batches under way and stop."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def add(self, stream: Stream) -> None:
        with self._wake:
            self._streams.append(stream)

    def remove(self, stream: Stream) -> None:
        """Forget a stream; nothing is called back from then on."""
        with self._wake:
            stream.over = True
            if stream in self._streams:
                self._streams.remove(stream)

    def feed(self, stream: Stream, samples: np.ndarray, *, final: bool = False) -> int:
        """Queue (T,) samples; returns how many wait now.

        Args:
            final: no more will come.
        """
        now = time.monotonic()
        with self._wake:
            stream.session.feed(samples, stream.sample_rate, final=final)
            if len(samples) or final:
                stream.arrivals.append((stream.session.received, now))
            if stream.ready:
                self._wake.notify()
            return stream.queued

    def hold(self, stream: Stream, held: bool) -> None:
        """Pause a stream whose results nobody takes."""
        with self._wake:
            stream.held = held
            if stream.ready:
                self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                streams = self._gather()
                while not streams and not self._closing:
                    self._idle += 1
                    self._wake.wait()
                    self._idle -= 1
                    streams = self._gather()
                if self._closing:
                    return
            self._run_and_deliver(streams)

    def _run_and_deliver(self, streams: Sequence[Stream]) -> None:
        """Whatever goes wrong ends the streams that were to be advanced, and no other."""
        unanswered = {id(stream): stream for stream in streams}
        try:
            for stream, result in self._run(streams):
                del unanswered[id(stream)]
                self._deliver(stream, result, len(streams))
        except Exception as error:  # noqa: BLE001  (handed to the streams' owners)
            for stream in unanswered.values():
                self._deliver(stream, error, len(streams))

    def _gather(self) -> list[Stream]:
        """The most overdue stream, and those of ready streams that can run with it."""
        ready = sorted((s for s in self._streams if s.ready), key=Stream.next_due)
        if not ready:
            return []
        pipeline = ready[0].session.pipeline
        mates = [stream for stream in ready if stream.session.pipeline is pipeline]
        share = -(-len(mates) // (1 + self._idle))  # the rest is for who has nothing to do
        batch = mates[: min(share, self._max_batch)]
        for stream in batch:
            stream.start()
        if len(batch) < len(ready):
            self._wake.notify()
        return batch

    def _deliver(self, stream: Stream, result: list[Decision] | Exception, batch: int) -> None:
        session = stream.session
        with self._wake:
            stream.running = False
            if stream not in self._streams:
                return
            stream.over = isinstance(result, Exception) or session.finished
            if stream.ready:
                self._wake.notify()
            processed, queued = session.processed, stream.queued
        if isinstance(result, Exception):
            logger.error("a stream failed", exc_info=result)
            stream.on_error(result)
            return
        stream.on_turn(
            Turn(
                decisions=result,
                final=session.finished,
                lag_ms=1000 * (time.monotonic() - stream.arrived),
                compute_ms=sum(sum(decision.compute_ms.values()) for decision in result),
                batch=batch,
                processed=processed,
                queued=queued,
            )
        )
