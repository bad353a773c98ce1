"""The chunk Conformer: recorded StreamSpeech numbers, and streaming equal to recomputation."""

import dataclasses

import pytest
import torch

from echostream.config import ChunkConformerConfig
from echostream.models.chunk_conformer_encoder import (
    ChunkConformerEncoder,
    StreamFeatures,
    s2st_conv_chunk,
    text_conv_chunk,
)
from echostream.models.chunk_conv import ChunkConv1d
from tests.reference.recordings import Recording

RECORDED = [(8, 8), (16, 16), (24, 8), (99999, 16)]


@pytest.fixture(scope="module")
def encoder() -> ChunkConformerEncoder:
    torch.manual_seed(0)
    config = ChunkConformerConfig(
        input_dim=6,
        conv_channels=12,
        embed_dim=16,
        layers=2,
        attention_heads=4,
        ffn_dim=24,
        depthwise_kernel_size=7,
    )
    model = ChunkConformerEncoder(config).double().eval()
    for layer in model.conformer_layers:
        layer.conv_module.batch_norm.running_mean.normal_()
        layer.conv_module.batch_norm.running_var.uniform_(0.5, 2.0)
    return model


def recorded_encoder(recorded: Recording) -> ChunkConformerEncoder:
    config = ChunkConformerConfig(
        conv_channels=recorded.number("--conv-channels"),
        embed_dim=recorded.number("--encoder-embed-dim"),
        layers=recorded.number("--encoder-layers"),
        attention_heads=recorded.number("--encoder-attention-heads"),
        ffn_dim=recorded.number("--encoder-ffn-embed-dim"),
    )
    model = ChunkConformerEncoder(config).eval()
    prefix = "encoder."
    model.load_state_dict(
        {
            key[len(prefix) :]: value
            for key, value in recorded.weights.items()
            if key.startswith(prefix)
        },
        # The recorded file holds floating-point tensors only, so this counter is absent.
        strict=False,
    )
    return model


@torch.no_grad()
def stream(encoder, features, cuts, segment, conv=None, check_every=1):
    """Run ``step`` over the cuts; compare with ``forward`` on the prefix every so many steps."""
    state = encoder.init_state(features.size(0), segment_frames=segment, conv_chunk_frames=conv)
    done, position, worst = [], 0, 0.0
    for number, cut in enumerate(cuts):
        out, state = encoder.step(features[:, position : position + cut], state)
        position += cut
        done.append(out.frames)
        if number % check_every == 0 or position >= features.size(1):
            got = torch.cat([*done, out.tail], dim=1)
            expected = full(encoder, features[:, :position], segment, conv)
            assert got.shape == expected.shape
            if got.numel():
                worst = max(worst, (got - expected).abs().max().item())
    return worst, sum(part.size(1) for part in done)


def tensors_of(state):
    if isinstance(state, torch.Tensor):
        return [state]
    if dataclasses.is_dataclass(state):
        state = [getattr(state, field.name) for field in dataclasses.fields(state)]
    return [t for part in state for t in tensors_of(part)] if isinstance(state, list) else []


def full(encoder, features, segment, conv=None):
    lengths = torch.full((features.size(0),), features.size(1))
    out = encoder(features, lengths, segment, conv_chunk_frames=conv)
    return out["encoder_out"][0].transpose(0, 1)


def cut_evenly(total: int, size: int, first: int | None = None) -> list[int]:
    cuts = [] if first is None else [first]
    while sum(cuts) < total:
        cuts.append(min(size, total - sum(cuts)))
    return cuts


@pytest.mark.parametrize("segment,conv", RECORDED)
def test_recorded_outputs(recorded, segment, conv):
    # Padded frames of the second row are compared too: the same arithmetic makes the same values.
    tensors = recorded.tensors
    with torch.no_grad():
        out = recorded_encoder(recorded)(
            tensors["in.features"],
            tensors["in.feature_lengths"],
            segment,
            conv_chunk_frames=conv,
        )
    key = f"encoder.chunk{segment}.conv{conv}"
    torch.testing.assert_close(out["encoder_out"][0], tensors[f"{key}.out"], atol=1e-4, rtol=0)
    assert torch.equal(out["encoder_padding_mask"][0], tensors[f"{key}.padding_mask"])


@pytest.mark.parametrize("segment", [8, 16, 24])
@pytest.mark.parametrize("rule", [s2st_conv_chunk, text_conv_chunk])
def test_clips_incremental_equals_recomputation(recorded, segment, rule):
    encoder = recorded_encoder(recorded)
    for features in recorded.features.values():
        x = features[None]
        # 30 then 4 C fbank frames: what chunks of 40 C ms give after the window's hold-back.
        cuts = cut_evenly(x.size(1), 4 * segment, first=4 * segment - 2)
        worst, _ = stream(encoder, x, cuts, segment, rule(segment))
        assert worst < 1e-4


