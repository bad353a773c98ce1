"""Messages on their way to one client, and those it may ask for again."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import Any

from echostream.live.messages import ProtocolError


@dataclass(frozen=True)
class Message:
    """A text message, and the binary one that follows it, if any."""

    seq: int
    text: str
    binary: bytes | None

    @property
    def size(self) -> int:
        return len(self.text) + len(self.binary or b"")


class Outbox:
    """A numbered log with a cursor: behind it what was sent, before it what was not.

    Args:
        keep_bytes: of what was sent, how much stays for a client that resumes.
    """

    def __init__(self, keep_bytes: int) -> None:
        self.keep_bytes = keep_bytes
        self._sent: deque[Message] = deque()
        self._unsent: deque[Message] = deque()
        self._next_seq = 0
        self._sent_bytes = 0
        self.unsent_bytes = 0

    def post(self, fields: dict[str, Any], binary: bytes | None = None) -> None:
        text = json.dumps({**fields, "seq": self._next_seq}, ensure_ascii=False)
        message = Message(self._next_seq, text, binary)
        self._next_seq += 1
        self._unsent.append(message)
        self.unsent_bytes += message.size

    def take(self) -> Message | None:
        """The next message to send, from now on counted as sent."""
        if not self._unsent:
            return None
        message = self._unsent.popleft()
        self.unsent_bytes -= message.size
        self._sent.append(message)
        self._sent_bytes += message.size
        while self._sent_bytes > self.keep_bytes and len(self._sent) > 1:
            self._sent_bytes -= self._sent.popleft().size
        return message

    def rewind(self, last_seq: int) -> None:
        """Make everything behind message ``last_seq`` unsent again.

        Raises:
            ProtocolError: ``resume_lost``: some of it is no longer kept, or was never sent.
        """
        oldest = self._sent[0].seq if self._sent else self._next_seq - len(self._unsent)
        newest = self._sent[-1].seq if self._sent else oldest - 1
        if not oldest - 1 <= last_seq <= newest:
            raise ProtocolError(
                "resume_lost",
                f"messages {oldest} to {newest} are kept, the client asks for {last_seq + 1} on",
            )
        while self._sent and self._sent[-1].seq > last_seq:
            message = self._sent.pop()
            self._sent_bytes -= message.size
            self._unsent.appendleft(message)
            self.unsent_bytes += message.size
