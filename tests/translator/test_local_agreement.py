"""Local agreement in streams: what is written was decoded twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from echostream.config import EndpointConfig, PolicyConfig
from echostream.models.decoders.ctc_decoder_policy import (
    Counts,
    PolicyState,
    common_prefix,
    decide_local_agreement,
)
from echostream.synthetic import synthetic_clip
from echostream.translator import judging
from echostream.translator import pipeline as pipeline_module
from echostream.translator.judging import agreed
from echostream.translator.pipeline import Pipeline
from tests.streams import push, total

RATE, CHUNK = 16000, 5120
AGREEMENT = PolicyConfig(name="local_agreement", max_len=12)


@pytest.fixture(scope="module")
def clip():
    return synthetic_clip(3.1, RATE, seed=3)


@pytest.fixture
def splits(monkeypatch):
    """Decoded, drafted before, and kept tokens of every decision."""
    seen, real = [], pipeline_module.agreed

    def noting(hypothesis, draft, before):
        kept = real(hypothesis, draft, before)
        seen.append((hypothesis.tokens, draft, kept.tokens))
        return kept

    monkeypatch.setattr(pipeline_module, "agreed", noting)
    return seen


def test_what_is_written_is_bounded_and_drafts_wait_for_new_source():
    config = PolicyConfig(name="local_agreement", target_per_source=0.5, max_len=9)
    heard = Counts(asr=4, st=0, written=1, source_ms=0, source_finished=False)
    action, state = decide_local_agreement(heard, PolicyState(), config, False)
    assert action.agreed and not action.until_eos and action.max_new_tokens == 4
    action, after = decide_local_agreement(heard, state, config, False)
    assert not action.write and after == state
    more = replace(heard, asr=40)
    assert decide_local_agreement(more, state, config, False)[0].max_new_tokens == 9
    ended = replace(heard, source_finished=True)
    action, _ = decide_local_agreement(ended, state, config, False)
    assert action.until_eos and not action.agreed and action.max_new_tokens == 4
    assert not decide_local_agreement(replace(ended, written=5), state, config, False)[0].write


def test_common_prefix():
    assert common_prefix((1, 2, 3), (1, 2, 4, 5)) == 2
    assert common_prefix((1, 2), (1, 2, 4)) == 2
    assert common_prefix((), (1,)) == 0


def test_what_is_written_was_decoded_twice(double_system, clip, splits):
    policy = replace(AGREEMENT, whole_word=False)
    pipeline = Pipeline(double_system, policy=policy, task="s2tt")
    outputs, state = push(pipeline, clip, RATE, CHUNK)
    following: tuple[int, ...] = ()
    for decoded, draft, kept in splits:
        assert draft == following  # what was not written last time
        assert kept == decoded[: common_prefix(decoded, draft)]
        following = decoded[len(kept) :]
    assert state.draft == following
    written = [output.mt_tokens for output in outputs[:-1] if output.mt_tokens]
    assert written == [kept for _, _, kept in splits if kept] != []
    assert any(len(kept) < len(decoded) for decoded, _, kept in splits)


def test_what_the_draft_before_did_not_say_is_taken_back(double_system):
    decoder = double_system.model.target_unigram_decoder
    source = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(1)).double()
    before = decoder.read(source, decoder.init_state())
    (whole,) = decoder.decode_rows(before, [5], False)
    assert len(whole.tokens) == 5
    part = agreed(whole, (*whole.tokens[:2], -1), before)
    assert part.tokens == whole.tokens[:2] and part.refused == whole.tokens[2]
    (rest,) = decoder.decode_rows(part.state, [3], False)
    assert rest.tokens == whole.tokens[2:]
    assert agreed(whole, whole.tokens, before) is whole


def test_a_word_that_may_go_on_is_drafted_again(double_system, clip, splits):
    policy = replace(AGREEMENT, whole_word=True)
    push(Pipeline(double_system, policy=policy, task="s2tt"), clip, RATE, CHUNK)
    for (decoded, _, kept), (_, draft, _) in zip(splits, splits[1:], strict=False):
        dropped = len(decoded) - len(draft)  # written; the rest is the draft
        assert 0 <= dropped <= len(kept) and draft == decoded[dropped:]


def test_no_more_is_taken_back_than_the_caches_hold(double_system, clip, splits, monkeypatch):
    """What two drafts disagree about and the word that may go on, together."""
    for module in (pipeline_module, judging):
        monkeypatch.setattr(module, "TRIM_SLACK", 2)
    policy = replace(AGREEMENT, whole_word=True)
    push(Pipeline(double_system, policy=policy, task="s2tt"), clip, RATE, CHUNK)
    assert len(splits) > 2 and any(len(decoded) > 2 for decoded, _, _ in splits)
    assert all(len(draft) <= 2 for _, draft, _ in splits)


@pytest.mark.parametrize("endpoint", ["off", "pause"])
def test_any_way_of_pushing_gives_the_same_result(double_system, clip, endpoint):
    settings = EndpointConfig(endpoint, endpoint_ms=120, min_tokens=2)
    pipeline = Pipeline(double_system, policy=AGREEMENT, endpoint=settings)
    whole, _ = push(pipeline, clip, RATE, len(clip))
    for size in (CHUNK, 7777):
        outputs, _ = push(pipeline, clip, RATE, size)
        assert total(outputs) == total(whole)


def test_streams_together_equal_streams_alone(double_system):
    pipeline = Pipeline(double_system, policy=AGREEMENT, task="s2tt")
    clips = [synthetic_clip(2.5, RATE, seed=seed) for seed in (1, 2, 3)]
    expected = [push(pipeline, clip, RATE, CHUNK)[0] for clip in clips]
    states, outputs = [pipeline.init_state() for _ in clips], [[] for _ in clips]
    for start in range(0, len(clips[0]), CHUNK):
        last = start + CHUNK >= len(clips[0])
        states = [
            pipeline.accept(clip[start : start + CHUNK], RATE, state, final=last)
            for clip, state in zip(clips, states, strict=True)
        ]
        for row, (new, state) in pipeline.step_states(states):
            outputs[row] += new
            states[row] = state
    for one, other in zip(outputs, expected, strict=True):
        assert total(one) == total(other)


def test_the_head_that_nobody_asks_does_not_run(double_system, clip):
    """Only policies that count the translation, and ends found in retrospect, need it."""
    pipeline = Pipeline(double_system, policy=AGREEMENT, task="s2tt")
    assert pipeline.stages.transcribe_only
    alone, _ = push(pipeline, clip, RATE, CHUNK)
    pipeline.stages.transcribe_only = False
    beside, _ = push(pipeline, clip, RATE, CHUNK)
    assert not any(output.st_tokens for output in alone) and any(o.st_tokens for o in beside)
    assert [output.mt_tokens for output in alone] == [output.mt_tokens for output in beside]
    settings = EndpointConfig("learned", text_end_tokens=4)
    counted = Pipeline(double_system, policy=AGREEMENT, task="s2tt", endpoint=settings)
    assert not counted.stages.transcribe_only
    assert not Pipeline(double_system, task="s2tt").stages.transcribe_only
