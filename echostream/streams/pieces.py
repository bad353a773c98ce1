"""Parts of what a chunk brought, each of one sentence."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from echostream.models.heard import Heard


@dataclass(frozen=True)
class Piece:
    """Part of what a chunk brought that belongs to one sentence.

    Attributes:
        heard: its share of the CTC heads' tokens and frames.
        frames: (1, S, D) its completed encoder frames.
        ends: the sentence ends with it.
        final: the stream ends with it.
    """

    heard: Heard
    frames: torch.Tensor
    ends: bool
    final: bool
