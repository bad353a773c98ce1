"""The encoder: streaming equals offline, any cut, causality, bounded work and state."""

from dataclasses import replace

import pytest
import torch

from echostream.models.echostream_encoder import EchoStreamSpeechEncoder
from echostream.streaming import per_row, segment_lengths, state_bytes
from tests.conftest import small_encoder

SUBSAMPLERS = ("conv2d", "conv1d_glu", "conv1d_glu_linear")
KERNELS = (0, 5)  # without and with convolutions in the layers
TAILS = (0, 1, 2, 3, 4, 5, 7, 8, 30, 31, 32, 33, 63, 137)


def make(**options) -> EchoStreamSpeechEncoder:
    return EchoStreamSpeechEncoder(small_encoder(**options)).double().eval()


def stream(encoder, x, cuts):
    """Push x in pieces; returns the outputs and the segments they formed."""
    state, pieces = encoder.init_state(x.size(0)), []
    parts = x.split(cuts, dim=1)
    for index, part in enumerate(parts):
        out, state = encoder.step(part, state, final=index == len(parts) - 1)
        pieces.append(out)
    segments = [piece.size(1) for piece in pieces if piece.size(1)]
    return torch.cat(pieces, dim=1), segments, state


def chunks(total, size):
    return [size] * (total // size) + [total % size]


@pytest.mark.parametrize("subsampler", SUBSAMPLERS)
@pytest.mark.parametrize("right", [0, 2, 9])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("frames", TAILS)
def test_streaming_equals_forward(subsampler, right, kernel, frames):
    encoder = make(subsampler=subsampler, right_context_frames=right, depthwise_kernel_size=kernel)
    x = torch.randn(2, frames, 80, dtype=torch.double)
    for size in (1, 7, 32, 1000):
        out, segments, _ = stream(encoder, x, chunks(frames, size))
        assert out.size(1) == (frames + 3) // 4
        whole = encoder(x, torch.tensor([frames] * 2), segments)["encoder_out"][0]
        assert whole.shape == (out.size(1), 2, 16)
        torch.testing.assert_close(out, whole.transpose(0, 1), atol=1e-11, rtol=0)


@pytest.mark.parametrize("subsampler", SUBSAMPLERS)
def test_convolutions_do_not_depend_on_the_cut(subsampler):
    encoder = make(subsampler=subsampler)
    subsample = encoder.subsample
    x = torch.randn(1, 61, 80, dtype=torch.double)
    whole, _ = subsample(x, torch.tensor([61]))
    for size in (1, 2, 3, 5, 8, 60, 61):
        state, pieces, seen = encoder.init_state(), [], 0
        parts = x.split(size, dim=1)
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            new, ends = per_row(part.size(1), 1), per_row(last, 1)
            whole_frames, used, state = encoder._complete(part, new, ends, state)
            out, following = subsample.step(whole_frames, state.subsampler, used)
            state = replace(state, subsampler=following)
            pieces.append(out)
            seen += part.size(1)
            # Output k waits for input 4k + 3 and for nothing more.
            ready = sum(piece.size(1) for piece in pieces)
            assert ready == ((seen + 3) // 4 if last else max((seen - 4) // 4 + 1, 0))
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("subsampler", SUBSAMPLERS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("segment", [1, 4, 8, 100])
def test_ragged_batch_equals_single_utterances(subsampler, kernel, segment):
    encoder = make(subsampler=subsampler, depthwise_kernel_size=kernel)
    lengths = torch.tensor([137, 90, 5])
    x = torch.randn(3, 137, 80, dtype=torch.double)
    batch = encoder(x, lengths, segment)
    frames = batch["encoder_out"][0].size(0)
    for row, length in enumerate(lengths.tolist()):
        count = (length + 3) // 4
        partition, left = [], count
        for piece in encoder.segments(frames, segment):
            if left > 0:
                partition.append(min(piece, left))
            left -= piece
        alone = encoder(x[row : row + 1, :length], lengths[row : row + 1], partition)
        torch.testing.assert_close(
            batch["encoder_out"][0][:count, row], alone["encoder_out"][0][:, 0], atol=1e-11, rtol=0
        )
        assert int((~batch["encoder_padding_mask"][0][row]).sum()) == count


def test_forward_returns_fairseqs_dictionary():
    encoder = make()
    x, lengths = torch.randn(2, 40, 80, dtype=torch.double), torch.tensor([40, 40])
    out = encoder(x, lengths, return_all_hiddens=True)
    assert set(out) == {
        "encoder_out",
        "encoder_padding_mask",
        "encoder_embedding",
        "encoder_states",
        "src_tokens",
        "src_lengths",
    }
    assert out["encoder_out"][0].shape == (10, 2, 16)
    assert out["encoder_padding_mask"] == []
    assert [state.shape for state in out["encoder_states"]] == [(10, 2, 16)] * 3
    torch.testing.assert_close(out["encoder_states"][-1], out["encoder_out"][0])


@pytest.mark.parametrize("right", [0, 3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_causality(right, kernel):
    """A frame depends on its own segment, the right context and 3 filterbank frames, not more."""
    encoder = make(right_context_frames=right, depthwise_kernel_size=kernel)
    x = torch.randn(1, 160, 80, dtype=torch.double)
    segments = encoder.segments(40, 8)
    whole = encoder(x, torch.tensor([160]), segments)["encoder_out"][0]
    end = 0
    for segment in segments[:-1]:
        end += segment
        visible = 4 * (end + right - 1) + 4
        changed = x.clone()
        changed[:, visible:] += 1.0
        other = encoder(changed, torch.tensor([160]), segments)["encoder_out"][0]
        torch.testing.assert_close(whole[:end], other[:end], atol=1e-12, rtol=0)
        assert (whole[end:] - other[end:]).abs().max() > 1e-6


def test_first_chunk_is_encoded_at_once():
    encoder = make()
    state = encoder.init_state()
    counts = []
    for frames in (30, 32, 32):  # what 320 ms, then 320 ms more of audio complete
        out, state = encoder.step(torch.randn(1, frames, 80, dtype=torch.double), state)
        counts.append(out.size(1))
    assert counts == [7, 8, 8] == segment_lengths(23, 8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_state_stops_growing_and_streams_do_not_touch(kernel):
    encoder = make(depthwise_kernel_size=kernel)
    first, second = encoder.init_state(), encoder.init_state()
    x = torch.randn(2, 60, 32, 80, dtype=torch.double)
    sizes, interleaved = [], []
    for step in range(60):
        out, first = encoder.step(x[:1, step], first)
        interleaved.append(out)
        _, second = encoder.step(x[1:, step], second)
        sizes.append(state_bytes(first))
    assert len(set(sizes[10:])) == 1
    alone, state = [], encoder.init_state()
    for step in range(60):
        out, state = encoder.step(x[:1, step], state)
        alone.append(out)
    assert torch.equal(torch.cat(interleaved, dim=1), torch.cat(alone, dim=1))


def test_work_grows_linearly(monkeypatch):
    """Frames that enter the attention layers over a whole stream equal the frames encoded."""
    encoder = make()
    entered = []
    original = type(encoder.emformer.layers[0]).step

    def counting(self, frames, *rest):
        entered.append(frames.size(1))
        return original(self, frames, *rest)

    monkeypatch.setattr(type(encoder.emformer.layers[0]), "step", counting)
    out, _, _ = stream(encoder, torch.randn(1, 640, 80, dtype=torch.double), chunks(640, 32))
    assert sum(entered) == out.size(1) * len(encoder.emformer.layers)


@pytest.mark.parametrize(
    ("total", "segment", "right", "expected"),
    [
        (0, 8, 0, []),
        (3, 8, 0, [3]),
        (7, 8, 0, [7]),
        (24, 8, 0, [7, 8, 8, 1]),
        (20, 8, 2, [5, 8, 7]),
        (3, 1, 0, [1, 1, 1]),
        (20, 8, 9, [6, 8, 6]),
    ],
)
def test_segment_lengths(total, segment, right, expected):
    assert segment_lengths(total, segment, right) == expected


def test_bad_shapes_are_named():
    encoder = make()
    with pytest.raises(ValueError, match=r"\(batch, frames, 80\), got \(1, 5, 40\)"):
        encoder(torch.zeros(1, 5, 40, dtype=torch.double), torch.tensor([5]))
    with pytest.raises(ValueError, match="segments cover 3 frames, but there are 2"):
        encoder(torch.zeros(1, 5, 80, dtype=torch.double), torch.tensor([5]), [3])
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        segment_lengths(5, 0)
