"""One WebSocket connection: reads for its session, writes for it, and says faults."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from echostream.live.messages import End, Message, ProtocolError, Start
from echostream.live.protocol import parse_message
from echostream.live.security import Gate, bearer
from echostream.live.sessions import LiveSession, SessionTable

logger = logging.getLogger(__name__)

FAREWELL_S = 5.0  # for a last message to a client that may not read
WATCH_S = 1.0  # between looks at the clock, at most
GONE = (WebSocketDisconnect, RuntimeError, OSError)  # what sending to a client that left raises


class Dropped(Exception):
    """The connection broke off, without the closing handshake."""


class Closed(Exception):
    """The client closed the connection."""


async def serve_connection(websocket: WebSocket, table: SessionTable, gate: Gate) -> None:
    """Everything between a client's connecting and its going."""
    headers = websocket.headers
    host = headers.get("host")
    if not (gate.host_allowed(host) and gate.origin_allowed(headers.get("origin"), host)):
        await websocket.close()  # before accepting: HTTP 403
        return
    await websocket.accept()
    try:
        connection = await _open(websocket, table, gate)
    except ProtocolError as error:
        table.metrics.faults.labels(error.code).inc()
        await _say_and_close(websocket, error)
    except (Closed, Dropped):
        pass
    else:
        await connection.run()


async def _open(websocket: WebSocket, table: SessionTable, gate: Gate) -> Connection:
    """The session that the first message starts or resumes."""
    try:
        first = await asyncio.wait_for(_receive(websocket), table.limits.start_s)
    except asyncio.TimeoutError:
        raise ProtocolError(
            "start_timeout", f"no start within {table.limits.start_s:g} s"
        ) from None
    if isinstance(first, bytes):
        raise ProtocolError("not_started", "binary message before start")
    request = parse_message(first)
    if isinstance(request, End):
        raise ProtocolError("not_started", "end before start")
    if not gate.token_allowed(request.token, bearer(websocket.headers.get("authorization"))):
        raise ProtocolError("unauthorized", "this server wants its token in start or resume")
    if isinstance(request, Start):
        session = table.open(request)
        session.post(session.ready())
        return Connection(websocket, session, table)
    session = table.find(request.session)
    session.outbox.rewind(request.last_seq)
    table.metrics.resumed.inc()
    # The greeting answers this connection alone, so it stays outside the numbered log.
    return Connection(websocket, session, table, greeting=session.ready(resumed=True))


async def _receive(websocket: WebSocket) -> str | bytes:
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        # Only a client's close frame has a reason, be it an empty one.
        raise Closed if "reason" in message else Dropped
    text = message.get("text")
    return message["bytes"] if text is None else text


async def _in_time(sending: Coroutine[Any, Any, None]) -> bool:
    """Whether the client took a last message."""
    try:
        await asyncio.wait_for(sending, FAREWELL_S)
    except (asyncio.TimeoutError, *GONE):
        return False
    return True


async def _say_and_close(websocket: WebSocket, error: ProtocolError) -> None:
    text = json.dumps(error.as_message().as_json())
    if await _in_time(websocket.send_text(text)):
        await _in_time(websocket.close(error.close_code))


