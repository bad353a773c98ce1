"""A student's frames against a teacher's: the distance, other rates and widths, and streams."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from echostream.audio import CMVN
from echostream.config import preset
from echostream.distillation import (
    Distillation,
    EncoderTeacher,
    Taught,
    relative_distance,
    sentence_cuts,
    teach_streams,
)
from echostream.fairseq_plugin.architectures import ARCHITECTURES
from echostream.models.echostream_model import seeded_model


def teacher(arch: str = "streamspeech_tiny") -> EncoderTeacher:
    config = dataclasses.replace(ARCHITECTURES[arch](), vocoder=None)
    return EncoderTeacher(
        seeded_model(config), CMVN(torch.full((80,), 2.0), torch.full((80,), 3.0))
    )


def test_distance_is_relative_to_the_teachers_variance():
    lengths = torch.tensor([7, 4])
    theirs = torch.randn(2, 7, 5)
    valid = torch.cat([theirs[0], theirs[1, :4]])
    mean = valid.mean(dim=0).expand(2, 7, 5)
    assert float(relative_distance(theirs, theirs, lengths)) == 0.0
    assert float(relative_distance(mean, theirs, lengths)) == pytest.approx(1.0, abs=1e-5)
    scaled = relative_distance(10 * mean + 100, 10 * theirs + 100, lengths)
    assert float(scaled) == pytest.approx(1.0, abs=1e-4)


def test_padding_counts_for_nothing():
    lengths = torch.tensor([7, 4])
    ours, theirs = torch.randn(2, 7, 5, requires_grad=True), torch.randn(2, 7, 5)
    expected = relative_distance(ours, theirs, lengths)
    spoilt = theirs.clone()
    spoilt[1, 4:] = torch.nan
    distance = relative_distance(ours, spoilt, lengths)
    assert torch.equal(distance, expected)
    distance.backward()
    assert ours.grad.isfinite().all()
    assert (ours.grad[1, 4:] == 0).all() and (ours.grad[1, :4] != 0).all()


def test_other_widths_are_projected_and_other_rates_averaged():
    loss = Distillation(4, 6, teacher_frame_ms=20.0, layers=[(1, 2)], layer_weight=0.25)
    theirs, hidden = torch.randn(1, 9, 6), torch.randn(1, 9, 6)
    taught = Taught(theirs, torch.tensor([9]), (hidden,))
    ours = torch.randn(1, 5, 4)
    found = loss(ours, torch.tensor([5]), taught, [ours])
    slow = [x[:, :8].view(1, 4, 2, 6).mean(dim=2) for x in (theirs, hidden)]
    known = torch.tensor([4])  # the ninth frame of 20 ms is no whole one of 40 ms
    parts = [
        relative_distance(projection(ours), target, known)
        for projection, target in zip(loss.projections, slow, strict=True)
    ]
    assert found.item() == pytest.approx((parts[0] + 0.25 * parts[1]).item())
    assert not list(Distillation(6, 6).parameters())
    with pytest.raises(ValueError, match="a whole number of the teacher's, got 40 ms and 30 ms"):
        Distillation(4, 6, teacher_frame_ms=30.0)


@pytest.mark.parametrize("arch", ["streamspeech_tiny", "echostream_tiny"])
def test_a_model_teaches_what_its_encoder_says(arch):
    taught_by = teacher(arch)
    lengths = torch.tensor([70, 43])
    raw = torch.randn(2, 70, 80) + 2
    raw[1, 43:] = 0.0
    found = taught_by.teacher_frames(raw, lengths, layers=[1, 2], segment_frames=8)
    normalised = (raw - 2.0) / 3.0
    normalised[1, 43:] = 0.0
    expected = taught_by.encoder(normalised, lengths, 8, True)
    assert found.lengths.tolist() == [18, 11]
    torch.testing.assert_close(found.frames, expected["encoder_out"][0].transpose(0, 1))
    for ours, theirs in zip(found.hidden, expected["encoder_states"], strict=True):
        torch.testing.assert_close(ours, theirs.transpose(0, 1))
    assert not found.frames.requires_grad
    whole = taught_by.teacher_frames(raw, lengths)
    assert not torch.allclose(whole.frames[0], found.frames[0], atol=1e-3)
    with pytest.raises(ValueError, match="has layers 1 to 2, not 3"):
        taught_by.teacher_frames(raw, lengths, layers=[3])


def test_streams_are_cut_between_sentences():
    # Two sentences with a wide pause, then two that touch.
    sentences = torch.tensor([[0, 8, 61], [0, 100, 150], [1, 3, 45], [1, 45, 90]])
    lengths = torch.tensor([163, 97])
    assert sentence_cuts(sentences, lengths, 8) == [[0, 64, 163], [0, 44, 97]]
    assert sentence_cuts(sentences, lengths, None) == [[0, 80, 163], [0, 44, 97]]
    assert sentence_cuts(sentences[:1], torch.tensor([20, 30]), 8) == [[0, 20], [0, 30]]


def test_a_teacher_of_utterances_hears_sentence_by_sentence():
    taught_by = teacher()
    assert taught_by.by_sentence
    sentences = torch.tensor([[0, 8, 61], [0, 100, 150], [1, 3, 45], [1, 45, 90]])
    lengths = torch.tensor([163, 97])
    raw = torch.randn(2, 163, 80) + 2
    raw[1, 97:] = 0.0
    found = teach_streams(taught_by, raw, lengths, sentences, layers=[1], segment_frames=8)
    assert found.frames.shape == (2, 41, 32) and found.lengths.tolist() == [41, 25]
    for row, places in enumerate([[0, 64, 163], [0, 44, 97]]):
        for start, stop in zip(places[:-1], places[1:], strict=True):
            # As long as the longest piece: a Conformer's convolutions know how far it is padded.
            alone = torch.zeros(1, 99, 80)
            alone[0, : stop - start] = raw[row, start:stop]
            size = torch.tensor([stop - start])
            each = taught_by.teacher_frames(alone, size, layers=[1], segment_frames=8)
            last = -(-(stop - start) // 4)
            for whole, piece in ((found.frames, each.frames), (found.hidden[0], each.hidden[0])):
                torch.testing.assert_close(
                    whole[row, start // 4 : -(-stop // 4)], piece[0, :last], atol=1e-5, rtol=1e-5
                )


def test_a_teacher_that_goes_on_hears_the_stream():
    taught_by = teacher("echostream_tiny")
    raw, lengths = torch.randn(1, 120, 80), torch.tensor([120])
    found = teach_streams(taught_by, raw, lengths, torch.tensor([[0, 4, 50], [0, 60, 110]]))
    torch.testing.assert_close(found.frames, taught_by.teacher_frames(raw, lengths).frames)
    assert preset("tiny").encoder.layers == taught_by.layers
