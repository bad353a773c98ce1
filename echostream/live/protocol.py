"""Reading what a client sends, strictly, and the samples of both directions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from echostream.config import Task
from echostream.live.messages import (
    CLIENT_MESSAGES,
    MAX_AMPLITUDE,
    MAX_BINARY_BYTES,
    MAX_LIVE_CHUNK_MS,
    MAX_SAMPLE_RATE,
    MAX_TEXT_CHARS,
    MIN_LIVE_CHUNK_MS,
    MIN_SAMPLE_RATE,
    End,
    ProtocolError,
    Resume,
    SampleFormat,
    Start,
)

DTYPES: dict[str, str] = {"f32le": "<f4", "s16le": "<i2"}
TASKS: tuple[Task, ...] = ("asr", "s2tt", "s2st")

ClientMessage = Start | Resume | End


def parse_message(text: str) -> ClientMessage:
    """Read a client's text message.

    Raises:
        ProtocolError: ``bad_message``, naming the field, the rule and what arrived.
    """
    if len(text) > MAX_TEXT_CHARS:
        raise ProtocolError(
            "message_too_big",
            f"a text message may have {MAX_TEXT_CHARS} characters, this one has {len(text)}",
        )
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("bad_message", "a text message must be JSON") from error
    if not isinstance(fields, dict):
        raise ProtocolError("bad_message", "a text message must be a JSON object")
    kind = fields.pop("type", None)
    if kind == Start.type:
        return _start(fields)
    if kind == Resume.type:
        return _resume(fields)
    if kind == End.type:
        _no_more(fields)
        return End()
    known = ", ".join(message.type for message in CLIENT_MESSAGES)
    raise ProtocolError("bad_message", f"type must be one of {known}, got {_show(kind)}")


def _start(fields: dict[str, Any]) -> Start:
    request = Start(
        sample_rate=_integer(fields, "sample_rate", MIN_SAMPLE_RATE, MAX_SAMPLE_RATE),
        chunk_ms=_integer(fields, "chunk_ms", MIN_LIVE_CHUNK_MS, MAX_LIVE_CHUNK_MS, optional=True),
        task=_choice(fields, "task", TASKS, "s2st"),
        model=_string(fields, "model"),
        format=_choice(fields, "format", tuple(DTYPES), "f32le"),
        token=_string(fields, "token"),
    )
    _no_more(fields)
    return request


def _resume(fields: dict[str, Any]) -> Resume:
    session = _string(fields, "session")
    if session is None:
        raise ProtocolError("bad_message", "resume needs the session's id")
    last_seq = _integer(fields, "last_seq", -1, 1 << 53, optional=True)
    request = Resume(
        session=session,
        last_seq=-1 if last_seq is None else last_seq,
        token=_string(fields, "token"),
    )
    _no_more(fields)
    return request


def _integer(
    fields: dict[str, Any], name: str, least: int, most: int, *, optional: bool = False
) -> Any:
    value = fields.pop(name, None)
    if value is None and optional:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ProtocolError(
            "bad_message",
            f"{name} must be a whole number from {least} to {most}, got {_show(value)}",
        )
    return value


def _choice(fields: dict[str, Any], name: str, allowed: tuple[str, ...], default: str) -> Any:
    value = fields.pop(name, None)
    if value is None:
        return default
    if value not in allowed:
        raise ProtocolError(
            "bad_message", f"{name} must be one of {', '.join(allowed)}, got {_show(value)}"
        )
    return value


def _string(fields: dict[str, Any], name: str) -> str | None:
    value = fields.pop(name, None)
    if value is not None and not isinstance(value, str):
        raise ProtocolError("bad_message", f"{name} must be a string, got {_show(value)}")
    return value


def _no_more(fields: dict[str, Any]) -> None:
    if fields:
        raise ProtocolError("bad_message", f"unknown field {_show(next(iter(fields)))}")


def _show(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def decode_samples(data: bytes, sample_format: SampleFormat, position: int) -> np.ndarray:
    """A binary message to (T,) float32 samples.

    Args:
        position: samples received before, for the error message.

    Raises:
        ProtocolError: ``message_too_big``, or ``bad_audio`` for half a sample or a value that is
            not finite.
    """
    if len(data) > MAX_BINARY_BYTES:
        raise ProtocolError(
            "message_too_big",
            f"a binary message may have {MAX_BINARY_BYTES} bytes, this one has {len(data)}",
        )
    dtype = np.dtype(DTYPES[sample_format])
    if len(data) % dtype.itemsize:
        raise ProtocolError(
            "bad_audio",
            f"a binary message holds whole {sample_format} samples of {dtype.itemsize} bytes, "
            f"this one has {len(data)} bytes",
        )
    samples = np.frombuffer(data, dtype)
    if sample_format == "s16le":
        return samples.astype(np.float32) / np.float32(32768)
    usable = np.abs(samples) <= MAX_AMPLITUDE  # false for NaN
    if not usable.all():
        index = int(np.argmin(usable))
        raise ProtocolError(
            "bad_audio",
            f"sample {position + index} is {samples[index]:g}; f32le samples are finite numbers "
            "with full scale 1",
        )
    return samples.astype(np.float32, copy=False)


def encode_speech(waveform: np.ndarray) -> bytes:
    """(T,) float samples to s16le bytes.

    As libsndfile does when it writes a 16-bit file, by way of 32 bits of which it keeps the upper
    half, so that a session and a file of ``echostream translate`` hold the same samples.
    """
    scaled = np.floor(np.rint(np.asarray(waveform, dtype=np.float64) * 2**31) / 2**16)
    return np.clip(scaled, -32768, 32767).astype("<i2").tobytes()
