"""Bounds of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        max_sessions: open at once, dropped ones that may still be resumed included.
        queue_s: source that may wait for the model; beyond it the server stops reading.
        unsent_bytes: results that may wait for a client; beyond it the stream pauses.
        keep_bytes: sent results that stay for a client that resumes.
        resume_s: how long a dropped session waits for its client.
        start_s: how long a connection may take to its first message.
        idle_s: how long a session may send nothing.
        stall_s: how long a client may take to accept a message.
        session_s: longest source of a session.
    """

    max_sessions: int = 16
    queue_s: float = 10.0
    unsent_bytes: int = 1 << 20
    keep_bytes: int = 2 << 20
    resume_s: float = 30.0
    start_s: float = 10.0
    idle_s: float = 120.0
    stall_s: float = 60.0
    session_s: float = 4 * 3600.0
