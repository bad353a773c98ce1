"""A client of the live server, for programs, tests and load."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

from echostream.live.messages import End, Resume, Speech, Start, Transcript, Translation

# Longer than a ping may wait behind samples that a busy server has not read yet.
PING_TIMEOUT_S = 60.0


@dataclass
class Received:
    """What a session has brought so far.

    Attributes:
        transcript, translation: words by sentence.
        speech: s16le samples.
        messages: every text message in order.
        last_seq: number of the last complete message.
    """

    transcript: dict[int, list[str]] = field(default_factory=dict)
    translation: dict[int, list[str]] = field(default_factory=dict)
    speech: bytearray = field(default_factory=bytearray)
    messages: list[dict[str, Any]] = field(default_factory=list)
    last_seq: int = -1

    def take(self, message: dict[str, Any], samples: bytes | None) -> None:
        if message["type"] in (Transcript.type, Translation.type):
            texts = getattr(self, message["type"])
            texts.setdefault(message["sentence"], []).extend(message["text"].split())
        elif samples is not None:
            self.speech += samples
        self.messages.append(message)
        self.last_seq = message.get("seq", self.last_seq)

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]

    def words(self, kind: str) -> str:
        """All words of ``transcript`` or ``translation``."""
        texts = getattr(self, kind)
        return " ".join(word for sentence in sorted(texts) for word in texts[sentence])

    @property
    def waveform(self) -> np.ndarray:
        """(T,) int16."""
        return np.frombuffer(bytes(self.speech), "<i2")


class LiveClient:
    """One session with a server; an asynchronous context manager.

    Args:
        url: of the server, ``ws://HOST:PORT``.
        token: the server's, if it wants one.
        origin: to send, as a page would.
    """

    def __init__(self, url: str, *, token: str | None = None, origin: str | None = None) -> None:
        self.url, self.token, self.origin = url, token, origin
        self.received = Received()
        self.session: str | None = None
        self._socket: ClientConnection | None = None

    async def __aenter__(self) -> LiveClient:
        await self.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    @property
    def socket(self) -> ClientConnection:
        """The connection.

        Raises:
            ConnectionError: there is none yet.
        """
        if self._socket is None:
            raise ConnectionError("the client is not connected; open() it first")
        return self._socket

    async def open(self) -> None:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        self._socket = await connect(
            f"{self.url}/v1/stream",
            additional_headers=headers,
            origin=None if self.origin is None else Origin(self.origin),
            compression=None,
            max_size=1 << 24,
            ping_timeout=PING_TIMEOUT_S,
        )

    async def close(self) -> None:
        if self._socket is not None:
            await self._socket.close()

    async def tell(self, **fields: Any) -> None:
        """Send a text message."""
        await self.socket.send(json.dumps(fields))

    async def start(self, sample_rate: int, **options: Any) -> dict[str, Any]:
        """Begin; returns the server's ``ready`` (or ``error``)."""
        await self.tell(type=Start.type, sample_rate=sample_rate, **options)
        return await self._greeting()

    async def resume(self) -> dict[str, Any]:
        """Take the session up on a new connection; ``received`` of the answer says from which
        sample on to send."""
        last_seq = self.received.last_seq
        await self.tell(type=Resume.type, session=self.session, last_seq=last_seq)
        return await self._greeting()

    async def _greeting(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self.socket.recv())
        self.received.take(message, None)
        self.session = message.get("session", self.session)
        return message

    async def send(self, samples: np.ndarray) -> None:
        """Send (T,) samples in the format that start named: float32, or int16."""
        kind = "<i2" if samples.dtype.kind == "i" else "<f4"
        await self.socket.send(samples.astype(kind).tobytes())

    async def end(self) -> None:
        await self.tell(type=End.type)

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Text messages until the connection closes; speech is collected in ``received``."""
        while True:
            try:
                message = json.loads(await self.socket.recv())
                speaks = message["type"] == Speech.type
                samples = await self.socket.recv(decode=False) if speaks else None
            except ConnectionClosed:
                return
            self.received.take(message, samples)
            yield message

    async def finish(self) -> Received:
        """Listen until the server closes."""
        async for _ in self.messages():
            pass
        return self.received

    async def translate(
        self, samples: np.ndarray, sample_rate: int, *, speed: float = 1.0, block_ms: int = 40
    ) -> Received:
        """Speak ``samples`` as if live and listen until the end.

        Args:
            speed: times real time; 0: as fast as the server takes it.
        """
        listener = asyncio.create_task(self.finish())
        block = max(sample_rate * block_ms // 1000, 1)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            for start in range(0, len(samples), block):
                piece = samples[start : start + block]
                if speed:
                    due = begun + (start + len(piece)) / sample_rate / speed
                    await asyncio.sleep(max(due - loop.time(), 0))
                await self.send(piece)
            await self.end()
        except ConnectionClosed:
            pass  # the listener has the reason
        return await listener
