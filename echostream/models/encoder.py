"""What the rest of a system asks of an encoder.

Shapes: B batch, T filterbank frames, S encoder frames, P provisional encoder frames, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from echostream.arrays import concatenate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from echostream.streaming import PerRow


@dataclass(frozen=True)
class StreamFeatures:
    """Input of one step of an encoder with provisional frames.

    Attributes:
        final: (B, T, bins) new filterbank frames.
        tail: (B, P, bins) frames behind them, which the next step replaces.
    """

    final: Tensor
    tail: Tensor

    def to(self, like: Tensor) -> StreamFeatures:
        return StreamFeatures(self.final.to(like), self.tail.to(like))


Features: TypeAlias = "Tensor | StreamFeatures"


@dataclass(frozen=True)
class Encoded:
    """What one step of an encoder brought.

    Attributes:
        frames: (B, S, D) completed frames, which never change again.
        counts: valid ones in each row.
        tail: (B, P, D) frames behind them that the next step replaces; None: the encoder has no
            such frames.
        stack: (B, S, k D) the k frames of the stack that each of ``frames`` merges, one behind
            another; None: it does not merge any.
    """

    frames: Tensor
    counts: PerRow
    tail: Tensor | None = None
    stack: Tensor | None = None


class Encoder(Protocol):
    """A streaming speech encoder.

    Attributes:
        embed_dim: D.
        joins_rows: rows at different positions can step together
            (:func:`echostream.streaming.join_rows` of their states).
        utterances_only: it was made for single utterances: its cost grows with the source,
            and it starts anew with every sentence of a stream.
    """

    joins_rows: bool
    utterances_only: bool

    @property
    def embed_dim(self) -> int: ...

    @property
    def open_stream(self) -> Callable[..., Any]:
        """Called with ``batch_size``, ``chunk_ms`` and options that an encoder may have: fresh
        state of streams in chunks of that length."""

    def encode(
        self,
        features: Any,
        state: Any,
        *,
        lengths: Sequence[int] | None = None,
        final: bool | Sequence[bool] = False,
    ) -> tuple[Encoded, Any]:
        """New features (:data:`Features`, of the kind that the encoder takes), of which ``lengths``
        are valid in each row (None: all), to encoder frames; ``final``: the streams of all rows,
        or of each, end with them."""

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        segment_frames: int | Sequence[int] | None = None,
        return_all_hiddens: bool = False,
    ) -> dict[str, list[Tensor]]:
        """Whole utterances to fairseq's encoder dictionary."""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """:meth:`forward`, as torch's modules are called."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights, as of torch's modules."""

    def to(self, *place: Any, **options: Any) -> Any:
        """Move the weights, as torch's modules do."""


def with_tail(frames: Tensor, tail: Tensor | None) -> Tensor:
    """Completed frames with the provisional ones behind them."""
    return frames if tail is None else concatenate([frames, tail], axis=1)
