"""Policies that judge what was decoded: what they get to see in streams, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from echostream.config import (
    ChunkConformerConfig,
    EndpointConfig,
    MTDecoderConfig,
    PolicyConfig,
)
from echostream.models.decoders.alignatt_policy import aligned_frame
from echostream.models.decoders.ctc_decoder_policy import PolicyAction
from echostream.models.decoders.hypothesis import Hypothesis
from echostream.models.decoders.policies import POLICIES
from echostream.models.echostream_model import seeded_model
from echostream.streamspeech.recompute import StreamSpeechPipeline
from echostream.synthetic import syllables, synthetic_clip
from echostream.text import WORD_START, Vocabulary
from echostream.translator.judging import attention_layer, whole_words
from echostream.translator.pipeline import Pipeline
from tests.streams import push, total

RATE = 16000
CHUNK = 5120
ALIGNATT = PolicyConfig(name="alignatt", attention_frames=6, max_len=12)


@pytest.fixture(scope="module")
def clip():
    return synthetic_clip(3.1, RATE, seed=3)


@dataclass(frozen=True)
class Told:
    """Another policy, which keeps what it was told."""

    inner: object
    drafts: list
    counts_translation: bool = True

    @property
    def evidence(self):
        return self.inner.evidence

    def decide(self, *args):
        return self.inner.decide(*args)

    def stands(self, draft, config):
        verdict = self.inner.stands(draft, config)
        self.drafts.append((draft, verdict))
        return verdict


@pytest.fixture
def drafts(monkeypatch):
    """What AlignAtt is asked from now on, and how it answers."""
    told = []
    monkeypatch.setitem(POLICIES, "alignatt", Told(POLICIES["alignatt"], told))
    return told


@pytest.mark.parametrize("endpoint", ["off", "pause"])
@pytest.mark.parametrize("options", [{}, {"beam": 3}, {"chunk_ms": 640}], ids=str)
def test_any_way_of_pushing_gives_the_same_result(double_system, clip, endpoint, options):
    settings = EndpointConfig(endpoint, endpoint_ms=120, min_tokens=2)
    policy = replace(ALIGNATT, whole_word=False)
    pipeline = Pipeline(double_system, policy=policy, endpoint=settings, **options)
    whole, _ = push(pipeline, clip, RATE, len(clip))
    assert any(o.mt_tokens for o in whole[:-1]), "something must be written on the way"
    for size in (CHUNK, 7777):
        outputs, _ = push(pipeline, clip, RATE, size)
        assert total(outputs) == total(whole)
    changed = clip.copy()
    changed[CHUNK * 4 :] = 0.3
    others, _ = push(pipeline, changed, RATE, len(clip))
    heard = len([o for o in whole if o.source_ms <= 1000 * 4 * CHUNK / RATE])
    assert total(whole[:heard]) == total(others[:heard])


def test_streams_together_equal_streams_alone(double_system, drafts):
    """Interleaved, with one that begins later and one that ends earlier."""
    pipeline = Pipeline(double_system, policy=ALIGNATT, task="s2tt")
    clips = [synthetic_clip(seconds, RATE, seed=seed) for seed, seconds in ((1, 3), (2, 2), (3, 3))]
    expected = [push(pipeline, clip, RATE, CHUNK)[0] for clip in clips]
    alone, drafts[:] = list(drafts), []
    states, outputs = [pipeline.init_state() for _ in clips], [[] for _ in clips]
    for turn in range(12):
        going = []
        for index, clip in enumerate(clips):
            start = (turn - index) * CHUNK
            if 0 <= start < len(clip):
                last = start + CHUNK >= len(clip)
                part = clip[start : start + CHUNK]
                states[index] = pipeline.accept(part, RATE, states[index], final=last)
                going.append(index)
        for row, (new, state) in pipeline.step_states([states[index] for index in going]):
            outputs[going[row]] += new
            states[going[row]] = state
    assert all(state.finished for state in states)
    for one, other in zip(outputs, expected, strict=True):
        assert total(one) == total(other)

    def told(drafts):
        return sorted((d.counts.source_ms, d.tokens, len(d.attention), v) for d, v in drafts)

    assert told(drafts) == told(alone) and {verdict for _, verdict in drafts} == {True, False}


def test_nothing_written_rests_on_the_newest_frames(double_system, clip, drafts):
    pipeline = Pipeline(double_system, policy=ALIGNATT, task="s2tt")
    outputs, _ = push(pipeline, clip, RATE, CHUNK)
    heard = np.cumsum([o.encoder_frames for o in outputs])
    by_time = {o.source_ms: (o, frames) for o, frames in zip(outputs, heard, strict=True)}
    assert not any(draft.counts.source_finished for draft, _ in drafts)
    stood = {}
    for draft, verdict in drafts:
        output, frames = by_time[draft.counts.source_ms]
        assert len(draft.attention) == frames and sum(draft.attention) == pytest.approx(1)
        assert verdict == (aligned_frame(draft.attention) < frames - 6)
        stood.setdefault(output.source_ms, []).append(verdict)
        if verdict:
            assert output.mt_tokens[: len(draft.tokens)] == draft.tokens
        assert draft.hypothesis is None and draft.posteriors is None
    assert any(False in verdicts for verdicts in stood.values())
    for source_ms, verdicts in stood.items():
        assert False not in verdicts[:-1], "decoding stops at the first that may not stand"
        assert len(by_time[source_ms][0].mt_tokens) == sum(verdicts)


def test_the_end_of_a_sentence_writes_everything(double_system, clip):
    """Where all frames count as the newest ones, all is written at the end, as if in one go."""
    policy = replace(ALIGNATT, attention_frames=10_000)
    outputs, _ = push(Pipeline(double_system, policy=policy, task="s2tt"), clip, RATE, CHUNK)
    assert not any(o.mt_tokens for o in outputs[:-1])
    never = PolicyConfig(lagging_k1=1000, max_len=12)
    expected, _ = push(Pipeline(double_system, policy=never, task="s2tt"), clip, RATE, CHUNK)
    assert outputs[-1].mt_tokens == expected[-1].mt_tokens != ()


@dataclass(frozen=True)
class Patient:
    """Writes at most two subwords at a time, none twice in a sentence, and none while the
    recogniser's newest frame holds a token: a rule that needs what AlignAtt does not."""

    evidence: frozenset = frozenset({"posteriors", "hypothesis"})
    counts_translation: bool = True

    def decide(self, counts, state, config, whole_word):
        if counts.source_finished:
            return PolicyAction(config.max_len, until_eos=True), state
        return PolicyAction(config.max_len), state

    def stands(self, draft, config):
        asr, _ = draft.posteriors
        seen = (*draft.hypothesis, *draft.tokens[:-1])
        return int(asr[-1].argmax()) == 0 and len(draft.tokens) < 3 and draft.tokens[-1] not in seen


