"""What is known of a file's bytes beforehand, and whether they are these."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_BLOCK_BYTES = 1 << 20


class WrongBytes(ValueError):
    """A file is not what it was said to be."""


@dataclass(frozen=True)
class Expected:
    """What a file must be; None where it is not known.

    Attributes:
        size: in bytes.
        sha256: of the bytes, in hexadecimal.
        git_blob: git's name of the bytes; the Hub has no other hash of small files.
        told_by: who says so.
    """

    size: int | None = None
    sha256: str | None = None
    git_blob: str | None = None
    told_by: str = "nobody"

    @property
    def known(self) -> bool:
        """Whether a hash says which bytes these are."""
        return self.sha256 is not None or self.git_blob is not None


@dataclass(frozen=True)
class Digest:
    """A file's size and hashes."""

    size: int
    sha256: str
    git_blob: str


def digest_file(path: Path) -> Digest:
    """Hash a file without loading all of it."""
    size = path.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            sha256.update(block)
            blob.update(block)
    return Digest(size, sha256.hexdigest(), blob.hexdigest())


def check_file(path: Path, expected: Expected) -> Digest:
    """Make sure that a file is what it must be, before anything reads it.

    Raises:
        FileNotFoundError: no such file.
        WrongBytes: another size or another hash.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    size = path.stat().st_size
    if expected.size is not None and size != expected.size:
        raise WrongBytes(
            f"{path}: must have {expected.size} bytes ({expected.told_by}), has {size}"
        )
    digest = digest_file(path)
    for kind in ("sha256", "git_blob"):
        wanted, got = getattr(expected, kind), getattr(digest, kind)
        if wanted is not None and wanted != got:
            raise WrongBytes(f"{path}: {kind} must be {wanted} ({expected.told_by}), is {got}")
    return digest
