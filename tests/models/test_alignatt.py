"""AlignAtt: the rule on made-up attention, and the attention that the text decoder hands to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from echostream.config import MTDecoderConfig, PolicyConfig
from echostream.models.decoders.alignatt_policy import aligned_frame
from echostream.models.decoders.ctc_decoder_policy import Counts, Draft, PolicyState
from echostream.models.decoders.policies import POLICIES
from echostream.models.decoders.transformer_decoder import TransformerMTDecoder
from echostream.models.transformer_layer import MultiheadAttention, sinusoid
from echostream.streaming import join_rows

SOURCE, VOCAB = 12, 20
COUNTS = Counts(asr=3, st=2, written=1, source_ms=960, source_finished=False)
RULE = POLICIES["alignatt"]


def make(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"layers": 2, "embed_dim": 16, "attention_heads": 2, "ffn_dim": 24, **options}
    decoder = TransformerMTDecoder(MTDecoderConfig(**sizes), SOURCE, VOCAB).double().eval()
    for layer in decoder.layers:
        # Sharper than fresh weights: what is looked at must depend on the token.
        torch.nn.init.normal_(layer.encoder_attn.q_proj.weight, std=1.0)
        torch.nn.init.normal_(layer.encoder_attn.k_proj.weight, std=1.0)
    return decoder


def frames(count):
    return torch.randn(1, count, SOURCE, dtype=torch.double)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("attention", "newest", "stands"),
    [
        ([0.7, 0.1, 0.1, 0.1], 1, True),
        ([0.1, 0.1, 0.1, 0.7], 1, False),
        ([0.1, 0.1, 0.7, 0.1], 1, True),  # the last but one is none of the newest 1
        ([0.1, 0.1, 0.7, 0.1], 2, False),
        ([0.4, 0.2, 0.2, 0.2], 3, True),  # most in one frame counts, not most in all
        ([0.7, 0.1, 0.1, 0.1], 4, False),  # all frames are new
        ([0.7, 0.3], 8, False),
        ([0.3, 0.2, 0.3, 0.2], 2, False),  # of equal frames the newest
        ([1.0], 1, False),
    ],
)
def test_rule(attention, newest, stands):
    config = PolicyConfig(name="alignatt", attention_frames=newest)
    assert RULE.stands(Draft(COUNTS, (5,), attention), config) is stands


def test_aligned_frame():
    assert aligned_frame([0.2, 0.5, 0.3]) == 1
    assert aligned_frame([0.4, 0.2, 0.4]) == 2


def test_decides_at_every_chunk_and_flushes_at_the_end():
    config = PolicyConfig(name="alignatt", max_len=50, lagging_k1=9, stride_n=4)
    action, state = RULE.decide(COUNTS, PolicyState(), config, False)
    assert (action.max_new_tokens, action.until_eos, action.drop_last_word) == (50, False, False)
    assert action.expected and state == PolicyState()
    assert RULE.decide(COUNTS, PolicyState(), config, True)[0].drop_last_word
    done = Counts(asr=3, st=2, written=2, source_ms=960, source_finished=False)
    assert not RULE.decide(done, PolicyState(), config, False)[0].expected
    ended = Counts(asr=3, st=2, written=1, source_ms=960, source_finished=True)
    action, _ = RULE.decide(ended, PolicyState(), config, True)
    assert (action.max_new_tokens, action.until_eos, action.drop_last_word) == (50, True, False)


def test_the_other_policies_ask_for_nothing():
    assert {name for name, policy in POLICIES.items() if policy.evidence} == {"alignatt"}


def test_settings_are_checked():
    with pytest.raises(ValueError, match="attention_frames must be >= 1, got 0"):
        PolicyConfig(attention_frames=0)
    with pytest.raises(ValueError, match="attention_layer must be >= -1, got -2"):
        PolicyConfig(attention_layer=-2)


def by_hand(decoder, tokens, source, visible):
    """Cross-attention of every layer, (layers, T, S) with heads averaged, of a whole sentence whose
    position t sees the frames that ``visible`` [T, S] marks: everything written out."""

    def split(x, attention):
        return x.view(x.size(0), attention.heads, -1).permute(1, 0, 2)

    def attend(attention, query, memory, mask):
        q = split(attention.q_proj(query), attention)
        k = split(attention.k_proj(memory), attention)
        v = split(attention.v_proj(memory), attention)
        scores = torch.einsum("htd,hsd->hts", q, k) / math.sqrt(q.size(-1))
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        mixed = torch.einsum("hts,hsd->htd", weights, v).permute(1, 0, 2).flatten(1)
        return attention.out_proj(mixed), weights.mean(0)

    length, dim = len(tokens), decoder.config.embed_dim
    index = torch.arange(length) + decoder.pad + 1
    x = math.sqrt(dim) * decoder.embed_tokens(torch.tensor(tokens))
    x = x + sinusoid(index, dim, dtype=x.dtype)
    causal = torch.ones(length, length).tril().bool()
    if decoder.config.context_tokens is not None:
        causal &= ~torch.ones(length, length).tril(-decoder.config.context_tokens).bool()
    found = []
    for layer in decoder.layers:
        normed = layer.self_attn_layer_norm(x)
        x = x + attend(layer.self_attn, normed, normed, causal)[0]
        mixed, weights = attend(
            layer.encoder_attn, layer.encoder_attn_layer_norm(x), source, visible
        )
        x = x + mixed
        found.append(weights)
        x = x + layer.fc2(F.relu(layer.fc1(layer.final_layer_norm(x))))
    return torch.stack(found)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_attention_equals_a_plain_reimplementation(window, layer):
    """Token by token while the source grows, within and beyond the windows."""
    decoder = make(source_context_frames=window, context_tokens=3)
    source, tokens, seen_at = frames(11), [2, 7, 9, 4, 11, 5], [3, 3, 4, 8, 8, 11]
    visible = torch.zeros(6, 11, dtype=torch.bool)
    for position, end in enumerate(seen_at):
        visible[position, 0 if window is None else max(end - window, 0) : end] = True
    every = by_hand(decoder, tokens, source[0], visible)
    expected = every.mean(0) if layer == -1 else every[layer]
    state, read = decoder.init_state(), 0
    for position, end in enumerate(seen_at):
        state = decoder.read(source[:, read:end], state)
        read = end
        inputs = torch.tensor([[tokens[position]]])
        plain, _ = decoder.step(inputs, state)
        hidden, state, weights = decoder.step_attending(inputs, state, layer)
        close(hidden, plain)
        (own,) = state.sources.newest_slots(window)
        close(weights[0, 0, own], expected[position][visible[position]])
        assert float(weights.sum()) == pytest.approx(1)


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 3])
def test_rows_equal_rows_alone(beam):
    """Rows at different positions, with sources within and beyond the window, all but one judged,
    each by its own attention."""
    decoder = make(seed=4, source_context_frames=9, context_tokens=4)
    lengths, texts = [3, 14, 9, 30], [0, 2, 5, 1]
    alone = []
    for length, text in zip(lengths, texts, strict=True):
        state = decoder.read(frames(length), decoder.init_state())
        if text:
            state = decoder.decode(state, max_new_tokens=text, final=False).state
        alone.append(state)

    def judges(log):
        def judge(row):
            def stands(tokens, attention):
                log[row].append((tokens, attention))
                return aligned_frame(attention) < len(attention) - 4

            return stands

        return [judge(0), judge(1), None, judge(3)]

    apart, together = [[] for _ in alone], [[] for _ in alone]
    expected = [
        decoder.decode_rows(
            state, [6], False, beam=beam, stands=[judges(apart)[row]], attention_layer=-1
        )[0]
        for row, state in enumerate(alone)
    ]
    found = decoder.decode_rows(
        join_rows(alone), [6] * 4, False, beam=beam, stands=judges(together), attention_layer=-1
    )
    for one, own in zip(found, expected, strict=True):
        assert (one.tokens, one.refused) == (own.tokens, own.refused)
        close(one.hidden, own.hidden)
        assert one.state.cache.lengths == own.state.cache.lengths
        assert one.state.last_tokens == own.state.last_tokens
    assert any(one.refused for one in found) and any(one.tokens for one in found)
    for a, b in zip(together, apart, strict=True):
        assert [tokens for tokens, _ in a] == [tokens for tokens, _ in b]
        for (_, one), (_, own) in zip(a, b, strict=True):
            assert len(one) <= 9 and one == pytest.approx(own, abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("allowed", [0, 2, 9])
def test_decoding_stops_before_the_first_token_that_may_not_stand(beam, allowed):
    decoder = make()
    state = decoder.read(frames(7), decoder.init_state())
    free = decoder.decode(state, max_new_tokens=5, final=True, beam=beam)
    asked = []

    def stands(tokens, attention):
        asked.append(tokens)
        assert attention is None, "no attention was asked for"
        return len(tokens) <= allowed

    (held,) = decoder.decode_rows(state, [5], True, beam=beam, stands=[stands])
    count = min(allowed, len(free.tokens))
    assert held.tokens == free.tokens[:count]
    assert asked == [free.tokens[: n + 1] for n in range(min(count + 1, len(free.tokens)))]
    if allowed == 9:
        assert held.refused is None and held.finished == free.finished
        return
    # As if no more had been written: what comes next is what would come without the attempt.
    assert held.refused == free.tokens[count] and not held.finished
    assert held.hidden.size(1) == held.state.length == count
    again = decoder.decode(held.state, max_new_tokens=5 - count, final=True, beam=1)
    fresh = state
    if count:
        inputs = torch.tensor([[decoder.eos, *free.tokens[: count - 1]]])
        _, fresh = decoder.step(inputs, state)
        fresh = fresh.truncate(count, free.tokens[count - 1])
    assert again.tokens == decoder.decode(fresh, max_new_tokens=5 - count, final=True).tokens


@torch.no_grad()
def test_beam_is_judged_by_the_attention_of_its_own_tokens():
    decoder = make(seed=2)
    state = decoder.read(frames(8), decoder.init_state())
    log = []

    def stands(tokens, attention):
        log.append((tokens, attention))
        return True

    (found,) = decoder.decode_rows(state, [4], False, beam=3, stands=[stands], attention_layer=1)
    assert [tokens for tokens, _ in log] == [
        found.tokens[: n + 1] for n in range(len(found.tokens))
    ]
    own = state
    for (_, attention), token in zip(log, (decoder.eos, *found.tokens), strict=False):
        _, own, weights = decoder.step_attending(torch.tensor([[token]]), own, 1)
        assert attention == pytest.approx(weights[0, 0].tolist(), abs=1e-12)


@torch.no_grad()
def test_weights_are_computed_only_for_those_who_ask(monkeypatch):
    decoder = make()
    calls = []
    original = MultiheadAttention.weights

    def counting(self, *args):
        calls.append(self)
        return original(self, *args)

    monkeypatch.setattr(MultiheadAttention, "weights", counting)
    state = decoder.read(frames(5), decoder.init_state())
    for beam in (1, 2):
        decoder.decode_rows(state, [3], False, beam=beam)
        decoder.decode_rows(state, [3], False, beam=beam, stands=[None], attention_layer=-1)
        decoder.decode_rows(state, [3], False, beam=beam, stands=[lambda tokens, seen: True])
    assert not calls
    decoder.decode_rows(state, [1], False, stands=[lambda tokens, seen: True], attention_layer=1)
    assert calls == [decoder.layers[1].encoder_attn]
