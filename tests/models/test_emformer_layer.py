"""The Emformer stack against torchaudio's, and against itself step by step."""

import pytest
import torch
import torchaudio
from torch.nn import functional as F

from echostream.config import EmformerConfig
from echostream.models.causal_convolution import CausalConvolution
from echostream.models.emformer_layer import (
    EmformerStack,
    SegmentLayout,
    attention_mask,
    from_torchaudio_names,
    right_windows,
)

# torchaudio's softmax runs in float32 whatever the input, which limits the agreement.
TOLERANCE = 1e-5
# dim, heads, ffn, layers, segment, left, right, memory, frames, batch, activation, tanh
SHAPES = [
    (16, 4, 32, 3, 4, 8, 2, 3, 22, 3, "relu", False),
    (16, 2, 24, 2, 5, 0, 0, 0, 21, 2, "gelu", False),
    (24, 3, 32, 4, 8, 16, 4, 2, 50, 1, "silu", True),
    (16, 4, 32, 2, 3, 7, 1, 0, 20, 2, "relu", False),
    (32, 4, 64, 3, 8, 32, 0, 4, 100, 2, "relu", False),
    (16, 4, 16, 2, 1, 2, 3, 5, 9, 2, "relu", True),
    (256, 4, 512, 2, 8, 32, 4, 4, 37, 2, "relu", False),
]


def pair(shape):
    """torchaudio's Emformer and ours with the same weights, in float64."""
    dim, heads, ffn, layers, segment, left, right, memory, _, _, activation, tanh = shape
    theirs = torchaudio.models.Emformer(
        dim,
        heads,
        ffn,
        layers,
        segment,
        activation=activation,
        left_context_length=left,
        right_context_length=right,
        max_memory_size=memory,
        tanh_on_mem=tanh,
    )
    config = EmformerConfig(
        embed_dim=dim,
        attention_heads=heads,
        ffn_dim=ffn,
        layers=layers,
        left_context_frames=left,
        right_context_frames=right,
        memory_size=memory,
        activation=activation,
        tanh_on_memory=tanh,
    )
    ours = EmformerStack(config)
    ours.load_state_dict(from_torchaudio_names(theirs.state_dict()))
    return theirs.double().eval(), ours.double().eval()


def cut(total, segment):
    return [segment] * (total // segment) + ([total % segment] if total % segment else [])


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_equals_torchaudio(shape):
    theirs, ours = pair(shape)
    segment, right, frames, batch = shape[4], shape[6], shape[8], shape[9]
    x = torch.randn(batch, frames + right, shape[0], dtype=torch.double)
    lengths = torch.full((batch,), frames)
    expected, _ = theirs(x, lengths)
    actual = ours(x, lengths + right, cut(frames, segment))
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_step_equals_torchaudio_infer(shape):
    theirs, ours = pair(shape)
    segment, right, frames, batch = shape[4], shape[6], shape[8], shape[9]
    x = torch.randn(batch, frames + right, shape[0], dtype=torch.double)
    lengths = torch.full((batch,), segment + right)
    their_state, our_state = None, ours.init_state(batch)
    for start in range(0, frames - segment + 1, segment):
        piece = x[:, start : start + segment + right]
        expected, _, their_state = theirs.infer(piece, lengths, their_state)
        actual, our_state = ours.step(piece, our_state, right)
        torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[6] == 0 and shape[9] > 1])
def test_padded_batch_equals_torchaudio_without_right_context(shape):
    theirs, ours = pair(shape)
    frames, batch = shape[8], shape[9]
    x = torch.randn(batch, frames, shape[0], dtype=torch.double)
    lengths = torch.tensor([frames, frames - 6])
    expected, _ = theirs(x, lengths)
    actual = ours(x, lengths, cut(frames, shape[4]))
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(
            actual[row, :length], expected[row, :length], atol=TOLERANCE, rtol=0
        )


def test_padding_of_a_single_utterance_is_hidden_where_torchaudio_shows_it():
    theirs, ours = pair((16, 4, 32, 2, 4, 8, 0, 2, 10, 1, "relu", False))
    x = torch.randn(1, 12, 16, dtype=torch.double)
    other = x.clone()
    other[:, 10:] = 100.0
    lengths = torch.tensor([10])
    segments = [4, 4, 4]
    torch.testing.assert_close(
        ours(x, lengths, segments)[:, :10], ours(other, lengths, segments)[:, :10]
    )
    leak = theirs(x, lengths)[0][:, :10] - theirs(other, lengths)[0][:, :10]
    assert leak.abs().max() > 1e-3