class Connection:
    """A connection that has a session; takes it over from an earlier one.

    Args:
        websocket: accepted.
        session: started or resumed.
        table: where it is listed.
        greeting: sent before what the session owes.
    """

    def __init__(
        self,
        websocket: WebSocket,
        session: LiveSession,
        table: SessionTable,
        *,
        greeting: Message | None = None,
    ) -> None:
        self.websocket, self.session, self.table = websocket, session, table
        self.greeting = greeting
        self.taken_over = asyncio.Event()
        # Since when the client has sent nothing, and has not taken a message; None: it need not.
        self.silent_since: float | None = None
        self.stalled_since: float | None = None
        previous, session.owner = session.owner, self
        if isinstance(previous, Connection):
            previous.taken_over.set()

    @property
    def _mine(self) -> bool:
        """False from the moment that another connection takes the session over."""
        return self.session.owner is self

    async def run(self) -> None:
        read = asyncio.create_task(self._read())
        write = asyncio.create_task(self._write())
        taken = asyncio.create_task(self.taken_over.wait())
        watch = asyncio.create_task(self._watch())
        tasks = (read, write, taken, watch)
        stalled: ProtocolError | None = None
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            overdue = watch.exception() if watch.done() else None
            if isinstance(overdue, ProtocolError) and overdue.code == "stalled":
                stalled = overdue
            elif (read.done() or overdue is not None) and self._mine:
                if self._reading_ended(overdue or read.exception()):
                    await asyncio.wait([write], timeout=FAREWELL_S)
        finally:
            for task in tasks:
                task.cancel()
            _, written, _, _ = await asyncio.gather(*tasks, return_exceptions=True)
        await self._leave(stalled or written)

    def _reading_ended(self, error: BaseException | None) -> bool:
        """Act on why; returns whether a last word is on its way to the client."""
        if isinstance(error, Closed):
            self.table.remove(self.session)
            return False
        if isinstance(error, Dropped):
            return False
        if not isinstance(error, ProtocolError):
            logger.error("a connection failed", exc_info=error)
            error = ProtocolError("internal", "this connection failed")
        self.session.fail(error)
        return True

    async def _leave(self, written: object) -> None:
        """Say goodbye; a session that is not over waits for its client to resume."""
        if not self._mine:
            error = ProtocolError("taken_over", "another connection resumed this session")
            await _say_and_close(self.websocket, error)
            return
        self.session.release()
        if isinstance(written, ProtocolError):  # the client does not take its messages
            self.table.metrics.faults.labels(written.code).inc()
            self.table.remove(self.session)
            await _say_and_close(self.websocket, written)
        elif written is None:  # the last message is out
            await _in_time(self.websocket.close(self.session.close_code))

    async def _read(self) -> None:
        session = self.session
        while True:
            self.silent_since = None if session.ended else time.monotonic()
            message = await _receive(self.websocket)
            self.silent_since = None
            if session.over or not self._mine:
                continue
            if isinstance(message, bytes):
                session.feed(message)
                await session.room.wait()
            elif isinstance(parse_message(message), End):
                session.end()
            else:
                raise ProtocolError("already_started", "this connection has a session already")

    async def _write(self) -> None:
        """Send what the session posts; returns when its last message is out."""
        session = self.session
        if self.greeting is not None:
            await self._send(json.dumps(self.greeting.as_json()))
        while self._mine:
            message = session.outbox.take()
            if message is not None:
                await self._send(message.text, message.binary)
                session.sent()
            elif session.over:
                return
            else:
                session.news.clear()
                await session.news.wait()

    async def _send(self, text: str, binary: bytes | None = None) -> None:
        try:
            self.stalled_since = time.monotonic()
            await self.websocket.send_text(text)
            if binary is not None:
                self.stalled_since = time.monotonic()
                await self.websocket.send_bytes(binary)
        except GONE as error:
            raise Dropped from error
        self.stalled_since = None

    async def _watch(self) -> None:
        """Look at the clock for reader and writer: a timer for every message costs as much as the
        message.

        Raises:
            ProtocolError: ``stalled`` or ``idle``.
        """
        limits = self.table.limits
        while True:
            now = time.monotonic()
            left = [WATCH_S]
            if self.stalled_since is not None:
                left.append(self.stalled_since + limits.stall_s - now)
                if left[-1] <= 0:
                    raise ProtocolError("stalled", f"no message was taken for {limits.stall_s:g} s")
            if self.silent_since is not None:
                left.append(self.silent_since + limits.idle_s - now)
                if left[-1] <= 0:
                    raise ProtocolError("idle", f"nothing came for {limits.idle_s:g} s")
            await asyncio.sleep(min(left))