@pytest.mark.parametrize("segment", [8, 16, 24])
def test_one_minute_incremental_equals_recomputation(recorded, segment):
    encoder = recorded_encoder(recorded)
    x = torch.cat(list(recorded.features.values())).repeat(16, 1)[None, :6000]
    cuts = cut_evenly(x.size(1), 4 * segment, first=4 * segment - 2)
    worst, _ = stream(
        encoder, x, cuts, segment, s2st_conv_chunk(segment), check_every=len(cuts) // 6
    )
    assert worst < 1e-4


@pytest.mark.parametrize(
    "segment,conv",
    [
        *[(8, 8), (16, 16), (24, 16), (24, 8), (99999, 16)],
        *[(13, 13), (3, 8), (4, 8), (8, 999), (5, 0), (1, 1)],
    ],
)
@pytest.mark.parametrize(
    "cuts",
    [
        [30, 32, 32, 32, 11],
        [137],
        [1] * 137,
        [3, 0, 64, 1, 69],
        [96, 0, 41],
        [16, 0, 80, 0, 41],
    ],
)
def test_any_cut_equals_recomputation(encoder, segment, conv, cuts):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 137, 6, dtype=torch.float64, generator=generator)
    worst, _ = stream(encoder, x, cuts, segment, conv)
    assert worst < 1e-10


def test_final_frames_do_not_wait_for_more_than_their_chunks(encoder):
    x = torch.zeros(1, 640, 6, dtype=torch.float64)
    # 160 encoder frames: all complete chunks are final when the chunks nest ...
    for segment in (8, 16, 24, 32):
        _, count = stream(encoder, x, cut_evenly(640, 32), segment, 8)
        assert count == 160 // segment * segment
    # ... and at least the complete common multiples when they do not.
    _, count = stream(encoder, x, cut_evenly(640, 32), 24, 16)
    assert count >= 160 // 48 * 48


def test_work_per_step_does_not_grow(encoder):
    """Frames that enter the first layer, counted over a long stream, grow linearly."""
    seen = []
    handle = encoder.conformer_layers[0].ffn1.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].size(1))
    )
    try:
        x = torch.zeros(1, 1600, 6, dtype=torch.float64)
        state = encoder.init_state(segment_frames=8)
        for cut in range(0, 1600, 32):
            _, state = encoder.step(x[:, cut : cut + 32], state)
    finally:
        handle.remove()
    assert max(seen) <= 2 * 8


