"""Messages of the WebSocket ``/v1/stream`` and the faults that end a session, each in one place.

Text messages are JSON objects with a ``type``; binary messages are mono samples. Every text message
of the server carries ``seq``, which counts up from 0 and is what a client names to resume.

The page's constants and the tables of docs/reference/messages.md follow from these definitions:
``scripts/live_messages.py`` writes them. A new message is a class here and its name in
``CLIENT_MESSAGES`` or ``SERVER_MESSAGES``.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from echostream.config import Task

SampleFormat = Literal["f32le", "s16le"]
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 8000, 192_000
MIN_LIVE_CHUNK_MS, MAX_LIVE_CHUNK_MS = 80, 5000
MAX_TEXT_CHARS = 4096
MAX_BINARY_BYTES = 1 << 20
MAX_AMPLITUDE = 128.0  # full scale is 1; far beyond it the bytes are something else than samples

# Close codes of WebSocket (RFC 6455, section 7.4, and its registry).
CLOSE_NORMAL, CLOSE_POLICY, CLOSE_TOO_BIG = 1000, 1008, 1009
CLOSE_INTERNAL, CLOSE_TRY_LATER = 1011, 1013


def told(meaning: str, default: Any = MISSING) -> Any:
    """A field of a message, with what the documentation says of it."""
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Message:
    """A text message; its class's docstring says when it is sent."""

    type: ClassVar[str]

    def as_json(self) -> dict[str, Any]:
        """What is sent: the type and every field that is not None."""
        said: dict[str, Any] = {"type": self.type}
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                said[item.name] = value
        return said


@dataclass(frozen=True, kw_only=True)
class Start(Message):
    """First message of a new session."""

    type: ClassVar[str] = "start"

    sample_rate: int = told(
        f"of the binary messages, in Hz, {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}"
    )
    chunk_ms: int | None = told(
        f"source per decision, {MIN_LIVE_CHUNK_MS} to {MAX_LIVE_CHUNK_MS}; default: the server's",
        None,
    )
    task: Task = told("`asr`, `s2tt` or `s2st`: where the translation stops", "s2st")
    model: str | None = told("name of a served model; default: the first", None)
    format: SampleFormat = told(
        "of the samples: `f32le` (full scale 1) or `s16le`; default: `f32le`", "f32le"
    )
    token: str | None = told("the server's, if it wants one and no header carried it", None)


@dataclass(frozen=True, kw_only=True)
class Resume(Message):
    """First message of a connection that takes a session up again."""

    type: ClassVar[str] = "resume"

    session: str = told("its id")
    last_seq: int = told("number of the last message that arrived whole; default: none did", -1)
    token: str | None = told("as in `start`", None)


@dataclass(frozen=True)
class End(Message):
    """Nothing more will come; all that was sent is translated before `done`."""

    type: ClassVar[str] = "end"


@dataclass(frozen=True, kw_only=True)
class Ready(Message):
    """The session has begun, or goes on."""

    type: ClassVar[str] = "ready"

    session: str = told("its id, for `resume`")
    model: str = told("name of the model that serves it")
    task: Task = told("where the translation stops")
    chunk_ms: int = told("source per decision")
    sample_rate: int = told("of the speech, in Hz")
    source_language: str | None = told("of the model, if known")
    target_language: str | None = told("of the model, if known")
    received: int = told("samples that have arrived; a client that resumes sends on from here")
    resumed: bool | None = told("true in answer to `resume`", None)


@dataclass(frozen=True, kw_only=True)
class _Words(Message):
    text: str = told("new words, which stay")
    tail: str = told("provisional words behind them, which replace the previous tail")
    source_ms: float = told("source that was read when they were written")
    sentence: int = told("counted from 0")


@dataclass(frozen=True, kw_only=True)
class Transcript(_Words):
    """Words of the source."""

    type: ClassVar[str] = "transcript"


