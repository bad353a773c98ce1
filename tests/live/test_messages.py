"""Messages of the live server: what is sent, and what is generated from their definitions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from echostream.live.messages import (
    CLIENT_MESSAGES,
    FAULTS,
    SERVER_MESSAGES,
    Message,
    ProtocolError,
    Status,
)

ROOT = Path(__file__).resolve().parents[2]


def test_page_and_reference_are_current():
    """`python scripts/live_messages.py` rewrites them."""
    command = [sys.executable, str(ROOT / "scripts/live_messages.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert checked.returncode == 0, checked.stderr


def test_every_message_is_listed_once():
    listed = [*CLIENT_MESSAGES, *SERVER_MESSAGES]
    assert len({message.type for message in listed}) == len(listed)
    defined = {kind for kind in all_subclasses(Message) if "type" in vars(kind)}
    assert defined == set(listed)


def all_subclasses(kind: type) -> list[type]:
    return [found for sub in kind.__subclasses__() for found in (sub, *all_subclasses(sub))]


def test_what_is_unknown_is_not_said():
    assert Status(received=5, throttled=False).as_json() == {
        "type": "status",
        "received": 5,
        "throttled": False,
    }


def test_every_fault_that_the_server_names_is_described():
    named = set()
    for path in (ROOT / "echostream/live").glob("*.py"):
        named.update(re.findall(r'ProtocolError\(\s*"(\w+)"', path.read_text(encoding="utf-8")))
    assert named == set(FAULTS)
    with pytest.raises(KeyError, match="no_such_fault"):
        ProtocolError("no_such_fault", "")


def test_the_page_names_messages_by_their_constants():
    kinds = "|".join(message.type for message in (*CLIENT_MESSAGES, *SERVER_MESSAGES))
    for name in ("session.js", "lane.js"):
        script = (ROOT / "echostream/live/page" / name).read_text(encoding="utf-8")
        assert not re.findall(rf'type === "(?:{kinds})"|type: "(?:{kinds})"', script), name
