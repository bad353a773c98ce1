"""Sentences inside a stream, in training form.

The encoder and the CTC heads run through a whole stream; text decoder and unit decoder live
sentence by sentence. A sentence's source are the frames behind the boundary before it, up to and
with its own boundary: the frame at which the recognition head says end-of-sentence. While a stream
runs, that frame is where the head emits the symbol. In training it is the frame, among those at
which the symbol may stand, where the head finds it most likely, so that every sentence has one from
the first update on. Needs no fairseq.

Shapes: B streams, N sentences, S encoder frames, L frames of the longest sentence, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SUBSAMPLING = 4  # filterbank frames per encoder frame
# How far into the next sentence's speech its predecessor's end may be noticed, in encoder frames.
LATE_FRAMES = 8


@dataclass(frozen=True)
class SentenceWindows:
    """Where each sentence's end may be said.

    Attributes:
        stream: (N,) row of the stream, ascending; sentences of a stream in order.
        first, last: (N,) encoder frames, ``last`` exclusive: from the end of its speech to just
            behind the beginning of the next one's, or to the end of the stream.
    """

    stream: Tensor
    first: Tensor
    last: Tensor

    def allowed(self, lengths: Tensor, frames: int) -> Tensor:
        """(B, S) frames at which some sentence's end may be said.

        Args:
            lengths: (B,) encoder frames of each stream.
        """
        frame = torch.arange(frames, device=lengths.device)
        inside = (frame >= self.first[:, None]) & (frame < self.last[:, None])  # (N, S)
        rows = torch.zeros(len(lengths), frames, dtype=torch.long, device=lengths.device)
        return rows.index_add_(0, self.stream, inside.long()) > 0


def sentence_windows(sentences: Tensor, lengths: Tensor) -> SentenceWindows:
    """Windows of ends from where speech is.

    Args:
        sentences: (N, 3) stream, first filterbank frame of the speech, the one behind its last.
        lengths: (B,) encoder frames of each stream.
    """
    stream, begin, end = sentences.unbind(dim=1)
    length = lengths[stream]
    first = torch.minimum(end // SUBSAMPLING, length - 1)
    following = begin.roll(-1) // SUBSAMPLING + LATE_FRAMES
    is_last = torch.ones_like(stream, dtype=torch.bool)
    is_last[:-1] = stream[1:] != stream[:-1]
    last = torch.where(is_last, length, torch.minimum(following, length))
    last = torch.maximum(last, first + 1)
    # Never into the next sentence's own window, however short that sentence.
    limit = torch.where(is_last, length, first.roll(-1))
    last = torch.maximum(torch.minimum(last, limit), torch.ones_like(last))
    return SentenceWindows(stream, torch.minimum(first, last - 1), last)


def boundaries(windows: SentenceWindows, end_scores: Tensor) -> tuple[Tensor, Tensor]:
    """First source frame of each sentence and the one behind its boundary.

    Args:
        end_scores: (B, S) log-probability of end-of-sentence.

    Returns:
        (N,) and (N,) encoder frames.
    """
    frame = torch.arange(end_scores.size(1), device=end_scores.device)
    inside = (frame >= windows.first[:, None]) & (frame < windows.last[:, None])
    scores = end_scores[windows.stream].masked_fill(~inside, -torch.inf)
    ends = scores.argmax(dim=1) + 1
    starts = torch.zeros_like(ends)
    same = windows.stream[1:] == windows.stream[:-1]
    starts[1:] = torch.where(same, ends[:-1], 0)
    return starts, ends


def gather(frames: Tensor, stream: Tensor, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Cut streams into sentences.

    Args:
        frames: (B, S) or (B, S, D).
        stream, starts, ends: (N,) row, first frame and the frame behind the last.

    Returns:
        (N, L) or (N, L, D), zero behind each sentence's end, and the (N, L) padding mask.
    """
    index = starts[:, None] + torch.arange(int((ends - starts).max()), device=frames.device)
    padding = index >= ends[:, None]
    rows = frames[stream[:, None], index.clamp(max=frames.size(1) - 1)]
    hidden = padding if rows.dim() == 2 else padding[..., None]
    return rows.masked_fill(hidden, 0), padding


def sentence_segment_ends(segment_ends: list[int], starts: Tensor, ends: Tensor) -> Tensor:
    """(N, K) segment ends of the stream as each sentence counts them, from its first frame on and
    up to its boundary."""
    absolute = torch.as_tensor(segment_ends, device=starts.device)
    return torch.minimum(absolute, ends[:, None]).sub(starts[:, None]).clamp(min=0)


def split_end_label(logits: Tensor, allowed: Tensor, end: int) -> Tensor:
    """(S, B, V) logits to (S, B, V + 1) log-probabilities for a CTC loss in which end-of-sentence
    is label V where it is ``allowed`` (B, S), and label ``end``, which no target has, elsewhere.

    Log-probabilities of each frame still sum to one, which PyTorch's CTC gradient relies on.
    """
    log_probs = logits.float().log_softmax(dim=-1)
    said = log_probs[..., end]
    never = torch.full_like(said, -1e4)
    where = allowed.t()
    inside, outside = torch.where(where, said, never), torch.where(where, never, said)
    one_hot = F.one_hot(torch.tensor(end, device=logits.device), logits.size(-1)).bool()
    return torch.cat([torch.where(one_hot, outside[..., None], log_probs), inside[..., None]], -1)
