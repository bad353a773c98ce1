"""Sessions of a server: what they have sent and are owed, with or without a connection.

Everything here runs on the event loop; the scheduler's callbacks are carried over to it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

import numpy as np

from echostream.live.catalog import Catalog, ServedModel
from echostream.live.limits import Limits
from echostream.live.messages import (
    CLOSE_NORMAL,
    Done,
    Message,
    ProtocolError,
    Ready,
    Speech,
    Start,
    Status,
    Transcript,
    Translation,
)
from echostream.live.metrics import Metrics
from echostream.live.outbox import Outbox
from echostream.live.protocol import decode_samples, encode_speech
from echostream.live.scheduler import Scheduler, Stream, Turn
from echostream.live.speech_gate import GatedStream
from echostream.session import Session
from echostream.translator.stream import Decision

logger = logging.getLogger(__name__)


class LiveSession:
    """One stream of one client.

    Args:
        request: what the client asked for.
        model: that serves it.
        chunk_ms: source per decision.
        limits, scheduler, metrics, catalog: the server's.
    """

    def __init__(
        self,
        request: Start,
        model: ServedModel,
        chunk_ms: int,
        *,
        limits: Limits,
        scheduler: Scheduler,
        metrics: Metrics,
        catalog: Catalog,
    ) -> None:
        self.id = secrets.token_urlsafe(18)
        self.request, self.model, self.chunk_ms = request, model, chunk_ms
        self.limits, self.scheduler, self.metrics = limits, scheduler, metrics
        pipeline = catalog.pipeline(model, chunk_ms, request.task)
        loop = asyncio.get_running_loop()
        self.stream = Stream(
            Session(pipeline, keep_tokens=False),
            request.sample_rate,
            on_turn=_on_loop(loop, self._on_turn),
            on_error=_on_loop(loop, self._on_error),
        )
        self.gated = GatedStream(model.gate)
        self.outbox = Outbox(limits.keep_bytes)
        self.received = self.spoken = 0
        self.ended = self.over = False
        self.close_code = CLOSE_NORMAL
        self.owner: object | None = None
        self.dropped_at = time.monotonic()
        self.news, self.room = asyncio.Event(), asyncio.Event()
        self.room.set()
        self._shown: dict[type[Message], str] = {}  # the tail that the client has of each
        scheduler.add(self.stream)

    def ready(self, *, resumed: bool | None = None) -> Ready:
        """The message that opens or reopens the session."""
        return Ready(
            session=self.id,
            model=self.model.name,
            task=self.request.task,
            chunk_ms=self.chunk_ms,
            sample_rate=self.model.output_rate,
            source_language=self.model.source_language,
            target_language=self.model.target_language,
            received=self.received,
            resumed=resumed,
        )

    def feed(self, data: bytes) -> None:
        """A binary message.

        Raises:
            ProtocolError: the message is unusable, or comes after the end or beyond the longest
                source.
        """
        if self.ended:
            raise ProtocolError("ended", "samples came after end")
        samples = decode_samples(data, self.request.format, self.received)
        self.received += len(samples)
        rate = self.request.sample_rate
        limit_s = min(self.limits.session_s, self.model.limit_s or self.limits.session_s)
        if self.received > limit_s * rate:
            raise ProtocolError(
                "too_long", f"a session of model {self.model.name} may last {limit_s:g} s"
            )
        samples = self.gated.push(samples, rate)
        self._check_room(self.scheduler.feed(self.stream, samples))

    def end(self) -> None:
        """Everything received is to be translated, then the session is done."""
        if not self.ended:
            self.ended = True
            none = np.zeros(0, dtype=np.float32)
            rest = self.gated.push(none, self.request.sample_rate, final=True)
            self.scheduler.feed(self.stream, rest, final=True)

    def fail(self, error: ProtocolError) -> None:
        """Say a fault; nothing follows it."""
        if not self.over:
            self.metrics.faults.labels(error.code).inc()
            self._finish(error.as_message())
            self.close_code = error.close_code

    def close(self) -> None:
        """Leave the scheduler."""
        self.over = True
        self.scheduler.remove(self.stream)

    def sent(self) -> None:
        """The connection has taken a message off the outbox."""
        if self.stream.held and self.outbox.unsent_bytes <= self.limits.unsent_bytes // 2:
            self.scheduler.hold(self.stream, False)

    def release(self) -> None:
        """The connection is gone; the session waits for another one."""
        self.owner, self.dropped_at = None, time.monotonic()

    def post(self, message: Message, binary: bytes | None = None) -> None:
        """Hand a message to whichever connection the session has."""
        self.outbox.post(message.as_json(), binary)
        self.news.set()

    def _finish(self, message: Message) -> None:
        self.post(message)
        self.close()
        self.room.set()

    def _on_error(self, error: Exception) -> None:
        self.fail(ProtocolError("internal", "the translation of this session failed"))

    def _on_turn(self, turn: Turn) -> None:
        if self.over:
            return
        for decision in turn.decisions:
            self._post_decision(decision)
        self._count(turn)
        rate = self.request.sample_rate
        self.post(
            Status(
                source_ms=round(1000 * turn.processed / rate, 1),
                lag_ms=round(turn.lag_ms, 1),
                compute_ms=round(turn.compute_ms, 1),
                queued_ms=round(1000 * turn.queued / rate, 1),
                received=self.received,
            )
        )
        if turn.final:
            self._finish(Done(received=self.received, spoken=self.spoken))
            return
        self._check_room(turn.queued)
        if self.outbox.unsent_bytes > self.limits.unsent_bytes:
            self.scheduler.hold(self.stream, True)

    def _post_decision(self, decision: Decision) -> None:
        source_ms, sentence = round(decision.source_ms, 1), decision.sentence
        for kind, words, tail in (
            (Transcript, decision.transcript, decision.transcript_tail),
            (Translation, decision.translation, decision.translation_tail),
        ):
            if words or tail != self._shown.get(kind, ""):
                self._shown[kind] = tail
                text = " ".join(words)
                self.post(kind(text=text, tail=tail, source_ms=source_ms, sentence=sentence))
        if len(decision.waveform):
            self.spoken += len(decision.waveform)
            message = Speech(
                samples=len(decision.waveform),
                backlog_ms=round(decision.backlog_ms, 1),
                source_ms=source_ms,
                sentence=sentence,
            )
            self.post(message, encode_speech(decision.waveform))

    def _count(self, turn: Turn) -> None:
        name, metrics = self.model.name, self.metrics
        metrics.chunks.labels(name).inc()
        metrics.source.labels(name).inc(
            min(self.stream.chunk, self.received) / self.request.sample_rate
        )
        speech = sum(len(decision.waveform) for decision in turn.decisions)
        metrics.speech.labels(name).inc(speech / self.model.output_rate)
        metrics.compute.labels(name).observe(turn.compute_ms)
        metrics.lag.labels(name).observe(turn.lag_ms)
        metrics.batch.observe(turn.batch)

    def _check_room(self, queued: int) -> None:
        """Stop or go on reading; say so when it changes."""
        limit = self.limits.queue_s * self.request.sample_rate
        if queued > limit and self.room.is_set():
            self.room.clear()
            self.post(Status(throttled=True, received=self.received))
        elif queued <= limit / 2 and not self.room.is_set():
            self.room.set()
            self.post(Status(throttled=False, received=self.received))


def _on_loop(loop: asyncio.AbstractEventLoop, function: Callable) -> Callable:
    """``function``, callable from another thread; silent once the loop is closed."""

    def call(argument: object) -> None:
        try:
            loop.call_soon_threadsafe(function, argument)
        except RuntimeError:
            logger.debug("a result came after the server had stopped")

    return call


class SessionTable:
    """The open sessions.

    Args:
        limits, scheduler, metrics, catalog: the server's.
        chunk_ms: for clients that name none.
        recomputing: the scheduler of models that recompute.
    """

    def __init__(
        self,
        catalog: Catalog,
        scheduler: Scheduler,
        metrics: Metrics,
        limits: Limits,
        *,
        chunk_ms: int,
        recomputing: Scheduler,
    ) -> None:
        self.catalog, self.scheduler, self.metrics = catalog, scheduler, metrics
        self.recomputing = recomputing
        self.limits, self.chunk_ms = limits, chunk_ms
        self._sessions: dict[str, LiveSession] = {}

    def __len__(self) -> int:
        """Sessions that still translate, dropped ones that may be resumed included."""
        return sum(not session.over for session in self._sessions.values())

    def open(self, request: Start) -> LiveSession:
        """
        Raises:
            ProtocolError: ``busy``, ``unknown_model`` or ``unsupported_task``.
        """
        self.expire()
        model = self.catalog.find(request.model)
        if len(self) >= self.limits.max_sessions:
            raise ProtocolError(
                "busy", f"all {self.limits.max_sessions} sessions are taken; try again later"
            )
        session = LiveSession(
            request,
            model,
            request.chunk_ms or self.chunk_ms,
            limits=self.limits,
            scheduler=self.recomputing if model.recompute else self.scheduler,
            metrics=self.metrics,
            catalog=self.catalog,
        )
        self._sessions[session.id] = session
        self.metrics.started.inc()
        self.metrics.sessions.set(len(self))
        return session

    def find(self, session_id: str) -> LiveSession:
        """
        Raises:
            ProtocolError: ``unknown_session``.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise ProtocolError(
                "unknown_session",
                f"no such session; a dropped one can be resumed for {self.limits.resume_s:g} s",
            )
        return session

    def remove(self, session: LiveSession) -> None:
        session.close()
        self._sessions.pop(session.id, None)
        self.metrics.sessions.set(len(self))

    def expire(self) -> None:
        """Forget sessions without a connection whose time is up, and the oldest of those that are
        over and only kept for a client that missed their end."""
        now = time.monotonic()
        orphans = [session for session in self._sessions.values() if session.owner is None]
        for session in orphans:
            if now - session.dropped_at > self.limits.resume_s:
                self.remove(session)
        over = [session for session in orphans if session.over and session.id in self._sessions]
        for session in over[: max(len(over) - self.limits.max_sessions, 0)]:
            self.remove(session)
        self.metrics.sessions.set(len(self))
