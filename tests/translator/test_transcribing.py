"""Transcripts by the text decoder, in streams and beside translations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from echostream.checkpoint import load_model_dir, save_model_dir
from echostream.config import EndpointConfig, FrontendConfig, PolicyConfig
from echostream.models.decoders.ctc_decoder_policy import common_prefix
from echostream.models.decoders.hypothesis import Hypothesis
from echostream.models.echostream_model import seeded_model
from echostream.synthetic import random_system, synthetic_clip
from echostream.text import Vocabulary
from echostream.translator import pipeline as pipeline_module
from echostream.translator.pipeline import Pipeline
from echostream.translator.stages import TRANSLATE
from echostream.translator.text_end import TextEndState
from echostream.translator.transcribing import TranscriptState
from tests.conftest import tiny_config
from tests.streams import group_sizes, push, step_batch, told

RATE, CHUNK = 16000, 5120
AGREEMENT = PolicyConfig(name="local_agreement", max_len=12)


@pytest.fixture(scope="module")
def transcribing():
    """A random system whose text decoder transcribes and reads two frames of each encoder
    frame."""
    config = tiny_config(subsampler="whisper", input_dim=80, positions="sinusoid")
    config = replace(
        config,
        frontend=FrontendConfig(kind="whisper"),
        mt=replace(
            config.mt,
            prompt=(60, 61),
            source="stack",
            transcript_prompt=(38, 39),
            transcript_vocab_size=40,
        ),
    )
    system = random_system()
    pieces = [f"\u2581{chr(97 + index % 26)}{index}" for index in range(36)]
    return replace(
        system,
        config=config,
        model=seeded_model(config, 1).double(),
        transcript_vocabulary=Vocabulary(pieces),
    )


@pytest.fixture(scope="module")
def clip():
    return synthetic_clip(3.1, RATE, seed=3)


def transcript(outputs):
    return [word for output in outputs for word in output.transcript]


def test_two_frames_of_the_stack_stand_for_one(transcribing, clip):
    model = transcribing.model
    features = transcribing.frontend().init_state()
    found, _ = transcribing.frontend().step(clip, RATE, features, final=True)
    found = found.double()
    encoded, _ = model.encode(found, model.init_listening(chunk_ms=320), final=True)
    frames = model.text_frames(encoded)
    assert model.source_frames == 2
    assert frames.shape[1:] == (encoded.frames.size(1), 2 * encoded.frames.size(2))
    state = model.read(frames, model.init_state())
    assert state.mt.source_length == 2 * encoded.frames.size(1)
    out = model.encoder(
        found, torch.tensor([found.size(1)]), segment_frames=[encoded.frames.size(1)]
    )
    whole, mask = model.text_source(out)
    assert mask is None
    torch.testing.assert_close(
        whole.transpose(0, 1), frames.unflatten(2, (2, -1)).flatten(1, 2), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("task", ["asr", "s2tt"])
def test_whole_sentence_is_what_the_decoder_writes(transcribing, clip, task, monkeypatch):
    """What agreed on the way and what came at the end, against one decoding by hand."""
    kept = []
    real = pipeline_module.TranscriptWriter.write

    def noting(self, heard, hypothesis, model, state):
        following, after = real(self, heard, hypothesis, model, state)
        kept.append((heard.ends, hypothesis, state.draft, after))
        return following, after

    monkeypatch.setattr(pipeline_module.TranscriptWriter, "write", noting)
    pipeline = Pipeline(
        transcribing, task=task, policy=AGREEMENT, endpoint=EndpointConfig(method="off")
    )
    outputs, _ = push(pipeline, clip, RATE, CHUNK)
    vocabulary = transcribing.transcript_vocabulary
    words = transcript(outputs)
    assert words and set(words) <= {piece.strip("\u2581") for piece in vocabulary.pieces}
    assert kept[-1][0] and not any(ends for ends, *_ in kept[:-1])
    first, tokens = transcribing.config.target_vocab_size, []
    for ends, hypothesis, draft, after in kept:
        new = () if hypothesis is None else hypothesis.tokens
        if not ends and hypothesis is not None:
            shared = common_prefix(new, draft)
            assert after.draft == new[shared:]
            new = new[:shared]
        tokens += [token - first for token in new]
    assert words == vocabulary.decode(tokens).split()


@pytest.mark.parametrize("endpoint", ["off", "pause"])
def test_streams_together_equal_streams_alone(transcribing, endpoint, monkeypatch):
    settings = EndpointConfig(endpoint, endpoint_ms=120, min_tokens=2)
    pipeline = Pipeline(transcribing, task="s2tt", policy=AGREEMENT, endpoint=settings)
    clips = [synthetic_clip(seconds, RATE, seed=seed) for seed, seconds in enumerate((2.5, 3.2))]
    alone = [push(pipeline, clip, RATE, CHUNK)[0] for clip in clips]
    sizes = group_sizes(monkeypatch)
    states, outputs = [pipeline.init_state() for _ in clips], [[] for _ in clips]
    for start in range(0, max(map(len, clips)), CHUNK):
        active = [index for index, clip in enumerate(clips) if start < len(clip)]
        batch = [
            (clips[i][start : start + CHUNK], RATE, states[i], start + CHUNK >= len(clips[i]))
            for i in active
        ]
        for index, (new, state) in zip(active, step_batch(pipeline, batch), strict=True):
            outputs[index] += new
            states[index] = state
    # Both tasks of both streams.
    assert max(sizes[TRANSLATE]) == 4
    for one, other in zip(outputs, alone, strict=True):
        assert told(one) == told(other)
        assert transcript(one)


def test_nobody_heard_nothing_written(transcribing):
    pipeline = Pipeline(transcribing, task="s2tt", policy=AGREEMENT)
    state = pipeline.init_state()
    heard, _, after = pipeline.transcript_writer.read(
        _Silent(), pipeline.stages.watch(), state.model, state.written_transcript
    )
    assert heard.request is None and after.heard == 0


class _Silent:
    """A span in which nothing was emitted."""

    ends = False
    frames = torch.zeros(1, 4, 64, dtype=torch.double)

    class emitted:  # noqa: N801
        asr_tokens = asr_tail = ()


def test_sentences_that_end_in_retrospect_do_not_repeat_what_was_heard(transcribing, clip):
    """The translation begins anew with source that the transcript has read; that goes on."""
    policy = replace(AGREEMENT, whole_word=False)
    settings = EndpointConfig(method="learned", endpoint_ms=4000)
    options = {"task": "s2tt", "policy": policy, "endpoint": settings}
    expected, _ = push(Pipeline(transcribing, **options), clip, RATE, CHUNK)
    pipeline = Pipeline(transcribing, **options)
    pipeline.text_ends = _Retrospective()
    outputs, _ = push(pipeline, clip, RATE, CHUNK)
    ends = [output.sentence_end for output in outputs]
    assert sum(ends) > sum(output.sentence_end for output in expected)
    assert transcript(outputs) == transcript(expected)


class _Retrospective:
    """Ends the sentence before its last six frames, at the fourth chunk."""

    tokens = 1

    def __init__(self):
        self.calls = 0

    def observe(self, emitted, frames, state):
        known = frames if state.frames is None else torch.cat([state.frames, frames], dim=1)
        return TextEndState(known[:, -12:], asr=(0,))

    def decided(self, wishes, state):
        return state

    def find(self, state):
        self.calls += 1
        return replace(state, frames=state.frames[:, -6:]) if self.calls == 4 else None


def test_saved_and_loaded(transcribing, clip, tmp_path):
    single = replace(transcribing, model=seeded_model(transcribing.config, 1))
    save_model_dir(tmp_path / "model", single)
    loaded = load_model_dir(tmp_path / "model")
    assert loaded.transcript_vocabulary.pieces == transcribing.transcript_vocabulary.pieces
    words = [
        transcript(push(Pipeline(system, task="asr"), clip, RATE, CHUNK)[0])
        for system in (single, loaded)
    ]
    assert words[0] == words[1]
    with pytest.raises(ValueError, match="no vocabulary"):
        replace(single, transcript_vocabulary=None)
    (tmp_path / "model" / "transcript.dict.txt").unlink()
    with pytest.raises(FileNotFoundError, match="transcript.dict.txt"):
        load_model_dir(tmp_path / "model")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transcript_prompt": (4,)}, "as long as the prompt"),
        ({"transcript_prompt": (38, 40)}, "must name subwords"),
        ({"transcript_prompt": ()}, "without transcript_prompt"),
    ],
)
def test_configuration_is_checked(transcribing, settings, message):
    with pytest.raises(ValueError, match=message):
        replace(transcribing.config.mt, **settings)


def test_a_long_loop_is_cut(transcribing, clip):
    """As many subwords as the ASR head has heard, and a few more."""
    pipeline = Pipeline(transcribing, task="asr", endpoint=EndpointConfig(method="off"))
    outputs, _ = push(pipeline, clip, RATE, CHUNK)
    heard = sum(len(output.asr_tokens) for output in outputs)
    assert len(transcript(outputs)) <= int(1.25 * heard) + 4


@pytest.mark.parametrize(
    ("heard", "ends", "kept"),
    [
        (9, (0.01, 0.01, 0.01, 0.01), 4),
        (9, (0.01, 0.5, 0.01, 0.01), 4),  # within a word
        (9, (0.01, 0.5, 0.2, 0.01), 2),
        (9, (0.01, 0.01, 0.01, 0.9), 4),  # punctuation
        (7, (0.9, 0.0, 0.0, 0.0), 0),
        (9, (0.9, 0.0, 0.0, 0.0), 4),  # more was heard
    ],
)
def test_no_word_begins_behind_a_likely_end(transcribing, heard, ends, kept):
    writer = Pipeline(transcribing, task="asr").transcript_writer
    writer.starts_word = (True, False, True, False).__getitem__
    tokens = tuple(writer.first + index for index in range(4))
    state = transcribing.model.init_state().transcript
    state = replace(state, cache=_Cut())
    hypothesis = Hypothesis(
        tokens, torch.zeros(1, 4, 2), state, True, 0.0, ends=tuple(np.log(np.add(ends, 1e-9)))
    )
    found = writer._said_once(hypothesis, _Before(), TranscriptState(heard=heard, written=5))
    assert found.tokens == tokens[:kept] and len(found.ends) == kept


class _Before:
    last_token, length = 7, 3


class _Cut:
    """A cache of so many positions."""

    length = 7

    def truncate(self, length):
        return self


def test_the_recognition_head_may_write_it(transcribing, clip):
    """As where the text decoder cannot."""
    policy = replace(AGREEMENT, transcript="head")
    options = {"task": "s2tt", "endpoint": EndpointConfig(method="off")}
    outputs, _ = push(Pipeline(transcribing, policy=policy, **options), clip, RATE, CHUNK)
    tokens = [token for output in outputs for token in output.asr_tokens]
    heard = transcribing.source_vocabulary.decode(tokens).split()
    assert transcript(outputs) == heard
    both, _ = push(Pipeline(transcribing, policy=AGREEMENT, **options), clip, RATE, CHUNK)
    assert [o.translation for o in both] == [o.translation for o in outputs]