def test_a_policy_may_see_posteriors_and_the_hypothesis(double_system, clip, monkeypatch):
    told = []
    monkeypatch.setitem(POLICIES, "wait_k", Told(Patient(), told))
    settings = EndpointConfig("pause", endpoint_ms=120, min_tokens=2)
    pipeline = Pipeline(
        double_system, policy=PolicyConfig(name="wait_k"), endpoint=settings, task="s2tt"
    )
    state, written, sentence = pipeline.init_state(), [], 0
    for start in range(0, len(clip) - CHUNK, CHUNK):
        told.clear()
        outputs, state = pipeline.step(clip[start : start + CHUNK], RATE, state)
        if len(outputs) > 1 or outputs[0].sentence != sentence:
            # A sentence ended inside: its successor knows nothing of it.
            sentence = outputs[-1].sentence
            written = [t for o in outputs if o.sentence == sentence for t in o.mt_tokens]
            assert state.hypothesis == tuple(written)
            continue
        for draft, _ in told:
            assert draft.attention is None and draft.hypothesis == tuple(written)
            frames = outputs[0].encoder_frames
            for head, name in zip(draft.posteriors, ("source", "target"), strict=True):
                size = getattr(double_system.config, f"{name}_vocab_size")
                assert head.shape == (frames, size)
                torch.testing.assert_close(head.exp().sum(-1), torch.ones(frames))
        written += outputs[0].mt_tokens
        assert len(set(written)) == len(written) and len(outputs[0].mt_tokens) <= 2
        if outputs[0].sentence_end:
            sentence, written = sentence + 1, []
    assert sentence > 0, "the hypothesis must have begun anew"


class Listed:
    """Stands for :class:`TextEnds` and keeps what it is told of the decoder's wishes."""

    def __init__(self):
        self.wishes = []

    def observe(self, emitted, frames, state):
        return state

    def find(self, state):
        return None

    def decided(self, wishes, state):
        self.wishes.append(wishes)
        return state


def test_a_refused_subword_is_no_wish_to_end(double_system, clip):
    policy = replace(ALIGNATT, attention_frames=10_000)
    pipeline = Pipeline(double_system, policy=policy, task="s2tt")
    pipeline.text_ends = Listed()
    outputs, _ = push(pipeline, clip, RATE, CHUNK)
    assert not any(o.mt_tokens for o in outputs[:-1])
    assert pipeline.text_ends.wishes == [False], "the end of the source alone says something"


