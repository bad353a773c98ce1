"""CTC loss, what it can align, and error counts. Needs no fairseq."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from echostream.fairseq_plugin.sentences import split_end_label
from echostream.models.decoders.ctc_collapse import CollapseState, collapse
from echostream.models.decoders.ctc_decoder import greedy_labels
from echostream.text import edit_distance


def ctc_frames_needed(target: Sequence[int] | np.ndarray) -> int:
    """Frames that CTC needs at least: one per label, and a blank between two equal ones."""
    labels = np.asarray(target)
    return len(labels) + int((labels[1:] == labels[:-1]).sum())


def ctc_loss(
    logits: Tensor,
    input_lengths: Tensor,
    target: Tensor,
    target_lengths: Tensor,
    *,
    blank: int,
    name: str,
    ends: tuple[int, Tensor] | None = None,
) -> Tensor:
    """Summed CTC loss.

    Args:
        logits: (S, B, V).
        input_lengths: (B,) frames of each row.
        target: (B, U), padded.
        target_lengths: (B,).
        name: of the head, for the error.
        ends: the label that ends sentences, and (B, S) the frames that may have it; None: it is a
            label like others.

    Raises:
        ValueError: a target is longer than its input can align. Its loss would be infinite, and
            setting it to zero would hide that nothing is learned from it.
    """
    repeats = (target[:, 1:] == target[:, :-1]) & (
        torch.arange(1, target.size(1), device=target.device) < target_lengths[:, None]
    )
    needed = target_lengths + repeats.sum(dim=1)
    unfit = needed > input_lengths
    if bool(unfit.any()):
        row = int(unfit.nonzero()[0])
        raise ValueError(
            f"{name}: row {row} of the batch needs {int(needed[row])} CTC frames, "
            f"there are {int(input_lengths[row])}"
        )
    if ends is None:
        log_probs = logits.float().log_softmax(dim=-1)
    else:
        end, allowed = ends
        log_probs = split_end_label(logits, allowed, end)
        target = target.masked_fill(target.eq(end), logits.size(-1))
    return F.ctc_loss(
        log_probs, target, input_lengths, target_lengths, blank=blank, reduction="sum"
    )


def ctc_errors(
    logits: Tensor,
    input_lengths: Tensor,
    target: Tensor,
    target_lengths: Tensor,
    *,
    blank: int,
    never: tuple[int, ...],
    ignore: tuple[int, ...],
) -> tuple[int, int]:
    """Token errors of greedy decoding, as inference decodes, and the number of tokens.

    Args:
        logits: (S, B, V).
        never: labels that inference never chooses.
        ignore: labels that it drops.
    """
    errors = 0
    rows = logits.detach().float().cpu().transpose(0, 1)
    targets, frames, tokens = target.tolist(), input_lengths.tolist(), target_lengths.tolist()
    for row, label, length, count in zip(rows, targets, frames, tokens, strict=True):
        labels = greedy_labels(row[:length], never)
        found, _ = collapse(labels, CollapseState(), blank, ignore)
        errors += edit_distance(found, label[:count])
    return errors, sum(tokens)


def utterance_spread(frames: Tensor, lengths: Tensor) -> Tensor | None:
    """How much utterances differ to the encoder: the variance of their mean outputs across the
    batch over the mean of their squares, 0 when all are one vector.

    Args:
        frames: (S, B, D).
        lengths: (B,).

    Returns:
        A scalar, or None for fewer than two utterances.
    """
    if frames.size(1) < 2:
        return None
    x = frames.detach().float()
    valid = torch.arange(x.size(0), device=x.device)[:, None] < lengths[None, :]
    means = (x * valid[..., None]).sum(dim=0) / lengths[:, None]
    variance = means.var(dim=0, unbiased=False).mean()
    return variance / means.square().mean().clamp(min=1e-12)
