"""Pinned Debian packages as sources of data: fetched by apt, checked, read without installing."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from echostream.files import atomic_path


@dataclass(frozen=True)
class DebianPackage:
    """One package for all architectures, as Debian published it.

    Attributes:
        sha256: of the .deb file.
    """

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """What apt calls the file."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"


def check(package: DebianPackage, path: Path) -> None:
    """Make sure that a file is the pinned package.

    Raises:
        ValueError: it is another file.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ValueError(
            f"{path} is not {package.name} {package.version} as Debian built it: SHA-256 must be "
            f"{package.sha256}, got {found}"
        )


def fetch(package: DebianPackage, folder: Path) -> Path:
    """The package's file in ``folder``; what is not there is downloaded from apt's sources.

    Raises:
        RuntimeError: apt is missing or does not find the package.
        ValueError: the file is not the pinned one.
    """
    path = folder / package.file_name
    if path.is_file():
        check(package, path)
        return path
    if shutil.which("apt-get") is None:
        raise RuntimeError(
            f"no {path}, and no apt-get to download it; put Debian's file {package.file_name} there"
        )
    with tempfile.TemporaryDirectory() as scratch:
        command = ["apt-get", "download", f"{package.name}={package.version}"]
        result = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        downloaded = Path(scratch) / package.file_name
        if result.returncode or not downloaded.is_file():
            raise RuntimeError(
                f"{' '.join(command)} failed ({result.stderr.strip() or 'no file'}); the package "
                "sources must be up to date (apt-get update) and offer this version, or put "
                f"Debian's file {package.file_name} into {folder}"
            )
        check(package, downloaded)
        with atomic_path(path) as temporary:
            shutil.copyfile(downloaded, temporary)
    return path


def read_files(path: Path, wanted: Callable[[str], object]) -> dict[str, bytes]:
    """Contents of regular files in a .deb.

    Args:
        wanted: true of which, by their path from the root of the system, ``usr/share/doc/...``.

    Raises:
        RuntimeError: dpkg-deb is missing.
        ValueError: not a Debian package.
    """
    if shutil.which("dpkg-deb") is None:
        raise RuntimeError(f"{path} is read by dpkg-deb, which is not on PATH (package dpkg)")
    with tempfile.TemporaryFile() as archive:
        command = ["dpkg-deb", "--fsys-tarfile", str(path)]
        result = subprocess.run(command, stdout=archive, stderr=subprocess.PIPE, check=False)
        if result.returncode:
            message = result.stderr.decode("utf-8", "replace").strip()
            raise ValueError(f"{path}: not a Debian package: {message}")
        archive.seek(0)
        with tarfile.open(fileobj=archive) as files:
            found = {}
            for one in files:
                name = one.name.removeprefix("./")
                if one.isfile() and wanted(name):
                    content = files.extractfile(one)
                    assert content is not None  # a regular file has some
                    found[name] = content.read()
            return found
