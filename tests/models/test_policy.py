"""The policy is a pure function of counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostream.config import PolicyConfig
from echostream.models.decoders.ctc_decoder_policy import (
    Counts,
    PolicyState,
    complete_words,
    decide_ctc,
    decide_wait_k,
    decide_wait_k_ctc,
    whole_word_mode,
)
from echostream.models.decoders.policies import POLICIES


def counts(asr, st_count, written, ms=0.0, finished=False):
    return Counts(asr, st_count, written, ms, finished)


@pytest.mark.parametrize(
    ("asr", "st_count", "written", "before", "config", "expected"),
    [
        (0, 0, 0, (0, 0), {}, 0),  # nothing heard
        (1, 0, 0, (0, 0), {}, 0),  # only the transcript grew
        (0, 1, 0, (0, 0), {}, 0),  # only the translation grew
        (1, 1, 0, (0, 0), {}, 1),
        (5, 3, 0, (0, 0), {}, 3),
        (5, 3, 2, (4, 2), {}, 1),
        (5, 3, 2, (5, 2), {}, 0),  # transcript did not grow since
        (5, 3, 0, (0, 0), {"lagging_k1": 2}, 1),
        (5, 3, 0, (0, 0), {"lagging_k1": 5}, 0),
        (5, 5, 0, (0, 0), {"stride_n": 2}, 4),
        (1, 5, 0, (0, 0), {"stride_n": 2}, 0),
        (9, 9, 0, (0, 0), {"max_len": 4}, 4),
    ],
)
def test_ctc_rule(asr, st_count, written, before, config, expected):
    decision, _ = decide_ctc(
        counts(asr, st_count, written), PolicyState(*before), PolicyConfig(**config), False
    )
    assert decision.max_new_tokens == expected and decision.write == (expected > 0)


@pytest.mark.parametrize(
    ("asr", "written", "before", "config", "expected"),
    [
        (0, 0, 0, {}, 0),  # nothing heard
        (4, 0, 0, {}, 4),
        (4, 3, 2, {}, 1),
        (4, 3, 4, {}, 0),  # no source subword since
        (9, 0, 0, {"lagging_k1": 3}, 6),
        (2, 0, 0, {"lagging_k1": 3}, 0),
        (9, 1, 5, {"lagging_k1": 3, "target_per_source": 0.5}, 2),
        (9, 0, 5, {"lagging_k1": 3, "target_per_source": 0.9, "stride_n": 2}, 4),
        (9, 0, 0, {"max_len": 4}, 4),
    ],
)
def test_wait_k_over_source_subwords(asr, written, before, config, expected):
    action, state = decide_wait_k_ctc(
        counts(asr, 0, written), PolicyState(before), PolicyConfig(**config), False
    )
    assert action.max_new_tokens == expected
    assert state.asr == max(asr, before)
    final, _ = decide_wait_k_ctc(
        counts(asr, 0, written, finished=True), PolicyState(before), PolicyConfig(**config), False
    )
    assert final.until_eos


def test_growth_is_remembered_even_if_nothing_may_be_written():
    config = PolicyConfig(lagging_k1=3)
    decision, state = decide_ctc(counts(4, 2, 0), PolicyState(), config, False)
    assert not decision.write and (state.asr, state.st) == (4, 2)
    decision, after = decide_ctc(counts(4, 5, 0), state, config, False)
    assert not decision.write and after == state


def test_whole_word_mode_decodes_one_more_and_drops_the_last_word():
    decision, _ = decide_ctc(counts(3, 3, 1), PolicyState(), PolicyConfig(), True)
    assert decision.max_new_tokens == 3 and decision.drop_last_word
    assert not whole_word_mode(PolicyConfig(), 639)
    assert whole_word_mode(PolicyConfig(), 640)
    assert whole_word_mode(PolicyConfig(whole_word=True), 320)
    assert not whole_word_mode(PolicyConfig(whole_word=False), 2560)


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [([], 0), ([0], 0), ([1], 0), ([1, 0, 1], 1), ([1, 0, 0, 1], 2), ([0, 0], 1), ([1, 1], 0)],
)
def test_complete_words(tokens, kept):
    assert complete_words(tokens, lambda token: token == 0) == kept


def test_wait_k_counts_segments():
    config = PolicyConfig(name="wait_k", lagging_k1=2, stride_n=1, segment_size=320)
    state, written = PolicyState(), []
    total = 0
    for segment in range(1, 7):
        decision, state = decide_wait_k(counts(0, 0, total, 320.0 * segment), state, config, False)
        total += decision.max_new_tokens
        written.append(total)
    assert written == [0, 0, 1, 2, 3, 4]
    # Nothing new without a new segment.
    decision, _ = decide_wait_k(counts(0, 0, 0, 320.0 * 6 + 100), state, config, False)
    assert not decision.write


@given(
    st.sampled_from(["ctc", "wait_k"]),
    st.integers(0, 3),
    st.integers(1, 3),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30),
)
def test_properties(name, lag, stride, whole_word, growth):
    """Monotone, never more than the counts allow, and the end always finishes."""
    config = PolicyConfig(name=name, lagging_k1=lag, stride_n=stride)
    decide, state, written, asr, heard = POLICIES[name].decide, PolicyState(), 0, 0, 0
    for index, (a, b) in enumerate(growth, start=1):
        asr, heard = asr + a, heard + b
        now = counts(asr, heard, written, 320.0 * index)
        decision, following = decide(now, state, config, whole_word)
        again, _ = decide(now, state, config, whole_word)
        assert decision == again, "not a pure function"
        assert not decision.until_eos
        written += decision.max_new_tokens - (decision.drop_last_word and decision.write)
        allowed = heard if name == "ctc" else index
        assert 0 <= written <= max(allowed - lag, 0)
        # Asking again without new evidence never writes.
        repeat, _ = decide(
            counts(asr, heard, written, 320.0 * index), following, config, whole_word
        )
        assert not repeat.write or repeat.drop_last_word is False and decision.write is False
        state = following
    final, _ = decide(counts(asr, heard, written, 0.0, True), state, config, whole_word)
    assert final.write and final.until_eos and not final.drop_last_word


@pytest.mark.parametrize(
    "bad", [{"lagging_k1": -1}, {"stride_n": 0}, {"max_len": 0}, {"segment_size": 0}]
)
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        PolicyConfig(**bad)
