#!/usr/bin/env python3
"""Write what follows from the live server's messages: constants of the page, and a reference page.

    python scripts/live_messages.py            write both files
    python scripts/live_messages.py --check    say which of them are not current; status 1 if any

The messages themselves are defined in echostream/live/messages.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

from echostream.files import write_atomically
from echostream.live.limits import Limits
from echostream.live.messages import CLIENT_MESSAGES, FAULTS, SERVER_MESSAGES, Message

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "echostream/live/messages.py"
WRITTEN_BY = f"Written by scripts/live_messages.py from {SOURCE}; do not edit."
PAGE = ROOT / "echostream/live/page/messages.js"
REFERENCE = ROOT / "docs/reference/messages.md"
# What a Python annotation is in JSON; whatever is not here is a choice of strings.
JSON_TYPES = {"int": "integer", "float": "number", "bool": "true or false"}


def page_constants() -> str:
    """The types of all messages as constants, and the time that a client has to resume."""
    kinds = [message.type for message in (*CLIENT_MESSAGES, *SERVER_MESSAGES)]
    lines = [f"// {WRITTEN_BY}"]
    lines += [f'export const {kind.upper()} = "{kind}";' for kind in kinds]
    lines.append(f"export const RESUME_MS = {1000 * Limits().resume_s:.0f};")
    return "\n".join(lines) + "\n"


def reference_page() -> str:
    """Tables of the messages, field by field, and of the faults."""
    lines = [
        "# Messages of the live server",
        "",
        f"<!-- {WRITTEN_BY} -->",
        "",
        "Text messages of the WebSocket `/v1/stream`. Binary ones are mono samples.",
        "",
        "## From the client",
        *message_tables(CLIENT_MESSAGES),
        "",
        "## From the server",
        "",
        "Every message also has `seq`, which counts up from 0.",
        *message_tables(SERVER_MESSAGES),
        "",
        "## Faults",
        "",
        "What `code` of an `error` says, and the WebSocket's close code.",
        "",
        "| code | when | closes with |",
        "| :-- | :-- | --: |",
        *(
            f"| `{code}` | {in_words(fault.meaning)} | {fault.close_code} |"
            for code, fault in FAULTS.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def message_tables(messages: tuple[type[Message], ...]) -> Iterator[str]:
    for message in messages:
        yield from ("", f"### `{message.type}`", "", (message.__doc__ or "").strip())
        described = dataclasses.fields(message)
        if described:
            yield from ("", "| field | type | meaning |", "| :-- | :-- | :-- |")
        for field in described:
            kind, _, maybe = str(field.type).partition(" | ")
            optional = "" if field.default is dataclasses.MISSING and not maybe else ", optional"
            meaning = in_words(field.metadata["meaning"])
            yield f"| `{field.name}` | {JSON_TYPES.get(kind, 'string')}{optional} | {meaning} |"


def in_words(meaning: str) -> str:
    """A meaning with the server's default bounds in it."""
    return meaning.format(**dataclasses.asdict(Limits()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = 0
    for path, text in ((PAGE, page_constants()), (REFERENCE, reference_page())):
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"{path.relative_to(ROOT)} is not what {SOURCE} says", file=sys.stderr)
        else:
            write_atomically(path, text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