@dataclass(frozen=True, kw_only=True)
class Translation(_Words):
    """Words of the translation."""

    type: ClassVar[str] = "translation"


@dataclass(frozen=True, kw_only=True)
class Speech(Message):
    """The next message is binary: s16le samples."""

    type: ClassVar[str] = "speech"

    samples: int = told("how many follow")
    backlog_ms: float = told("speech that waits to be played")
    source_ms: float = told("source that was read when it was spoken")
    sentence: int = told("counted from 0")


@dataclass(frozen=True, kw_only=True)
class Status(Message):
    """After every chunk, and when the server stops or goes on reading."""

    type: ClassVar[str] = "status"

    received: int = told("samples that have arrived")
    source_ms: float | None = told("source that was translated", None)
    lag_ms: float | None = told("from the chunk's last sample to now", None)
    compute_ms: float | None = told("of what was computed together, the session's share", None)
    queued_ms: float | None = told("source that waits to be translated", None)
    throttled: bool | None = told(
        "true: more than {queue_s:g} s of source wait and the server stops reading; "
        "false: it reads on",
        None,
    )


@dataclass(frozen=True, kw_only=True)
class Done(Message):
    """All is translated; the server closes."""

    type: ClassVar[str] = "done"

    received: int = told("samples in")
    spoken: int = told("samples out")


@dataclass(frozen=True, kw_only=True)
class Error(Message):
    """A fault; the server closes."""

    type: ClassVar[str] = "error"

    code: str = told("one word for programs, from the table of faults")
    message: str = told("one sentence for people")


CLIENT_MESSAGES: tuple[type[Message], ...] = (Start, Resume, End)
SERVER_MESSAGES: tuple[type[Message], ...] = (
    Ready,
    Transcript,
    Translation,
    Speech,
    Status,
    Done,
    Error,
)


@dataclass(frozen=True)
class Fault:
    """Why a session ends before its time.

    Attributes:
        meaning: for the documentation; names in braces are fields of ``Limits``.
        close_code: of the WebSocket.
    """

    meaning: str
    close_code: int = CLOSE_POLICY


FAULTS: dict[str, Fault] = {
    "busy": Fault(
        "all sessions are taken; dropped ones that may be resumed count", CLOSE_TRY_LATER
    ),
    "unauthorized": Fault("token missing or wrong"),
    "not_started": Fault("the first message is neither `start` nor `resume`"),
    "already_started": Fault("a second `start` or `resume`"),
    "ended": Fault("samples behind `end`"),
    "bad_message": Fault("not JSON, unknown type or field, value out of range"),
    "bad_audio": Fault(
        f"part of a sample, NaN, infinity, or beyond {MAX_AMPLITUDE:g} times full scale"
    ),
    "message_too_big": Fault(
        f"text beyond {MAX_TEXT_CHARS} characters, or binary beyond {MAX_BINARY_BYTES} bytes",
        CLOSE_TOO_BIG,
    ),
    "unknown_model": Fault("no such model"),
    "unsupported_task": Fault("the model cannot do this"),
    "unknown_session": Fault("no such session; a dropped one waits {resume_s:g} s"),
    "resume_lost": Fault(
        "messages asked for are no longer kept ({keep_bytes} bytes of sent ones are)"
    ),
    "start_timeout": Fault("no first message in {start_s:g} s"),
    "idle": Fault("nothing sent for {idle_s:g} s"),
    "stalled": Fault("no message taken for {stall_s:g} s"),
    "too_long": Fault("beyond {session_s:g} s of source, or the limit of a model that recomputes"),
    "taken_over": Fault("another connection resumed the session"),
    "internal": Fault("the translation failed", CLOSE_INTERNAL),
}


class ProtocolError(Exception):
    """A fault that ends the session, said to the client.

    Args:
        code: one of ``FAULTS``.
        message: one sentence for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message
        self.close_code = FAULTS[code].close_code

    def as_message(self) -> Error:
        return Error(code=self.code, message=self.message)
