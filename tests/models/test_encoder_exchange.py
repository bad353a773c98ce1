"""An Emformer that starts from a chunk Conformer: what is copied is what was meant."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from echostream.config import ChunkConformerConfig, EmformerConfig
from echostream.models.chunk_conformer_encoder import ChunkConformerEncoder
from echostream.models.distance_bias import NOWHERE, DistanceBias, distance_index, step_distances
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder
from echostream.models.encoder_exchange import emformer_like, start_from_conformer

WHOLE = 1_000_000


@pytest.fixture
def conformer() -> ChunkConformerEncoder:
    config = ChunkConformerConfig(
        input_dim=6,
        conv_channels=12,
        embed_dim=16,
        layers=2,
        attention_heads=4,
        ffn_dim=24,
        depthwise_kernel_size=7,
        dropout=0.0,
    )
    model = ChunkConformerEncoder(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for layer in model.conformer_layers:
            layer.conv_module.batch_norm.running_mean.normal_()
            layer.conv_module.batch_norm.running_var.uniform_(0.5, 2.0)
    return model


def student_of(conformer, **changes) -> EchoStreamSpeechEncoder:
    config = dataclasses.replace(emformer_like(conformer.config), **changes)
    return EchoStreamSpeechEncoder(config).double().eval()


def test_an_emformer_equals_a_conformer_without_what_it_has_no_place_for(conformer):
    """With the taps that look ahead and the query's part of positions set to zero, and contexts
    that hold everything, both compute the same."""
    frames = 91
    student = student_of(conformer, left_context_frames=100, distance_reach=100)
    with torch.no_grad():
        for convolution in conformer.subsample.conv_layers:
            convolution.weight[..., 4:] = 0.0
        for layer in conformer.conformer_layers:
            layer.conv_module.depthwise_conv.weight[..., 4:] = 0.0
            attention = layer.self_attn
            # A query without content has positions' mean part only; keys still differ.
            attention.linear_q.weight.zero_()
    taken = start_from_conformer(student, conformer)
    assert set(taken) == {name for name, _ in student.named_parameters()}
    x, lengths = torch.randn(2, frames, 6, dtype=torch.double), torch.tensor([frames] * 2)
    theirs = conformer(x, lengths, segment_frames=WHOLE)["encoder_out"][0]
    ours = student(x, lengths, segment_frames=WHOLE)["encoder_out"][0]
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_parts_of_other_sizes_are_left_alone(conformer):
    student = student_of(conformer, ffn_dim=40, first_ffn_dim=0, layers=3)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    taken = set(start_from_conformer(student, conformer))
    assert not any(".fc1." in name or ".layers.2." in name for name in taken)
    # The second linear layer's bias does not depend on what is between.
    assert {name for name in taken if ".fc2." in name} == {
        f"emformer.layers.{layer}.fc2.bias" for layer in (0, 1)
    }
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in taken), name


@pytest.mark.parametrize("right", [0, 3])
@pytest.mark.parametrize("memory", [0, 2])
def test_streaming_equals_forward(right, memory):
    config = EmformerConfig(
        input_dim=6, subsampler="conv1d_glu_linear", conv_channels=8, embed_dim=16, layers=3,
        ffn_dim=24, dropout=0.0, activation="silu", left_context_frames=9, memory_size=memory,
        right_context_frames=right, depthwise_kernel_size=4, first_ffn_dim=12, distance_reach=5,
    )  # fmt: skip
    encoder = EchoStreamSpeechEncoder(config).double().eval()
    with torch.no_grad():
        for layer in encoder.emformer.layers:
            layer.distance_bias.weight.normal_()
    # Rows of different length: their look-ahead lies behind segments of different sizes.
    sizes = [101, 74]
    x = torch.randn(2, max(sizes), 6, dtype=torch.double)
    state, outputs, segments = encoder.init_state(2), [[], []], [[], []]
    for start in range(0, max(sizes), 19):
        left = [min(max(size - start, 0), 19) for size in sizes]
        ends = [start + 19 >= size for size in sizes]
        out, following = encoder.step(x[:, start : start + 19], state, lengths=left, final=ends)
        for row in range(2):
            new = following.frames[row] - state.frames[row]
            outputs[row].append(out[row, :new])
            segments[row] += [new] if new else []
        state = following
    for row, size in enumerate(sizes):
        alone = encoder(x[row : row + 1, :size], torch.tensor([size]), segments[row])
        whole = alone["encoder_out"][0].squeeze(1)
        torch.testing.assert_close(torch.cat(outputs[row]), whole, atol=1e-10, rtol=0)


def test_biases_depend_on_distance_alone():
    bias = DistanceBias(2, 3)
    with torch.no_grad():
        bias.weight.copy_(torch.arange(16.0).view(2, 8))
    query, key = torch.tensor([10, 11, NOWHERE]), torch.tensor([NOWHERE, 0, 9, 10, 11, 40])
    index = distance_index(query, key, 3)
    assert index.tolist() == [[7, 6, 4, 3, 2, 0], [7, 6, 5, 4, 3, 0], [7] * 6]
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, 1] = False
    out = bias(index, mask)
    assert out.shape == (1, 2, 3, 6)
    assert out[0, 0, 0].tolist() == [7.0, -torch.inf, 4.0, 3.0, 2.0, 0.0]
    assert out[0, 1, 1].tolist() == [15.0, 14.0, 13.0, 12.0, 11.0, 8.0]
    bias(index, mask).masked_fill(~mask, 0.0).sum().backward()
    assert bias.weight.grad[0].tolist() == [2.0, 0.0, 1.0, 2.0, 2.0, 1.0, 1.0, 8.0]


def test_a_step_counts_distances_as_its_rows_lie():
    index = step_distances([4, 2], 2, 4, 1, 3, 9, torch.device("cpu"))
    assert index.shape == (2, 7, 10)
    # The first look-ahead frame of the second row lies two behind its segment's first frame.
    assert index[0, 0, 6] - 9 == 4 and index[1, 0, 6] - 9 == 2
    assert index[1, 2, 1] - 9 == 3  # the segment's first frame and the oldest of the left context
    assert (index[:, -1] == 19).all() and (index[:, :, 0] == 19).all()
    assert step_distances([4], 0, 4, 0, 3, 9, torch.device("cpu")).shape == (4, 7)
