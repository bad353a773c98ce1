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


def split(piece: Piece, rest: torch.Tensor) -> tuple[Piece, Piece]:
    """Cut a piece where its last sentence turns out to have ended.

    Args:
        rest: (1, S, D) frames of the next sentence so far, which may have begun before the piece.

    Returns:
        What is left of the sentence, with its end, and the piece that begins the next one.
    """
    at = max(piece.heard.frames - rest.size(1), 0)
    before = Piece(piece.heard.cut(0, at), piece.frames[:, :at], True, False)
    return before, Piece(piece.heard.cut(at, None), rest, piece.ends, piece.final)
