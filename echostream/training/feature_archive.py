"""Features of all utterances in one archive, and their mean and deviation."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from echostream.files import atomic_path

FBANK_ZIP, GCMVN = "src_fbank80.zip", "gcmvn.npz"
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # a fixed date keeps the archive's bytes reproducible


class RunningMoments:
    """Mean and standard deviation per bin over all frames."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = np.zeros(())

    def add(self, features: np.ndarray) -> None:
        wide = features.astype(np.float64)
        self.count += len(wide)
        self.total = self.total + wide.sum(0)
        self.squares = self.squares + np.square(wide).sum(0)

    def save(self, path: Path) -> None:
        """Write ``gcmvn.npz``."""
        if not self.count:
            raise ValueError(f"{path}: no training frames to estimate mean and deviation from")
        mean = self.total / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 1e-10))
        with atomic_path(path) as temporary:
            np.savez(temporary, mean=mean.astype(np.float32), std=std.astype(np.float32))


def write_feature_zip(
    path: Path, features: Iterable[tuple[str, np.ndarray]], moments: RunningMoments
) -> None:
    """Store (T, bins) arrays without compression; training ones also count for the moments."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in features:
            if name.startswith("train"):
                moments.add(array)
            buffer = io.BytesIO()
            np.save(buffer, array)
            info = zipfile.ZipInfo(f"{name}.npy", _ZIP_DATE)
            info.compress_type = zipfile.ZIP_STORED
            archive.writestr(info, buffer.getvalue())


def index_feature_zip(path: Path) -> dict[str, tuple[int, int, int]]:
    """Where each array lies: id to (byte offset, bytes, frames).

    Raises:
        FileNotFoundError: no such archive.
        ValueError: damaged, or an entry is compressed or no array.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such feature archive: {path}")
    index = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{path}: {info.filename} is compressed")
                stream.seek(info.header_offset + 26)
                lengths = np.frombuffer(stream.read(4), "<u2")
                offset = info.header_offset + 30 + int(lengths.sum())
                stream.seek(offset)
                np.lib.format.read_magic(stream)
                shape, _, _ = np.lib.format.read_array_header_1_0(stream)
                index[info.filename.removesuffix(".npy")] = (offset, info.file_size, shape[0])
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: not a zip archive: {error}") from error
    return index
