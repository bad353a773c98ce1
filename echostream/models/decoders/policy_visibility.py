"""StreamSpeech's read/write policy in training form: what each target token may see.

Shapes: B batch, T target positions, S source frames, V vocabulary, K segments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def streaming_visibility(
    asr_emission: Tensor,
    st_emission: Tensor,
    target_length: int,
    *,
    lagging_k1: int,
    stride_n: int,
    segment_ends: Sequence[int] | Tensor,
) -> Tensor:
    """The policy in training form (StreamSpeech, equation 8): how much source each target token
    may see.

    Token t waits until the expected number of ST CTC tokens reaches its stride's count, then for
    the next frame at which the ASR CTC emits, then to the end of that segment.

    Args:
        asr_emission, st_emission: (B, S) probability that a frame starts a new CTC token.
        target_length: T, number of target positions.
        segment_ends: cumulative end frame of each encoder segment, ascending, last one S; or (B,
            K) of each row, the last one its length.

    Returns:
        (B, T) visible source frames, at least 1.
    """
    source_length = st_emission.size(1)
    device = st_emission.device
    position = torch.arange(target_length, device=device)
    needed = ((position // stride_n + 1) * stride_n + lagging_k1).clamp(1, source_length)
    reached = st_emission.cumsum(dim=-1)[:, None, :] >= needed[None, :, None]  # (B, T, S)
    candidate = reached & (asr_emission.round() > 0)[:, None, :]
    candidate[:, :, -1] = True
    first = (candidate.cumsum(dim=-1) == 0).sum(dim=-1)
    ends = torch.as_tensor(segment_ends, device=device)
    ends = ends.expand(len(first), -1).contiguous()
    # The segment of frame ``first`` is the first one that ends behind it.
    segment = torch.searchsorted(ends, first, right=True).clamp(max=ends.size(1) - 1)
    return ends.gather(1, segment).clamp(min=1)


def ctc_emission(logits: Tensor, blank: int = 0, sentence_end: int | None = None) -> Tensor:
    """(B, S, V) CTC logits to (B, S) probability that a frame emits a token that the frame before
    it did not: 1 - P(blank) - P(same label as before). ``sentence_end`` is no such token."""
    probs = logits.float().softmax(dim=-1)
    labels = torch.cat([probs[..., :blank], probs[..., blank + 1 :]], dim=-1)
    silent = probs[..., blank]
    if sentence_end is not None:
        silent = silent + probs[..., sentence_end]
        labels = probs.clone()
        labels[..., [blank, sentence_end]] = 0.0
    repeat = (labels[:, 1:] * labels[:, :-1]).sum(dim=-1)
    return 1 - F.pad(repeat, (1, 0)) - silent
