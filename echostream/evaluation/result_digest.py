"""Digests of what results depend on, so that results of other weights are not taken for these."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path


def digest(*parts: object, files: Sequence[Path] = ()) -> str:
    """Hexadecimal digest of values, by their ``repr``, and of names and contents of files; a folder
    stands for all files in it."""
    found = hashlib.sha256(repr(parts).encode())
    for path in files:
        members = sorted(path.rglob("*")) if path.is_dir() else [path]
        for member in members:
            if member.is_file():
                stat = member.stat()
                found.update(member.name.encode())
                found.update(_content(member, stat.st_mtime_ns, stat.st_size))
    return found.hexdigest()


@lru_cache(maxsize=1024)
def _content(path: Path, changed_ns: int, size: int) -> bytes:
    """Digest of a file; read once for every time it changed."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.digest()
