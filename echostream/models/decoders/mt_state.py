"""What the text decoder remembers of its sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from echostream.models.kv_cache import KVCache
from echostream.streaming import PerRow, take_rows


@dataclass(frozen=True)
class MTState:
    """Streaming state of :class:`TransformerMTDecoder`, of B rows.

    Attributes:
        cache: self-attention keys and values; each row's length is the number of positions
            processed.
        sources: cross-attention keys and values of all source frames read.
        last_tokens: the token that each row's next position reads.
        written: the tokens of each row's sentence so far.
        transcribes: whether each row writes a transcript; else a translation.
    """

    cache: KVCache
    sources: KVCache
    last_tokens: PerRow
    written: PerRow
    transcribes: PerRow

    @property
    def length(self) -> int:
        """Target positions processed by the only row."""
        return self.cache.length

    @property
    def source_length(self) -> int:
        """Source frames read by the only row."""
        return self.sources.length

    @property
    def last_token(self) -> int:
        """Of the only row."""
        (token,) = self.last_tokens
        return token

    def truncate(self, length: int, last_token: int) -> MTState:
        """Forget target positions of the only row from ``length`` on; the source stays."""
        (written,) = self.written
        kept = max(len(written) - (self.length - length), 0)
        return replace(
            self,
            cache=self.cache.truncate(length),
            last_tokens=PerRow((last_token,)),
            written=PerRow((tuple(written[:kept]),)),
        )


def row_of(state: MTState, row: int) -> MTState:
    """One row, whose target side has memory of its own; of the sources it is a view."""
    sources = state.sources.view_row(row)
    last, written, transcribes = (
        PerRow((v[row],)) for v in (state.last_tokens, state.written, state.transcribes)
    )
    return MTState(take_rows(state.cache, [row]), sources, last, written, transcribes)


def selected(state: MTState, rows: Sequence[int], sources: KVCache) -> MTState:
    """Rows of a beam's target side; all share the one-row ``sources``."""
    shared = sources if len(rows) == 1 else sources.repeat(len(rows))
    last = PerRow(state.last_tokens[row] for row in rows)
    written = PerRow(state.written[0] for _ in rows)
    transcribes = PerRow.of(state.transcribes[0], len(rows))
    return MTState(take_rows(state.cache, rows), shared, last, written, transcribes)


def repeating(tokens: Sequence[int], size: int) -> list[int]:
    """What would write a run of ``size`` tokens for the second time, behind ``tokens``."""
    before = tuple(tokens[len(tokens) - size + 1 :]) if size > 1 else ()
    if len(tokens) < size:
        return []
    starts = range(len(tokens) - size + 1)
    return [
        tokens[start + size - 1]
        for start in starts
        if tuple(tokens[start : start + size - 1]) == before
    ]
