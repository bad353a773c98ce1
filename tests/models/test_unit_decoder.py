"""T2U encoder and unit decoder: incremental equals the training form."""

import pytest
import torch

from echostream.config import T2UEncoderConfig, UnitDecoderConfig
from echostream.models.decoders.unit_decoder import (
    CTCTransformerUnitDecoder,
    T2UEncoder,
    strided_visibility,
)
from echostream.models.kv_cache import TRIM_SLACK

DIM, VOCAB = 8, 15


def make(**options):
    config = UnitDecoderConfig(
        **{
            "layers": 2,
            "upsample_ratio": 3,
            "embed_dim": DIM,
            "attention_heads": 2,
            "ffn_dim": 16,
            **options,
        }
    )
    return CTCTransformerUnitDecoder(config, VOCAB).double().eval()


def text(count):
    return torch.randn(1, count, DIM, dtype=torch.double)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["upsample", "streamspeech"])
@pytest.mark.parametrize("context", [None, 3])
@pytest.mark.parametrize("writes", [[1] * 7, [3, 1, 2, 1], [7]])
def test_incremental_equals_training_form(writes, context, positions):
    decoder = make(positions=positions, context_tokens=context)
    x = text(7)
    visible = torch.tensor([[end for start, end in spans(writes) for _ in range(end - start)]])
    whole = decoder(x.transpose(0, 1), visible_text=visible)
    state, pieces = decoder.init_state(), []
    for start, end in spans(writes):
        logits, state = decoder.step(x[:, start:end], state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-12, rtol=0)
    assert whole.shape == (1, 21, VOCAB) and state.length == 21


def spans(writes):
    ends = torch.tensor(writes).cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


@torch.no_grad()
def test_units_already_written_never_change():
    """Causality: later text states leave earlier copies alone once they were written."""
    decoder = make()
    x = text(6)
    visible = torch.tensor([[2, 2, 4, 4, 6, 6]])
    changed = x.clone()
    changed[:, 4:] += 1
    first = decoder(x.transpose(0, 1), visible_text=visible)
    second = decoder(changed.transpose(0, 1), visible_text=visible)
    assert torch.equal(first[:, :12], second[:, :12])
    assert (first[:, 12:] - second[:, 12:]).abs().max() > 1e-6


@torch.no_grad()
def test_ragged_batch():
    decoder = make()
    x = torch.randn(5, 2, DIM, dtype=torch.double)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    batch = decoder(x, padding)
    alone = decoder(x[:3, 1:])
    torch.testing.assert_close(batch[1:, :9], alone, atol=1e-12, rtol=0)


@torch.no_grad()
def test_copies_of_one_state_differ_by_position():
    decoder = make(positions="upsample", layers=1)
    same = torch.zeros(1, 1, DIM, dtype=torch.double)
    logits, _ = decoder.step(same, decoder.init_state())
    assert (logits[0, 0] - logits[0, 1]).abs().max() > 1e-6


@torch.no_grad()
def test_empty_step_and_bounded_state():
    decoder = make(context_tokens=4)
    logits, state = decoder.step(text(0), decoder.init_state())
    assert logits.shape == (1, 0, VOCAB)
    for _ in range(300):
        _, state = decoder.step(text(2), state)
        for cache, window, new in ((state.cache, 4 * 3, 6), (state.sources, 4, 2)):
            assert cache.stored[0] <= window + 2 * TRIM_SLACK
            # Memory grows to the next power of two with room for half as many more.
            assert cache.capacity <= 3 * (window + 2 * TRIM_SLACK + new)
    assert state.length == 1800


@torch.no_grad()
@pytest.mark.parametrize("layers", [0, 2])
def test_t2u_encoder_streams(layers):
    config = T2UEncoderConfig(layers=layers, attention_heads=2, ffn_dim=16, context_tokens=4)
    encoder = T2UEncoder(config, DIM).double().eval()
    x = text(9)
    whole = encoder(x)
    if not layers:
        assert torch.equal(whole, x)
    state, pieces = encoder.init_state(), []
    for piece in x.split(2, dim=1):
        out, state = encoder.step(piece, state)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-12, rtol=0)


def test_strided_visibility():
    assert strided_visibility(5, lagging_k2=0, stride_n2=2).tolist() == [[2, 2, 4, 4, 5]]
    assert strided_visibility(4, lagging_k2=1, stride_n2=1).tolist() == [[2, 3, 4, 4]]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        strided_visibility(4, lagging_k2=0, stride_n2=0)


@torch.no_grad()
def test_long_streams_equal_forward_behind_the_window():
    decoder = make(context_tokens=4)
    steps = 4 * TRIM_SLACK
    x = text(steps)
    visible = torch.arange(1, steps + 1)[None]
    whole = decoder(x.transpose(0, 1), visible_text=visible)
    state, pieces = decoder.init_state(), []
    for piece in x.split(1, dim=1):
        logits, state = decoder.step(piece, state)
        pieces.append(logits)
    assert state.cache.offset[0] > 0 and state.sources.offset[0] > 0
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-12, rtol=0)


@torch.no_grad()
def test_ragged_batch_with_a_window_shorter_than_the_text():
    decoder = make(context_tokens=4)
    x = torch.randn(12, 2, DIM, dtype=torch.double)
    padding = torch.arange(12)[None] >= torch.tensor([[12], [3]])
    batch = decoder(x, padding)
    torch.testing.assert_close(batch[1:, :9], decoder(x[:3, 1:]), atol=1e-12, rtol=0)
