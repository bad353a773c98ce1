"""Who sees whom when all segments of an Emformer layer are computed at once.

Shapes: T utterance frames, R right-context frames of all segments, G segments, M memory slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class SegmentLayout:
    """How an utterance is cut, for the block computation of ``forward``.

    Attributes:
        lengths: frames per segment.
        right: right-context frames of each segment that exist (fewer at the end).
    """

    lengths: tuple[int, ...]
    right: tuple[int, ...]

    @classmethod
    def build(cls, lengths: Sequence[int], right_context: int, available: int) -> SegmentLayout:
        """``available`` frames exist in all; those behind the segments serve as right context."""
        ends = torch.tensor(lengths).cumsum(0).tolist()
        return cls(
            tuple(lengths), tuple(max(min(right_context, available - end), 0) for end in ends)
        )

    def right_index(self) -> list[int]:
        """Indices of the frames that form the concatenated right contexts."""
        index, end = [], 0
        for length, right in zip(self.lengths, self.right, strict=True):
            end += length
            index += range(end, end + right)
        return index


def attention_mask(layout: SegmentLayout, left_context: int, memory_size: int) -> Tensor:
    """Build the block mask of ``forward``, True where a query may look.

    Rows are [right contexts | utterance | summaries], columns [memory | right contexts |
    utterance]; the memory column g is the summary of segment g, of which the last segment's is
    never used.

    Returns:
        (R + T + G, G - 1 + R + T), without memory columns and summary rows if ``memory_size`` is 0.
    """
    segments = len(layout.lengths)
    index = torch.arange(segments)
    right_segment = torch.repeat_interleave(index, torch.tensor(layout.right))
    frame_segment = torch.repeat_interleave(index, torch.tensor(layout.lengths))
    starts = torch.tensor([0, *layout.lengths]).cumsum(0)[:-1]
    frame = torch.arange(len(frame_segment))

    use_memory = memory_size > 0
    queries = torch.cat([right_segment, frame_segment, index if use_memory else index[:0]])
    own = queries[:, None]
    sees_right = right_segment[None] == own
    first = (starts[queries] - left_context)[:, None]
    sees_frame = (frame_segment[None] <= own) & (frame[None] >= first)
    columns = [sees_right, sees_frame]
    if use_memory:
        slots = torch.arange(segments - 1)[None]
        sees_memory = (slots < own) & (slots >= own - memory_size)
        # A summary must not copy older summaries into newer ones.
        sees_memory[len(right_segment) + len(frame_segment) :] = False
        columns.insert(0, sees_memory)
    return torch.cat(columns, dim=1)


def right_windows(layout: SegmentLayout, kernel: int) -> Tensor:
    """What a causal convolution of ``kernel`` frames reads for each right-context frame.

    Returns:
        (R, K) positions in [right contexts | utterance], -1 for what precedes the utterance.
    """
    rows, end, offset = [], 0, sum(layout.right)
    start = 0
    for length, right in zip(layout.lengths, layout.right, strict=True):
        end += length
        past = [offset + t if t >= 0 else -1 for t in range(end - kernel + 1, end)]
        line = past + list(range(start, start + right))
        rows += [line[j : j + kernel] for j in range(right)]
        start += right
    return torch.tensor(rows, dtype=torch.long).view(len(rows), kernel)


def segment_mean(lengths: Sequence[int]) -> Tensor:
    """(G, T) matrix that averages the frames of each segment."""
    count = torch.tensor(lengths)
    segment = torch.repeat_interleave(torch.arange(len(lengths)), count)
    matrix = F.one_hot(segment, len(lengths)).T.double()
    return matrix / count[:, None]
