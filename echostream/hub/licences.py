"""Licences of what is fetched: shown before the first download, and accepted once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from echostream.files import write_atomically
from echostream.hub.table import Licence

ACCEPTED_FILE = ".accepted-licences.json"


class NotAccepted(ValueError):
    """A licence was not accepted."""


def licence_lines(name: str, licences: Sequence[Licence]) -> list[str]:
    """What a person reads before accepting."""
    return [
        f"{name} is not EchoStream's. Its parts come under these licences:",
        *(f"  {one.covers}: {one.name} ({one.where})" for one in licences),
    ]


def accept(
    name: str,
    licences: Sequence[Licence],
    folder: Path,
    *,
    accepted: bool,
    show: Callable[[str], None],
    ask: Callable[[str], str] | None,
) -> None:
    """Show licences that were not accepted before, have them accepted, and remember that.

    Args:
        name: of the model.
        folder: of the models, where acceptance is remembered.
        accepted: they are accepted, without being asked.
        show: prints a line.
        ask: asks a person; None: nobody is there.

    Raises:
        NotAccepted: they are not.
    """
    wanted = [f"{one.covers}: {one.name} ({one.where})" for one in licences]
    path = folder / ACCEPTED_FILE
    before = _read(path)
    if set(wanted) <= set(before):
        return
    for line in licence_lines(name, licences):
        show(line)
    if not accepted:
        if ask is None:
            raise NotAccepted(f"{name}: give --accept-licence to accept the licences above")
        if ask("Accept them? [y/N] ").strip().lower() not in ("y", "yes"):
            raise NotAccepted(f"{name}: its licences were not accepted; nothing was downloaded")
    text = json.dumps(sorted({*before, *wanted}), ensure_ascii=False, indent=1)
    write_atomically(path, text + "\n")


def _read(path: Path) -> list[str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []  # never accepted, or damaged: asked again
    return [line for line in found if isinstance(line, str)] if isinstance(found, list) else []