@pytest.mark.parametrize("right", [0, 2])
@pytest.mark.parametrize("memory", [0, 1, 3])
@pytest.mark.parametrize("left", [0, 5, 100])
@pytest.mark.parametrize("kernel", [0, 1, 4])
@pytest.mark.parametrize("segments", [[8], [3, 1, 6, 2, 2], [1] * 9, [7, 8, 8, 5]])
def test_steps_equal_forward(segments, kernel, left, memory, right):
    config = EmformerConfig(
        embed_dim=8,
        attention_heads=2,
        ffn_dim=12,
        layers=3,
        left_context_frames=left,
        right_context_frames=right,
        memory_size=memory,
        depthwise_kernel_size=kernel,
    )
    stack = EmformerStack(config).double().eval()
    total = sum(segments)
    x = torch.randn(2, total, 8, dtype=torch.double)
    whole = stack(x, torch.tensor([total, total]), segments)
    state, start, pieces = stack.init_state(2), 0, []
    for length in segments:
        end = start + length
        look = min(right, total - end)
        out, state = stack.step(x[:, start : end + look], state, look)
        pieces.append(out)
        start = end
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-12, rtol=0)


def test_mask_of_a_small_layout():
    layout = SegmentLayout.build([2, 2, 1], right_context=1, available=5)
    assert layout.right == (1, 1, 0)
    mask = attention_mask(layout, left_context=1, memory_size=1)
    # Columns: 2 memory slots | right contexts of segments 0 and 1 | 5 frames.
    rows = [
        "00 10 11000",  # right context of segment 0
        "10 01 01110",  # right context of segment 1
        "00 10 11000",  # frames of segment 0
        "00 10 11000",
        "10 01 01110",  # frames of segment 1
        "10 01 01110",
        "01 00 00011",  # frame of segment 2: its memory holds segment 1 only
        "00 10 11000",  # summaries: like frames, without memory
        "00 01 01110",
        "00 00 00011",
    ]
    expected = torch.tensor([[int(c) for c in row.replace(" ", "")] for row in rows]).bool()
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_convolution_is_causal_and_reads_its_kernel(kernel):
    """Against PyTorch's convolution of the whole, left-padded input."""
    module = CausalConvolution(6, kernel, 0.0).double().eval()
    x = torch.randn(2, 11, 6, dtype=torch.double)
    none = torch.zeros(0, kernel, dtype=torch.long)
    gated = F.glu(module.pointwise_in(module.layer_norm(x)), dim=-1).transpose(1, 2)
    depthwise = module.depthwise(F.pad(gated, (kernel - 1, 0))).transpose(1, 2)
    expected = module.pointwise_out(F.silu(depthwise))
    torch.testing.assert_close(module(x, none), expected, atol=1e-12, rtol=0)
    changed = x.clone()
    changed[:, 5, 0] += 1.0
    moved = (module(changed, none) - expected).abs().amax(dim=(0, 2)) > 1e-9
    assert moved.nonzero().flatten().tolist() == list(range(5, min(5 + kernel, 11)))


def test_right_context_reads_its_segment_and_itself():
    layout = SegmentLayout.build([2, 2, 1], right_context=2, available=5)
    assert layout.right == (2, 1, 0)
    # Columns: right contexts 0 and 1 of segment 0, 2 of segment 1, then frames from 3 on.
    expected = [[3, 4, 0], [4, 0, 1], [5, 6, 2]]
    assert right_windows(layout, 3).tolist() == expected
    assert right_windows(layout, 4).tolist()[0] == [-1, 3, 4, 0]
    assert right_windows(SegmentLayout.build([2], 0, 2), 3).shape == (0, 3)


def test_state_is_bounded_and_input_state_unchanged():
    config = EmformerConfig(
        embed_dim=8,
        attention_heads=2,
        ffn_dim=8,
        layers=2,
        left_context_frames=6,
        memory_size=3,
        depthwise_kernel_size=4,
    )
    stack = EmformerStack(config).eval()
    state = stack.init_state()
    for _step in range(12):
        before = [(s.left.clone(), s.memory.clone(), s.conv.clone()) for s in state.layers]
        _, following = stack.step(torch.randn(1, 4, 8), state)
        for (left, memory, conv), kept in zip(before, state.layers, strict=True):
            assert torch.equal(left, kept.left) and torch.equal(memory, kept.memory)
            assert torch.equal(conv, kept.conv)
        state = following
        layer = state.layers[0]
        assert layer.conv.shape == (1, 3, 8)
        assert layer.left.shape == (1, 6, 16) and layer.memory.shape == (1, 3, 16)
        # What was dropped must not be kept alive by a view.
        for tensor in (layer.conv, layer.left, layer.memory):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert state.frames == (48,) and state.segments == (12,)
