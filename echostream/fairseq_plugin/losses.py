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


def known_rows(
    logits: Tensor,
    input_lengths: Tensor,
    target: Tensor,
    target_lengths: Tensor,
    ends: tuple[int, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, Tensor] | None]:
    """The rows of a CTC head whose target is known: an unknown one has length 0.

    Args, and what is returned in the same order: as in :func:`ctc_loss`.
    """
    rows = target_lengths > 0
    if bool(rows.all()):
        return logits, input_lengths, target, target_lengths, ends
    if ends is not None:
        ends = ends[0], ends[1][rows]
    return logits[:, rows], input_lengths[rows], target[rows], target_lengths[rows], ends


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
    """Summed CTC loss of the rows whose target is known.

    Args:
        logits: (S, B, V).
        input_lengths: (B,) frames of each row.
        target: (B, U), padded.
        target_lengths: (B,), 0 where the target is not known.
        name: of the head, for the error.
        ends: the label that ends sentences, and (B, S) the frames that may have it; None: it is a
            label like others.

    Raises:
        ValueError: a target is longer than its input can align. Its loss would be infinite, and
            setting it to zero would hide that nothing is learned from it.
    """
    logits, input_lengths, target, target_lengths, ends = known_rows(
        logits, input_lengths, target, target_lengths, ends
    )
    if not len(target_lengths):
        return logits.sum() * 0.0
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
    """Token errors of greedy decoding, as inference decodes, and the number of tokens, in the rows
    whose target is known.

    Args:
        logits: (S, B, V).
        never: labels that inference never chooses.
        ignore: labels that it drops.
    """
    logits, input_lengths, target, target_lengths, _ = known_rows(
        logits, input_lengths, target, target_lengths
    )
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
