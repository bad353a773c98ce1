"""Ends of sentences that only the text decoder noticed: where they are, what the next sentence
gets, and that nothing is lost or said twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from echostream.assets import model_dir
from echostream.checkpoint import load_model_dir
from echostream.config import EndpointConfig
from echostream.models.ctc_output import CTCOutput
from echostream.synthetic import synthetic_clip
from echostream.translator.pipeline import Pipeline
from echostream.translator.text_end import REACH, TextEnds, TextEndState
from tests.speech import TEST_AUDIO, speech_alone
from tests.streams import (
    CHUNK,
    by_sentence,
    check_written,
    encode,
    push,
    step_batch,
    told,
    total,
)

RATE = 16000
LOW = -9.0


def heard(scores, asr=(), st=()):
    """Frames whose log probability of end-of-sentence is given, and what was emitted at which."""
    ends = torch.tensor(scores, dtype=torch.float64)
    never = torch.full_like(ends, -torch.inf)
    logits = torch.stack([torch.log1p(-ends.exp()), never, ends], dim=1)
    tokens = tuple(range(10, 10 + len(asr)))
    return CTCOutput(tokens, tuple(st), (), (), None, len(scores), tuple(asr), tuple(st), logits)


def frames(first, count):
    """(1, count, 1) frames that are their numbers in the stream."""
    return torch.arange(first, first + count, dtype=torch.float32)[None, :, None]


def listen(finder, state, scores, asr=(), st=(), first=0):
    return finder.observe(heard(scores, asr, st), frames(first, len(scores)), state)


def test_the_next_sentence_begins_behind_the_likeliest_end():
    finder = TextEnds(2, -5.0)
    scores = [LOW] * 8
    scores[3] = -1.0
    state = listen(finder, TextEndState(), scores, asr=(1, 4, 5, 7), st=(2, 6))
    assert finder.find(state) is None, "the decoder has not wanted to end yet"
    state = finder.decided(True, state)
    rest = finder.find(state)
    assert rest.frames.flatten().tolist() == [4, 5, 6, 7]
    assert rest.asr == (0, 1, 3) and rest.st == (2,) and rest.scores == pytest.approx([LOW] * 4)


@pytest.mark.parametrize(
    ("tokens", "least", "found"), [(3, -1.5, True), (4, -1.5, False), (3, -0.5, False)]
)
def test_it_takes_tokens_behind_an_end_that_is_likely_enough(tokens, least, found):
    finder = TextEnds(tokens, least)
    scores = [LOW, -1.0, LOW, LOW, LOW]
    state = finder.decided(True, listen(finder, TextEndState(), scores, asr=(0, 2, 3, 4)))
    assert (finder.find(state) is not None) == found


def test_an_end_has_tokens_behind_it():
    """The likeliest frame of all does not count where too little has been said since."""
    finder = TextEnds(2, -5.0)
    state = listen(finder, TextEndState(), [LOW, -3.0, LOW, -0.1, LOW], asr=(0, 2, 4))
    rest = finder.find(finder.decided(True, state))
    assert rest.frames.flatten().tolist() == [2, 3, 4] and rest.asr == (0, 2)


def test_a_decoder_that_goes_on_has_not_ended():
    finder = TextEnds(1, -5.0)
    state = finder.decided(True, listen(finder, TextEndState(), [-1.0, LOW], asr=(1,)))
    assert finder.find(state) is not None
    assert finder.find(finder.decided(False, state)) is None


def test_what_lies_long_before_the_wish_is_forgotten_and_nothing_behind_it():
    finder = TextEnds(1, -20.0)
    state = listen(finder, TextEndState(), [LOW] * 100, asr=(5, 90))
    assert state.frames.size(1) == len(state.scores) == REACH
    assert state.frames[0, 0] == 100 - REACH and state.asr == (90 - 100 + REACH,)
    state = finder.decided(True, state)
    for part in range(1, 4):
        state = listen(finder, state, [LOW] * 100, first=100 * part)
        state = finder.decided(True, state)
    assert state.frames.size(1) == REACH + 300 and state.wished == REACH
    state = listen(finder, finder.decided(False, state), [LOW], first=400)
    assert state.frames.size(1) == REACH and state.frames[0, -1] == 400


def test_without_tokens_nothing_is_kept():
    finder = TextEnds(0, -5.0)
    state = finder.decided(True, listen(finder, TextEndState(), [0.0] * 9, asr=(3, 5)))
    assert state == TextEndState() and finder.find(state) is None


class Scripted(TextEnds):
    """Ends the first sentence so many frames before the end of the chunk that is named."""

    def __init__(self, chunk, back):
        super().__init__(1, 0.0)
        self.chunk, self.back, self.heard_chunks = chunk, back, 0

    def observe(self, heard, frames, state):
        self.heard_chunks += 1
        state = replace(state, wished=0)  # nothing is forgotten
        return super().observe(heard, frames, state)

    def find(self, state):
        if self.heard_chunks != self.chunk:
            return None
        cut = len(state.scores) - self.back
        asr, st = (tuple(at - cut for at in part if at >= cut) for part in (state.asr, state.st))
        return TextEndState(state.frames[:, cut:], state.scores[cut:], asr, st)


@pytest.mark.parametrize("back", [20, 8, 5], ids=["earlier", "at the chunk", "inside it"])
@torch.no_grad()
def test_a_sentence_cut_afterwards_is_what_its_frames_give(double_system, back):
    clip = synthetic_clip(4.1, RATE, seed=3)
    system, model = double_system, double_system.model
    plain, _ = push(Pipeline(system), clip, RATE, len(clip))
    pipeline = Pipeline(system, endpoint=EndpointConfig("learned", endpoint_ms=60_000))
    before, _ = push(pipeline, clip, RATE, len(clip))
    assert {o.sentence for o in before} == {0}, "the random model ends no sentence"
    pipeline.text_ends = Scripted(5, back)
    outputs, _ = push(pipeline, clip, RATE, len(clip))
    for name in ("asr_tokens", "st_tokens"):
        tokens = [t for o in outputs for t in getattr(o, name)]
        assert tokens == [t for o in plain for t in getattr(o, name)], "once each, in order"
    assert sum(o.encoder_frames for o in outputs) == sum(o.encoder_frames for o in plain)
    first, second = by_sentence(outputs).values()
    assert [o.sentence_end for o in first] == [False] * (len(first) - 1) + [True]
    parts = encode(system, clip)
    whole = torch.cat(parts, dim=1)
    stop = sum(part.size(1) for part in parts[:5])
    start = stop - back
    state, written = model.init_state(), []
    for output in second:
        state = model.read(whole[:, start:stop], state)
        start, stop = stop, stop + 8
        if output.mt_tokens or output.final:
            state = check_written(model, output, state)
            written += output.mt_tokens
    assert written, "the random model should write something"


@pytest.fixture(scope="module")
def touching():
    """Two shipped utterances, nothing between their speech, whose boundary the head misses."""
    wavs = (TEST_AUDIO / "wav_list.txt").read_text().split()[4:6]
    return np.concatenate([speech_alone(wav) for wav in wavs])


@pytest.fixture(scope="module")
def shipped():
    return load_model_dir(model_dir("echostream"))


def test_a_missed_end_is_found_whatever_the_audio_comes_in(shipped, touching):
    pipeline = Pipeline(shipped, task="s2tt")
    whole, _ = push(pipeline, touching, RATE, len(touching))
    endpoint = replace(shipped.config.endpoint, text_end_tokens=0)
    missed, _ = push(Pipeline(shipped, task="s2tt", endpoint=endpoint), touching, RATE, 9999)
    said = [
        {sentence for o in outputs if o.mt_tokens for sentence in [o.sentence]}
        for outputs in (missed, whole)
    ]
    assert said == [{0}, {0, 1}]
    assert total(missed)["asr"] == total(whole)["asr"]
    for size in (1600, 7777):
        outputs, _ = push(pipeline, touching, RATE, size)
        assert told(outputs) == told(whole)


def test_missed_ends_of_streams_side_by_side(shipped, touching):
    pipeline = Pipeline(shipped, task="s2tt")
    streams = [touching, np.roll(touching, 3000), touching[::-1].copy()]
    alone = [push(pipeline, samples, RATE, CHUNK)[0] for samples in streams]
    states = [pipeline.init_state() for _ in streams]
    together: list[list] = [[] for _ in streams]
    for start in range(0, len(touching), CHUNK):
        last = start + CHUNK >= len(touching)
        pushes = [
            (samples[start : start + CHUNK], RATE, state, last)
            for samples, state in zip(streams, states, strict=True)
        ]
        for row, (outputs, state) in enumerate(step_batch(pipeline, pushes)):
            together[row] += outputs
            states[row] = state
    assert max(o.sentence for o in alone[0]) >= 1
    assert [told(outputs) for outputs in together] == [told(outputs) for outputs in alone]


def test_the_twin_hears_nothing_again():
    """A chunk Conformer starts anew with every sentence; it has no such ends."""
    baseline = load_model_dir(model_dir("streamspeech"))
    endpoint = replace(baseline.config.endpoint, text_end_tokens=4)
    assert Pipeline(baseline, endpoint=endpoint).text_ends.tokens == 0
    for method in ("off", "pause"):
        config = EndpointConfig(method, text_end_tokens=4)
        assert Pipeline(baseline, endpoint=config).text_ends.tokens == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"text_end_tokens": -1}, "text_end_tokens must be >= 0, got -1"),
        ({"text_end_score": 0.5}, "text_end_score must be <= 0, got 0.5"),
    ],
)
def test_bad_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        EndpointConfig("learned", **wrong)
