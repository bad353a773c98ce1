"""Atomic writing of files and directories."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block succeeds.

    The temporary name keeps the suffix, because sound and array writers look at it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a whole file or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


@contextmanager
def atomic_directory(path: Path, replaceable: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """A temporary directory that takes the place of ``path`` when the block succeeds, so that a
    directory under the final name is always whole; see :func:`install_directory`."""
    path = path.resolve()  # a linked directory is replaced where it lies
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield staging
        install_directory(staging, path, replaceable, what)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def install_directory(
    staging: Path, path: Path, replaceable: Callable[[Path], bool], what: str
) -> None:
    """Move a finished directory from beside its place into it.

    Args:
        replaceable: whether a directory that is there may be replaced; an empty one always may.
        what: what it would have to be, for the error.

    Raises:
        FileExistsError: something else is there, which stays as it is.
    """
    # Some writers, and mkdtemp for its directory, leave what they make to the owner alone.
    for entry in staging.rglob("*"):
        entry.chmod(0o755 if entry.is_dir() else 0o644)
    staging.chmod(0o755)
    if not path.exists():
        staging.rename(path)
        return
    if not path.is_dir() or (any(path.iterdir()) and not replaceable(path)):
        raise FileExistsError(
            f"{path} exists and is not {what} (or holds other files too); not replacing it"
        )
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    path.rename(old)
    staging.rename(path)
    shutil.rmtree(old)
