"""CTC loss, error counts and the collapse guard's measure."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from echostream.fairseq_plugin.losses import (
    ctc_errors,
    ctc_frames_needed,
    ctc_loss,
    utterance_spread,
)
from echostream.text import edit_distance


def slow_distance(left, right):
    table = {(i, 0): i for i in range(len(left) + 1)} | {(0, j): j for j in range(len(right) + 1)}
    for i, a in enumerate(left, start=1):
        for j, b in enumerate(right, start=1):
            table[i, j] = min(
                table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b)
            )
    return table[len(left), len(right)]


def test_edit_distance():
    rng = random.Random(0)
    for _ in range(200):
        left = [rng.randrange(4) for _ in range(rng.randrange(9))]
        right = [rng.randrange(4) for _ in range(rng.randrange(9))]
        assert edit_distance(left, right) == slow_distance(left, right)


def test_frames_needed_counts_blanks_between_repeats():
    assert ctc_frames_needed([5, 6, 7]) == 3
    assert ctc_frames_needed(np.array([5, 5, 5, 6])) == 6


def _batch(lengths, targets, vocabulary=9, frames=None):
    torch.manual_seed(1)
    frames = frames or max(lengths)
    logits = torch.randn(frames, len(lengths), vocabulary)
    rows = [torch.tensor(row) for row in targets]
    target = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    return (
        logits,
        torch.tensor(lengths),
        target,
        torch.tensor([len(row) for row in targets]),
    )


def test_loss_of_a_batch_is_the_sum_of_its_rows():
    logits, lengths, target, counts = _batch([12, 7, 12], [[4, 5, 5], [6], [7, 4]])
    whole = ctc_loss(logits, lengths, target, counts, blank=0, name="x")
    parts = sum(
        ctc_loss(
            logits[: lengths[i], i : i + 1],
            lengths[i : i + 1],
            target[i : i + 1, : counts[i]],
            counts[i : i + 1],
            blank=0,
            name="x",
        )
        for i in range(3)
    )
    assert torch.allclose(whole, parts)


def test_padding_behind_a_target_is_no_repeat():
    logits, lengths, target, counts = _batch([3, 9], [[4, 5, 6], [4, 5, 6, 7, 8, 4]])
    assert torch.isfinite(ctc_loss(logits, lengths, target, counts, blank=0, name="x"))


@pytest.mark.parametrize(("frames", "fits"), [(5, True), (4, False)])
def test_a_target_that_does_not_fit_is_an_error(frames, fits):
    batch = _batch([12, frames], [[4], [4, 5, 5, 6]])
    if fits:
        assert torch.isfinite(ctc_loss(*batch, blank=0, name="units"))
    else:
        with pytest.raises(ValueError, match="units: row 1 .* needs 5 CTC frames, there are 4"):
            ctc_loss(*batch, blank=0, name="units")


def test_errors_decode_as_inference_does():
    labels = [[0, 4, 4, 0, 4, 5, 1, 3], [6, 6, 6, 6, 7, 7, 7, 7]]
    logits = torch.full((8, 2, 9), -5.0)
    for row, sequence in enumerate(labels):
        for frame, label in enumerate(sequence):
            logits[frame, row, label] = 5.0
    logits[6, 0, 5] = logits[7, 0, 0] = 4.0  # the best that inference may choose
    target = torch.tensor([[4, 4, 5], [6, 8, 1]])
    errors, tokens = ctc_errors(
        logits, torch.tensor([8, 5]), target, torch.tensor([3, 2]), blank=0, never=(1, 3),
        ignore=(1,),
    )  # fmt: skip
    assert (errors, tokens) == (1, 5)


def test_spread_tells_a_collapsed_encoder():
    torch.manual_seed(0)
    same = torch.randn(1, 1, 16).expand(10, 4, 16)
    lengths = torch.tensor([10, 10, 8, 3])
    assert float(utterance_spread(same, lengths)) < 1e-6
    assert float(utterance_spread(torch.randn(1, 4, 16).expand(10, 4, 16), lengths)) > 0.5
    assert utterance_spread(same[:, :1], lengths[:1]) is None