def test_final_flag_flushes_everything(encoder):
    x = torch.randn(1, 101, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        state = encoder.init_state(segment_frames=16)
        first, state = encoder.step(x[:, :70], state)
        last, _ = encoder.step(x[:, 70:], state, final=True)
        flushed, _ = encoder.step(x[:, :0], encoder.step(x[:, 70:], state)[1], final=True)
    assert last.tail.size(1) == flushed.tail.size(1) == 0
    # 101 frames make 26 outputs, of which 10 lie behind the last complete chunk.
    assert flushed.frames.size(1) == 10
    got = torch.cat([first.frames, last.frames], dim=1)
    torch.testing.assert_close(got, full(encoder, x, 16), atol=1e-10, rtol=0)
    torch.testing.assert_close(flushed.frames, got[:, -flushed.frames.size(1) :])


@pytest.mark.parametrize("segment,conv,frames", [(24, 16, 96), (4, 8, 16), (4, 0, 16)])
def test_frames_that_wait_for_the_convolution_survive_empty_steps(encoder, segment, conv, frames):
    x = torch.randn(1, frames, 6, generator=torch.Generator().manual_seed(7)).double()
    with torch.no_grad():
        state = encoder.init_state(segment_frames=segment, conv_chunk_frames=conv)
        first, state = encoder.step(x, state)
        idle, state = encoder.step(x[:, :0], state)
        last, _ = encoder.step(x[:, :0], state, final=True)
    torch.testing.assert_close(idle.tail, last.frames, atol=0, rtol=0)
    got = torch.cat([first.frames, idle.frames, last.frames], dim=1)
    torch.testing.assert_close(got, full(encoder, x, segment, conv), atol=1e-10, rtol=0)


@pytest.mark.parametrize("segment,conv", [(8, 8), (24, 16), (5, 0)])
def test_provisional_features_are_heard_and_replaced(encoder, segment, conv):
    x = torch.randn(1, 120, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    guess = x + 1.0
    state, done = encoder.init_state(segment_frames=segment, conv_chunk_frames=conv), []
    with torch.no_grad():
        for start in range(0, 120, 20):
            end = start + 20
            # The last three frames of every step but one are guessed first, then known.
            known = slice(max(start - 3, 0), end - 3)
            step = StreamFeatures(x[:, known], guess[:, end - 3 : end])
            out, state = encoder.step(step, state, final=end == 120)
            done.append(out.frames)
            heard = torch.cat([x[:, : end - 3], guess[:, end - 3 : end]], dim=1)
            got = torch.cat([*done, out.tail], dim=1)
            torch.testing.assert_close(got, full(encoder, heard, segment, conv), atol=1e-10, rtol=0)
    assert out.tail.size(1) == 0


def test_no_input_gives_no_output(encoder):
    x = torch.zeros(1, 0, 6, dtype=torch.float64)
    out, _ = encoder.step(x, encoder.init_state(), final=True)
    assert out.frames.shape == out.tail.shape == (1, 0, 16)
    assert encoder(x, torch.tensor([0]))["encoder_out"][0].shape == (0, 1, 16)


def test_step_leaves_its_state_alone_and_streams_do_not_touch(encoder):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(2, 1, 96, 6, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        _, state = encoder.step(x[:, :50], encoder.init_state())
        before = [tensor.clone() for tensor in tensors_of(state)]
        first, _ = encoder.step(x[:, 50:], state)
        encoder.step(y, state)
        again, _ = encoder.step(x[:, 50:], state)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(state), strict=True))
    assert torch.equal(first.frames, again.frames) and torch.equal(first.tail, again.tail)


def test_causality(encoder):
    """Input past a chunk's end changes nothing in that chunk, when the chunks nest."""
    x = torch.randn(1, 160, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    changed = x.clone()
    changed[:, 96:] += 1.0  # encoder frames from 24 on
    with torch.no_grad():
        a, b = full(encoder, x, 8, 8), full(encoder, changed, 8, 8)
    torch.testing.assert_close(a[:, :24], b[:, :24], atol=0, rtol=0)
    assert not torch.equal(a[:, 24:], b[:, 24:])


def test_segments_as_a_sequence_equal_uniform_chunks(encoder):
    x = torch.randn(1, 100, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    lengths = torch.tensor([100])
    with torch.no_grad():
        one = encoder(x, lengths, 8)["encoder_out"][0]
        two = encoder(x, lengths, [8, 8, 8, 1])["encoder_out"][0]
    assert torch.equal(one, two)


def test_no_padding_gives_no_mask_and_all_hiddens_end_in_the_output(encoder):
    x = torch.zeros(2, 40, 6, dtype=torch.float64)
    out = encoder(x, torch.tensor([40, 40]), return_all_hiddens=True)
    assert out["encoder_padding_mask"] == []
    assert len(out["encoder_states"]) == 2
    assert torch.equal(out["encoder_states"][-1], out["encoder_out"][0])


def test_training_mode_reaches_every_weight(encoder):
    model = ChunkConformerEncoder(dataclasses.replace(encoder.config, dropout=0.0)).train()
    x = torch.randn(2, 64, 6)
    model(x, torch.tensor([64, 50]))["encoder_out"][0].square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda e: e(torch.zeros(1, 9, 5), torch.tensor([9])), r"\(B, T, 6\), got \(1, 9, 5\)"),
        (lambda e: e(torch.zeros(1, 9, 6).double(), torch.tensor([9, 9])), "src_lengths"),
        (lambda e: e(torch.zeros(1, 9, 6).double(), torch.tensor([9]), 0), "segment_frames"),
        (lambda e: e(torch.zeros(1, 9, 6).double(), torch.tensor([9]), [2, 2]), "sum to 3"),
        (lambda e: e.init_state(segment_frames=0), "segment_frames"),
        (lambda e: e.step(torch.zeros(2, 9, 6).double(), e.init_state(1)), "batch of 1, got 2"),
        (lambda e: ChunkConv1d(2, 2, 4), "odd kernel_size, got 4"),
    ],
)
def test_wrong_arguments_are_named(encoder, call, message):
    with pytest.raises(ValueError, match=message):
        call(encoder)


def test_agents_chunk_rules():
    assert [s2st_conv_chunk(c) for c in (4, 8, 15, 16, 24, 64)] == [8, 8, 8, 16, 16, 16]
    assert [text_conv_chunk(c) for c in (4, 8, 15, 16, 24, 64)] == [4, 8, 15, 16, 16, 16]
