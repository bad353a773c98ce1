"""K-means over frame features: fitting, storing, assigning."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from echostream.files import atomic_path
from echostream.restricted_unpickler import RestrictedUnpickler, StandIn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KMeans:
    """Cluster centres.

    Attributes:
        centroids: (K, D) float32.
    """

    centroids: Tensor

    def __post_init__(self) -> None:
        if self.centroids.dim() != 2 or not torch.isfinite(self.centroids).all():
            raise ValueError(
                f"k-means centres must be finite (clusters, dimensions), got shape "
                f"{tuple(self.centroids.shape)}"
            )

    def __len__(self) -> int:
        return self.centroids.size(0)

    def assign(self, features: Tensor) -> Tensor:
        """(T, D) features to (T,) nearest centre, int64."""
        if not features.numel():
            return torch.zeros(0, dtype=torch.long)
        if features.dim() != 2 or features.size(1) != self.centroids.size(1):
            raise ValueError(
                f"features must be (frames, {self.centroids.size(1)}), got {tuple(features.shape)}"
            )
        # |x - c|^2 without |x|^2, which is the same for every centre.
        centroids = self.centroids.to(features)
        distance = centroids.square().sum(1) - 2 * features @ centroids.T
        return distance.argmin(1)

    @classmethod
    def fit(
        cls, features: Iterable[Tensor], clusters: int, *, seed: int = 1, max_iter: int = 100
    ) -> KMeans:
        """Fit mini-batch k-means.

        Args:
            features: (T, D) each.
            seed: makes the centres reproducible.
        """
        try:
            from sklearn.cluster import MiniBatchKMeans
        except ImportError as error:
            raise ImportError(
                "fitting k-means needs scikit-learn: pip install 'echostream[train]'"
            ) from error
        data = torch.cat(list(features)).numpy()
        if len(data) < clusters:
            raise ValueError(f"{clusters} clusters need as many frames, got {len(data)}")
        model = MiniBatchKMeans(
            clusters,
            init="k-means++",
            batch_size=min(10000, len(data)),
            max_iter=max_iter,
            n_init=5,
            random_state=seed,
            reassignment_ratio=0.0,
        ).fit(data)
        inertia = model.inertia_ / len(data)
        logger.info("k-means: %d frames, inertia per frame %.2f", len(data), inertia)
        return cls(torch.from_numpy(model.cluster_centers_.astype(np.float32)))

    def save(self, path: Path) -> None:
        """Write safetensors, atomically."""
        with atomic_path(path) as temporary:
            save_file({"centroids": self.centroids.contiguous()}, temporary)

    @classmethod
    def load(cls, path: Path) -> KMeans:
        """Read ``.safetensors``, ``.npy``, ``.npz`` (array ``centroids``), or the joblib file of a
        scikit-learn k-means as published with mHuBERT, from which nothing is executed.

        Raises:
            FileNotFoundError: no such file.
            ValueError: none of these formats.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no such k-means file: {path}")
        try:
            if path.suffix == ".safetensors":
                return cls(load_file(path)["centroids"].float())
            if path.suffix in (".npy", ".npz"):
                loaded = np.load(path, allow_pickle=False)
                array = loaded["centroids"] if path.suffix == ".npz" else loaded
                return cls(torch.from_numpy(np.asarray(array, dtype=np.float32)))
            return cls(torch.from_numpy(read_sklearn_centroids(path)))
        except (
            SafetensorError,
            KeyError,
            ValueError,
            EOFError,
            TypeError,
            AttributeError,
            IndexError,
            pickle.UnpicklingError,
        ) as error:
            raise ValueError(f"{path}: not a k-means file: {error}") from error


class _JoblibReader(RestrictedUnpickler):
    """Reads a joblib file as stand-ins, with its arrays, which joblib writes raw into the stream
    behind each ``NumpyArrayWrapper``."""

    packages = ("sklearn", "joblib", "numpy")

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)

        class ArrayWrapper(StandIn):
            __slots__ = ()

            def __setstate__(self, state: dict[str, Any]) -> None:
                self.items.append(_read_array(stream, state))

        self._wrapper = ArrayWrapper

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "joblib" and name == "NumpyArrayWrapper":
            return self._wrapper
        return super().find_class(module, name)


def _read_array(stream: Any, wrapper: dict[str, Any]) -> np.ndarray:
    code = str(wrapper["dtype"].args[0])
    if code not in ("f4", "f8", "i4", "i8"):
        raise ValueError(f"array of unsupported type {code!r}")
    # Newer joblib pads to an alignment; the padding's length comes first.
    if wrapper.get("numpy_array_alignment_bytes") is not None:
        stream.read(stream.read(1)[0])
    dtype, shape = np.dtype("<" + code), tuple(wrapper["shape"])
    size = int(np.prod(shape)) * dtype.itemsize
    data = stream.read(size)
    if len(data) != size:
        raise ValueError(f"array data ends early: {len(data)} of {size} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if wrapper["order"] == "F" else "C")


def read_sklearn_centroids(path: Path) -> np.ndarray:
    """Cluster centres of a scikit-learn k-means in an uncompressed joblib file, (K, D) float32.

    joblib files are pickles; unpickling one would run whatever it says and needs the scikit-learn
    version that wrote it. This reads the centres alone.
    """
    with path.open("rb") as stream:
        model = _JoblibReader(_Unbuffered(stream)).load()
    try:
        return model.state["cluster_centers_"].items[0].astype(np.float32)
    except (AttributeError, KeyError, IndexError, TypeError):
        raise ValueError("no array cluster_centers_ inside") from None


class _Unbuffered:
    """A stream without ``peek``, so that the unpickler reads no further than it must."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self.read, self.readline, self.readinto = stream.read, stream.readline, stream.readinto
