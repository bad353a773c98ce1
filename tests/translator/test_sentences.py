"""Sentences inside a stream: each as if it were alone behind the encoder, none lost, none said
twice, whatever the audio comes in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from echostream.config import ChunkConformerConfig, EndpointConfig, PolicyConfig
from echostream.models.echostream_model import seeded_model
from echostream.models.encoder import Encoded
from echostream.samples import check_samples
from echostream.streaming import PerRow, state_bytes
from echostream.synthetic import random_system, synthetic_clip
from echostream.text import Vocabulary
from echostream.translator.endpoint import EndpointState
from echostream.translator.pipeline import LEAD_FRAMES, Pipeline
from tests.streams import CHUNK, LEARNED, by_sentence, check_written, encode, push, total

RATE = 16000


class Scripted:
    """A finder that ends sentences behind given encoder frames of the stream."""

    def __init__(self, *frames, once=False):
        self.config = EndpointConfig("pause")
        self.frames = frames
        self.once = once

    def init_state(self):
        return EndpointState()

    def step(self, heard, state):
        # The frames of the stream so far are kept where the real finder counts silence.
        start, stop = state.silent, state.silent + heard.frames
        found = [f - start for f in self.frames if start < f <= stop]
        if found and self.once:
            self.frames = ()
        return found, EndpointState(silent=stop)

    def nothing_for_long(self, state):
        return False


def scripted(system, *frames, **options):
    pipeline = Pipeline(system, **options)
    pipeline.endpoints = Scripted(*frames)
    pipeline.restarts = False
    return pipeline


@pytest.fixture(scope="module")
def clip():
    return synthetic_clip(4.1, RATE, seed=3)


@pytest.mark.parametrize(
    "frames",
    [(30,), (31,), (25, 27), (23, 24, 31), (7,), (102,)],
    ids=["inside", "at a chunk's end", "two in a chunk", "three", "first chunk", "at the end"],
)
@torch.no_grad()
def test_a_sentence_is_what_its_frames_alone_would_give(double_system, clip, frames):
    """Text and units of every sentence equal decoding its encoder frames on fresh states."""
    pipeline = scripted(double_system, *frames)
    outputs, state = push(pipeline, clip, RATE, 4000)
    sentences = by_sentence(outputs)
    assert sorted(sentences) == list(range(len(frames) + 1))
    assert state.finished and outputs[-1].final
    parts = encode(double_system, clip)
    model = double_system.model
    edges = [0, *frames, sum(part.size(1) for part in parts)]
    assert sum(o.encoder_frames for o in outputs) == edges[-1]
    for index, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
        mine = sentences[index]
        assert sum(o.encoder_frames for o in mine) == last - first
        assert [o.sentence_end for o in mine] == [False] * (len(mine) - 1) + [True]
        # The same decisions again, on the sentence's own frames.
        state, position, written = model.init_state(), 0, []
        for output in mine:
            stop = position + output.encoder_frames
            whole = torch.cat(parts, dim=1)[:, first + position : first + stop]
            state, position = model.read(whole, state), stop
            if not output.mt_tokens and not output.sentence_end:
                continue
            if not any(o.asr_tokens for o in mine):
                continue
            state = check_written(model, output, state)
            written += output.units
        speech = np.concatenate([o.waveform for o in mine])
        if written:
            (samples,), _ = model.vocode([written], model.init_speech(), [1.0])
            assert len(speech) == len(samples)
        else:
            assert not len(speech)


@pytest.mark.parametrize("method", ["learned", "pause"])
def test_any_way_of_pushing_gives_the_same_sentences(ending_system, clip, method):
    config = EndpointConfig(method, endpoint_ms=120, min_tokens=2)
    pipeline = Pipeline(ending_system, endpoint=config)
    whole, _ = push(pipeline, clip, RATE, len(clip))
    assert max(by_sentence(whole)) > 1, "the random model should end sentences"
    for size in (160, 5120, 7777):
        outputs, _ = push(pipeline, clip, RATE, size)
        assert total(outputs) == total(whole)
        assert [(o.sentence, o.sentence_end) for o in outputs] == [
            (o.sentence, o.sentence_end) for o in whole
        ]


def test_learned_ends_are_no_words(ending_system, clip):
    outputs, _ = push(Pipeline(ending_system, endpoint=LEARNED), clip, RATE, len(clip))
    assert all(Vocabulary.eos not in o.asr_tokens + o.asr_tail for o in outputs)
    off, _ = push(Pipeline(ending_system), clip, RATE, len(clip))
    heard = [t for o in off for t in o.asr_tokens]
    assert Vocabulary.eos in heard
    assert [t for o in outputs for t in o.asr_tokens] == [t for t in heard if t != Vocabulary.eos]


def test_two_streams_of_sentences_do_not_touch(ending_system, clip):
    pipeline = Pipeline(ending_system, endpoint=LEARNED)
    other = synthetic_clip(4.1, RATE, seed=9)
    alone, _ = push(pipeline, clip, RATE, CHUNK)
    first, second = pipeline.init_state(), pipeline.init_state()
    mixed = []
    for start in range(0, len(clip), CHUNK):
        last = start + CHUNK >= len(clip)
        new, first = pipeline.step(clip[start : start + CHUNK], RATE, first, final=last)
        mixed += new
        _, second = pipeline.step(other[start : start + CHUNK], RATE, second, final=last)
    assert total(mixed) == total(alone)


def test_the_source_ends_right_behind_a_boundary(double_system, clip):
    samples = clip[: CHUNK * 4]
    state, outputs = (pipeline := scripted(double_system, 31)).init_state(), []
    for start in range(0, len(samples), CHUNK):
        new, state = pipeline.step(samples[start : start + CHUNK], RATE, state)
        outputs += new
    assert outputs[-1].sentence_end and outputs[-1].sentence == 0
    new, state = pipeline.step([], RATE, state, final=True)
    assert len(new) == 1 and new[0].final and new[0].sentence == 1 and state.finished
    # Only the frame that waited for the end is left, and nothing was said in it.
    assert new[0].encoder_frames <= 1


def test_off_is_one_sentence(ending_system, clip):
    """Without endpoints the stream is decoded as it always was: one text from one source."""
    pipeline = Pipeline(ending_system)
    outputs, state = push(pipeline, clip, RATE, 4000)
    assert {o.sentence for o in outputs} == {0}
    model, parts = ending_system.model, encode(ending_system, clip)
    reference, policy, counts = model.init_state(), pipeline.policy_config, [0, 0]
    for output, frames in zip(outputs, parts, strict=True):
        encoded = Encoded(frames, PerRow([frames.size(1)]))
        (heard,), listening = model.emit(encoded, reference.listening)
        reference = model.read(frames, replace(reference, listening=listening))
        counts[0] += len(heard.asr_tokens)
        counts[1] += len(heard.st_tokens)
        assert heard.asr_tokens == output.asr_tokens and heard.st_tokens == output.st_tokens
        if output.mt_tokens or output.final:
            limit = policy.max_len if output.final else len(output.mt_tokens)
            (hypothesis,) = model.translate(reference.mt, [limit], output.final)
            reference = replace(reference, mt=hypothesis.state)
            assert hypothesis.tokens == output.mt_tokens
    assert state.model.mt.source_length == sum(part.size(1) for part in parts)


@pytest.mark.parametrize("method", ["off", "learned", "pause"])
@pytest.mark.parametrize("policy", ["ctc", "wait_k"])
def test_where_nothing_is_said_nothing_is_spoken(system, method, policy):
    """A recognition head that hears blank only; with endpoints, no policy writes either."""
    model = seeded_model(system.config, 1)
    with torch.no_grad():
        model.source_unigram_decoder.proj.bias[Vocabulary.blank] += 1e3
    silent = replace(system, model=model)
    pipeline = Pipeline(
        silent,
        endpoint=EndpointConfig(method),
        policy=PolicyConfig(name=policy) if method != "off" else None,
    )
    outputs, _ = push(pipeline, synthetic_clip(3, RATE, seed=1), RATE, 5000)
    assert outputs[-1].final
    for output in outputs:
        assert not output.write and not output.mt_tokens and not len(output.waveform)


@pytest.mark.parametrize("kind", ["speech", "silence"])
def test_a_streams_state_is_bounded(ending_system, system, kind):
    """Over 32 s the state is as large as over 16 s, with sentence ends, and without any."""
    endless = EndpointConfig("learned", endpoint_ms=60_000, max_sentence_ms=4000, text_end_tokens=4)
    model = ending_system.model if kind == "speech" else seeded_model(system.config, 1).double()
    if kind == "silence":
        with torch.no_grad():
            model.source_unigram_decoder.proj.bias[Vocabulary.blank] += 1e3
    pipeline = Pipeline(replace(ending_system, model=model), endpoint=endless)
    clip = synthetic_clip(4, RATE, seed=5)
    state, sizes, frames, longest = pipeline.init_state(), [], 0, 0
    for _ in range(8):
        outputs, state = pipeline.step(clip, RATE, state)
        frames += sum(output.encoder_frames for output in outputs)
        sizes.append(state_bytes(state))
        longest = max(longest, state.model.mt.sources.stored[0])
    assert max(sizes[4:]) <= 1.2 * max(sizes[:4])
    limit = 4000 * 1.25 / 40 + 8 if kind == "speech" else 0
    assert longest <= max(limit, LEAD_FRAMES + 128) + 8
    chunks = 8 * len(clip) // CHUNK
    assert state.processed == chunks * CHUNK and len(state.pending) == 8 * len(clip) % CHUNK
    assert frames == 8 * chunks - 1, "the last frame waits for the next chunk"


@pytest.mark.parametrize("boundary", [12, 16, 20])
def test_a_chunk_conformer_starts_anew_behind_a_boundary(clip, boundary):
    """The second sentence equals a stream of its own that begins at the boundary."""
    base = random_system()
    config = replace(
        base.config,
        encoder=ChunkConformerConfig(
            conv_channels=8, embed_dim=32, layers=2, ffn_dim=32, depthwise_kernel_size=7
        ),
    )
    system = replace(base, config=config, model=seeded_model(config, 1).double())
    pipeline = scripted(system)
    pipeline.endpoints, pipeline.restarts = Scripted(boundary, once=True), True
    outputs, _ = push(pipeline, clip, RATE, 4000)
    second = [o for o in outputs if o.sentence == 1]
    rest = check_samples(clip, 0)[boundary * 4 * 160 :]
    alone, _ = push(Pipeline(system), rest, RATE, 4000)
    assert [t for o in second for t in o.asr_tokens] == [t for o in alone for t in o.asr_tokens]
    assert [t for o in second for t in o.st_tokens] == [t for o in alone for t in o.st_tokens]
    assert sum(o.encoder_frames for o in second) == sum(o.encoder_frames for o in alone)
    assert sum(o.encoder_frames for o in outputs if o.sentence == 0) == boundary
