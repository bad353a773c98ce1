"""CTC heads: incremental equals whole, and the collapse does not depend on the cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from echostream.config import CTCHeadConfig
from echostream.models.decoders.ctc_collapse import CollapseState, collapse
from echostream.models.decoders.ctc_decoder import (
    CTCDecoder,
    CTCDecoderWithTransformerLayer,
    greedy_labels,
)
from echostream.streaming import state_bytes


def reference_collapse(labels, blank, ignore):
    merged = [v for i, v in enumerate(labels) if i == 0 or v != labels[i - 1]]
    return [v for v in merged if v != blank and v not in ignore]


@given(
    st.lists(st.integers(0, 4), max_size=40),
    st.lists(st.integers(0, 40), max_size=6),
)
def test_collapse_in_any_pieces_equals_collapsing_whole(labels, cuts):
    bounds = [0, *sorted(min(cut, len(labels)) for cut in cuts), len(labels)]
    state, emitted = CollapseState(), []
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        tokens, state = collapse(labels[start:end], state, blank=0, ignore=(1,))
        emitted += tokens
    assert emitted == reference_collapse(labels, 0, (1,))


def test_collapse_keeps_repeats_across_a_blank():
    assert collapse([2, 2, 0, 2, 3, 3], CollapseState(), blank=0)[0] == [2, 2, 3]


def test_greedy_never_chooses_forbidden_labels():
    logits = torch.randn(50, 6)
    logits[:, 1] = 100.0
    labels = greedy_labels(logits, (1, 3))
    assert not {1, 3} & set(labels)
    assert greedy_labels(logits[:0], (1,)) == []


@torch.no_grad()
@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("window", [None, 5])
def test_incremental_head_equals_whole(layers, window):
    config = CTCHeadConfig(layers=layers, attention_heads=2, ffn_dim=16, context_frames=window)
    head = CTCDecoderWithTransformerLayer(config, 8, 11).double().eval()
    x = torch.randn(1, 23, 8, dtype=torch.double)
    whole = head(x.transpose(0, 1)).transpose(0, 1)
    for cut in (1, 3, 7, 23):
        state, pieces = head.init_state(), []
        for piece in x.split(cut, dim=1):
            logits, state = head.step(piece, state)
            pieces.append(logits)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-12, rtol=0)


@torch.no_grad()
def test_head_with_layers_is_causal_and_bounded():
    config = CTCHeadConfig(layers=2, attention_heads=2, ffn_dim=16, context_frames=4)
    head = CTCDecoderWithTransformerLayer(config, 8, 11).double().eval()
    x = torch.randn(12, 1, 8, dtype=torch.double)
    changed = x.clone()
    changed[6:] += 1
    assert torch.equal(head(x)[:6], head(changed)[:6])
    state, sizes = head.init_state(), []
    for _ in range(400):
        _, state = head.step(torch.randn(1, 4, 8, dtype=torch.double), state)
        sizes.append(state_bytes(state))
    assert len(set(sizes)) == 1


def test_zero_layers_are_the_plain_projection():
    head = CTCDecoderWithTransformerLayer(CTCHeadConfig(layers=0), 8, 11)
    plain = CTCDecoder(8, 11)
    plain.load_state_dict(head.state_dict())
    x = torch.randn(5, 2, 8)
    assert torch.equal(head(x), plain(x)) and head(x).shape == (5, 2, 11)


@torch.no_grad()
def test_long_streams_equal_forward_behind_the_window():
    config = CTCHeadConfig(layers=2, attention_heads=2, ffn_dim=16, context_frames=8)
    head = CTCDecoderWithTransformerLayer(config, 8, 11).double().eval()
    x = torch.randn(1, 600, 8, dtype=torch.double)
    whole = head(x.transpose(0, 1)).transpose(0, 1)
    for cut in (1, 3, 150):
        state, pieces = head.init_state(), []
        for piece in x.split(cut, dim=1):
            logits, state = head.step(piece, state)
            pieces.append(logits)
        assert state.offset[0] > 0
        torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-12, rtol=0)
