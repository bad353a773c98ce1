"""Encoders that start anew with every sentence hear what follows a boundary once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from echostream.arrays import concatenate
from echostream.models.encoder import Features, StreamFeatures

if TYPE_CHECKING:
    from torch import Tensor

SUBSAMPLING = 4  # filterbank frames per encoder frame


def unsettled(
    features: Features, recent: Tensor | None, boundaries: Sequence[int], frames: int
) -> tuple[Features | None, Tensor]:
    """Features behind a boundary, or those to keep until their encoder frames are settled.

    Args:
        features: what the encoder was given, (1, T, bins), possibly with provisional ones.
        recent: (1, R, bins) features kept from before, or None.
        boundaries: at most one, in encoder frames that this step settled.
        frames: encoder frames that this step settled.

    Returns:
        What a restarted encoder reads next (None without a boundary), and the features to keep.
    """
    new = features.final if isinstance(features, StreamFeatures) else features
    known = new if recent is None else concatenate([recent, new], axis=1)
    if not boundaries:
        return None, known[:, SUBSAMPLING * frames :]
    rest = known[:, SUBSAMPLING * boundaries[0] :]
    if isinstance(features, StreamFeatures):
        return StreamFeatures(rest, features.tail), known[:, :0]
    return rest, known[:, :0]


def behind(recent: Tensor, features: Features) -> Features:
    """(1, R, bins) features kept from before, with new ones behind them."""
    if isinstance(features, StreamFeatures):
        return replace(features, final=concatenate([recent, features.final], axis=1))
    return concatenate([recent, features], axis=1)
