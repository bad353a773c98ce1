"""Parts of what a chunk brought, each of one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from echostream.models.ctc_output import CTCOutput

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Part of what a chunk brought that belongs to one sentence.

    Attributes:
        emitted: its share of the CTC heads' tokens and frames.
        frames: (1, S, D) its completed encoder frames.
        ends: the sentence ends with it.
        final: the stream ends with it.
    """

    emitted: CTCOutput
    frames: Tensor
    ends: bool
    final: bool


def split(span: Span, rest: Tensor) -> tuple[Span, Span]:
    """Cut a span where its last sentence turns out to have ended.

    Args:
        rest: (1, S, D) frames of the next sentence so far, which may have begun before the span.

    Returns:
        What is left of the sentence, with its end, and the span that begins the next one.
    """
    at = max(span.emitted.frames - rest.shape[1], 0)
    before = Span(span.emitted.cut(0, at), span.frames[:, :at], True, False)
    return before, Span(span.emitted.cut(at, None), rest, span.ends, span.final)
