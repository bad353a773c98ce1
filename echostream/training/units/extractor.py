"""Waveform to units: one interface over MFCC and HuBERT features.

A unit model is a folder: ``units.json`` (kind of features and their options) and
``kmeans.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from echostream.files import write_atomically
from echostream.training.units.kmeans import KMeans
from echostream.training.units.unit_features import (
    FeatureExtractor,
    HubertFeatures,
    MFCCFeatures,
    build_features,
)

SETTINGS, CENTROIDS = "units.json", "kmeans.safetensors"


class UnitExtractor:
    """Turns speech into units, one per 20 ms.

    Args:
        features: frame features.
        kmeans: centres over them.
    """

    def __init__(self, features: FeatureExtractor, kmeans: KMeans) -> None:
        self.features, self.kmeans = features, kmeans

    @property
    def num_units(self) -> int:
        return len(self.kmeans)

    def __call__(self, waveform: Tensor | np.ndarray) -> np.ndarray:
        """(S,) 16 kHz waveform to (T,) units, int64."""
        samples = torch.as_tensor(waveform)
        return self.kmeans.assign(self.features(samples)).numpy()

    @classmethod
    def mfcc_kmeans(cls, kmeans: KMeans | Path) -> UnitExtractor:
        """The ``mfcc-kmeans`` extractor."""
        model = kmeans if isinstance(kmeans, KMeans) else KMeans.load(kmeans)
        return cls(MFCCFeatures(), model)

    @classmethod
    def hubert_kmeans(
        cls, checkpoint: Path, layer: int, kmeans: KMeans | Path, *, normalize: bool = False
    ) -> UnitExtractor:
        """The ``hubert-kmeans`` extractor."""
        features = HubertFeatures.from_path(checkpoint, layer, normalize=normalize)
        return cls(features, kmeans if isinstance(kmeans, KMeans) else KMeans.load(kmeans))

    @classmethod
    def fit(
        cls,
        features: FeatureExtractor,
        waveforms: Iterable[Tensor],
        clusters: int,
        *,
        seed: int = 1,
    ) -> UnitExtractor:
        """Fit k-means on the features of waveforms."""
        found = (features(waveform) for waveform in waveforms)
        return cls(features, KMeans.fit((f for f in found if len(f)), clusters, seed=seed))

    def save(self, folder: Path) -> None:
        """Write the unit model."""
        self.kmeans.save(folder / CENTROIDS)
        settings = {"features": self.features.kind, "options": self.features.options()}
        write_atomically(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> UnitExtractor:
        """Read a unit model.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is malformed.
        """
        path = folder / SETTINGS
        if not path.is_file():
            raise FileNotFoundError(f"no such unit model: {path}")
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            kind, options = settings["features"], settings["options"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: needs 'features' and 'options': {error}") from error
        return cls(build_features(kind, options), KMeans.load(folder / CENTROIDS))