def test_the_wish_to_end_counts_where_more_was_expected(double_system, clip, monkeypatch):
    """AlignAtt asks the decoder at every chunk; that it has nothing to add says something only
    where the CTC head heard more than was written."""
    decoder = type(double_system.model.target_unigram_decoder)
    asked = []

    def ending(self, hidden, first, transcribes):
        scores = torch.full((*hidden.shape[:2], self.embed_tokens.num_embeddings), -5.0)
        # One subword, then end-of-sentence.
        for row, position in enumerate(first):
            for at in range(hidden.size(1)):
                scores[row, at, self.eos if position + at else 7] = 0.0
        return scores

    monkeypatch.setattr(decoder, "_log_probs", ending)
    pipeline = Pipeline(double_system, policy=replace(ALIGNATT, attention_frames=1), task="s2tt")
    pipeline.text_ends = Listed()
    decide = pipeline.decide

    def noting(counts, *args):
        # At every second chunk the CTC head has heard one subword more than was written.
        asked.append(replace(counts, st=counts.written + len(asked) % 2))
        return decide(asked[-1], *args)

    pipeline.decide = noting
    outputs, _ = push(pipeline, clip, RATE, CHUNK)
    assert [o.mt_tokens for o in outputs if o.mt_tokens] == [(7,)]
    going = [c for c in asked if not c.source_finished]
    silent = [c for c in going if c.written == 1]
    expected = [c.st > c.written for c in silent]
    assert pipeline.text_ends.wishes.count(True) == sum(expected) > 1
    assert len(silent) > sum(expected) + 1


def test_a_refused_subword_tells_where_the_word_before_ends():
    def found(tokens, refused):
        return Hypothesis(tokens, torch.zeros(1, len(tokens), 1), None, False, 0.0, refused)

    def starts(token):
        return token >= 10

    assert whole_words(found((10, 1, 11), None), starts) == 2
    assert whole_words(found((10, 1, 11), 12), starts) == 3
    assert whole_words(found((10, 1, 11), 2), starts) == 2
    assert whole_words(found((), 12), starts) == 0
    assert whole_words(found((10,), 1), starts) == 0


def test_whole_words_alone_are_written(double_system, clip):
    # With a vocabulary of whole words only, every subword starts one.
    words = [WORD_START + piece.strip(WORD_START) + "x" for piece in syllables(60)]
    system = replace(double_system, target_vocabulary=Vocabulary(words))
    pipeline = Pipeline(system, policy=replace(ALIGNATT, whole_word=True), task="s2tt")
    state, written = pipeline.init_state(), []
    for start in range(0, len(clip) - CHUNK, CHUNK):
        outputs, state = pipeline.step(clip[start : start + CHUNK], RATE, state)
        written += [token for output in outputs for token in output.mt_tokens]
        mt = state.model.mt
        assert mt.length == state.written == len(written)
        assert mt.last_token == (written[-1] if written else 2)
    assert written


def test_provisional_frames_are_among_the_newest(double_system, clip, drafts):
    """The chunk Conformer's last frames will still change: they are looked at, and count."""
    conformer = ChunkConformerConfig(
        conv_channels=8, embed_dim=32, layers=2, ffn_dim=32, depthwise_kernel_size=7
    )
    config = replace(double_system.config, encoder=conformer)
    system = replace(double_system, config=config, model=seeded_model(config, 1).double())
    pipeline = StreamSpeechPipeline(system, policy=ALIGNATT, task="s2tt")
    outputs, state = push(pipeline, clip, RATE, CHUNK)
    heard = {
        o.source_ms: frames
        for o, frames in zip(outputs, np.cumsum([o.encoder_frames for o in outputs]), strict=True)
    }
    assert drafts
    more = [len(draft.attention) - heard[draft.counts.source_ms] for draft, _ in drafts]
    assert min(more) >= 0 and max(more) > 0
    assert state.model.mt.source_length == sum(o.encoder_frames for o in outputs)


def test_the_layer_must_be_there(system):
    with pytest.raises(ValueError, match=r"attention_layer must be below .* 2 layers, got 2"):
        attention_layer(
            POLICIES["alignatt"],
            PolicyConfig(name="alignatt", attention_layer=2),
            MTDecoderConfig(layers=2),
        )
    with pytest.raises(ValueError, match="attention_layer must be below"):
        Pipeline(system, policy=PolicyConfig(name="alignatt", attention_layer=99))
    assert Pipeline(system, policy=PolicyConfig(attention_layer=99)).stages.attention_layer is None
