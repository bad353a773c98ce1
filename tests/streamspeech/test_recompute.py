"""The recomputing StreamSpeech agents against recorded runs of the published ones."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from echostream.audio import CMVN
from echostream.checkpoint import System
from echostream.config import (
    ChunkConformerConfig,
    EmformerConfig,
    EndpointConfig,
    PolicyConfig,
    UnitDecoderConfig,
    preset,
)
from echostream.models.decoders.ctc_decoder_policy import Counts, PolicyState
from echostream.models.echostream_model import seeded_model
from echostream.samples import read_audio
from echostream.streamspeech.convert import read_streamspeech
from echostream.streamspeech.frontend import StreamSpeechFrontend, whole_features
from echostream.streamspeech.recompute import (
    SPEECH_MAX_TOKENS,
    RecomputePipeline,
    RecomputeState,
    StreamSpeechPipeline,
    conv_chunk,
)
from echostream.text import Vocabulary
from echostream.translator.endpoint import EndpointFinder, FrameTokens
from tests.reference.recordings import MID, SUBSET, TINY, Recording, clip

MODELS, CHUNKS_MS = (SUBSET, TINY, MID), (320, 640, 960, 2560)
# Steps of each task: 27 on one clip, 28 on the other.
STEPS = {SUBSET: 27, TINY: 28, MID: 55}
# Steps in which a decision hangs on less than the resamplers differ by: measured. With the recorded
# features none is left.
RESAMPLER_STEPS = {(TINY, "s2st"): 1, (MID, "s2st"): 4, (MID, "s2tt"): 2}


class WithRecordedFeatures(RecomputePipeline):
    """Takes the filterbank from the recording instead of the resampler.

    Only whole clips were recorded. The last frame of a shorter prefix lies within the resampler's
    reach of the cut and is not in the recording, so that one is computed.
    """

    recorded: torch.Tensor

    def features(self, samples, sample_rate):
        own = super().features(samples, sample_rate)
        if own.size(0) in (0, self.recorded.size(0)):
            return self.recorded[: own.size(0)]
        return torch.cat([self.recorded[: own.size(0) - 1], own[-1:]])


@pytest.fixture(scope="module", params=MODELS)
def recording(request, open_recording) -> Recording:
    return open_recording(request.param)


@pytest.fixture(scope="module")
def recorded_system(recording) -> System:
    return read_streamspeech(recording.checkpoint, recording.config)


def agrees(output, step: dict, task: str) -> bool:
    if abs(output.source_ms - step["t_ms"]) > 1:
        return False
    if task != "s2st":
        return output.write != step["read"] and output.text == (step["text"] or "")
    if len(output.waveform) != step["write"]:
        return False
    # The last step of an utterance was recorded after its tokens had been cleared.
    if "asr" in step and not (
        list(output.asr_tokens) == step["asr"]
        and list(output.mt_tokens) == (step["mt"] or [])
        and list(output.units) == (step["units"] or [])
    ):
        return False
    if step["write"]:
        rms = np.sqrt(np.mean(output.waveform.astype(np.float64) ** 2))
        head = output.waveform[: len(step["wav_head"])]
        return np.abs(head - step["wav_head"]).max() < 1e-3 and abs(rms - step["wav_rms"]) < 1e-3
    return output.write == bool(step["write"]) or output.final


def differing_steps(
    system: System, recording: Recording, task: str, *, recorded: bool
) -> tuple[int, int]:
    differing = total = 0
    kind = WithRecordedFeatures if recorded else RecomputePipeline
    for run in recording.runs(task):
        samples, rate = read_audio(clip(run["wav"]))
        pipeline = kind(system, chunk_ms=run["chunk_ms"], task=task)
        pipeline.recorded = recording.features[run["wav"]]
        outputs, _ = pipeline.step(samples, rate, pipeline.init_state(), final=True)
        assert len(outputs) == len(run["steps"])
        total += len(outputs)
        differing += sum(
            not agrees(output, step, task)
            for output, step in zip(outputs, run["steps"], strict=True)
        )
    return differing, total


@pytest.mark.parametrize("task", ["s2st", "s2tt", "asr"])
def test_every_recorded_step_with_the_recorded_features(recording, recorded_system, task):
    found = differing_steps(recorded_system, recording, task, recorded=True)
    assert found == (0, STEPS[recording.name])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["s2st", "s2tt", "asr"])
def test_recorded_steps_end_to_end(recording, recorded_system, task):
    differing, _ = differing_steps(recorded_system, recording, task, recorded=False)
    assert differing <= RESAMPLER_STEPS.get((recording.name, task), 0)


def test_recordings_cover_all_chunks(recording):
    for task in ("s2st", "s2tt", "asr"):
        assert {run["chunk_ms"] for run in recording.runs(task)} == set(CHUNKS_MS)


@pytest.fixture(scope="module")
def system() -> System:
    """A small random StreamSpeech model."""
    config = preset("tiny")
    config = dataclasses.replace(
        config,
        encoder=ChunkConformerConfig(
            conv_channels=8, embed_dim=32, layers=2, ffn_dim=32, depthwise_kernel_size=7
        ),
        st_ctc=config.asr_ctc,
        mt=dataclasses.replace(config.mt, context_tokens=None, source_context_frames=None),
        unit=UnitDecoderConfig(
            layers=1, upsample_ratio=5, embed_dim=32, ffn_dim=32, positions="streamspeech"
        ),
        t2u=dataclasses.replace(config.t2u, context_tokens=None),
    )
    words = Vocabulary([f"\u2581w{i}" if i % 3 else f"p{i}" for i in range(60)])
    return System(config, seeded_model(config, 3), words, words, CMVN.identity(80))


def noise(seconds: float, rate: int = 16000) -> np.ndarray:
    generator = np.random.default_rng(0)
    return (0.3 * generator.standard_normal(int(seconds * rate))).astype(np.float32)


@pytest.mark.parametrize("task", ["s2st", "s2tt", "asr"])
def test_any_way_of_pushing_gives_the_same(system, task):
    samples = noise(2.1)
    pipeline = RecomputePipeline(system, task=task)
    whole, _ = pipeline.step(samples, 16000, pipeline.init_state(), final=True)
    state, pieces = pipeline.init_state(), []
    for start in range(0, len(samples), 3000):
        part = samples[start : start + 3000]
        final = start + 3000 >= len(samples)
        outputs, state = pipeline.step(part, 16000, state, final=final)
        pieces += outputs
    assert len(whole) == len(pieces)
    for one, two in zip(whole, pieces, strict=True):
        assert (one.write, one.mt_tokens, one.units, one.text) == (
            two.write,
            two.mt_tokens,
            two.units,
            two.text,
        )
        np.testing.assert_array_equal(one.waveform, two.waveform)


@pytest.mark.parametrize("task", ["s2st", "s2tt", "asr"])
@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.03])
def test_too_short_an_utterance_ends_quietly(system, task, seconds):
    """The published agents crash here."""
    pipeline = RecomputePipeline(system, task=task)
    outputs, state = pipeline.step(noise(seconds), 16000, pipeline.init_state(), final=True)
    assert state.finished and [o.final for o in outputs] == [True]
    assert outputs[0].write
    with pytest.raises(ValueError, match="has ended"):
        pipeline.step(noise(0.1), 16000, state)


@pytest.mark.parametrize("length", [SPEECH_MAX_TOKENS, SPEECH_MAX_TOKENS + 1, 300])
def test_a_prefix_at_its_length_limit_ends_quietly(system, length):
    """The published agent crashes on a prefix beyond its limit."""
    pipeline = RecomputePipeline(system)
    prefix = tuple([5, 6] * length)[:length]
    state = RecomputeState(prefix=prefix, units=(1, 2), finished=True, sample_rate=16000)
    output, state = pipeline.decide(torch.randn(64, 80), state)
    assert output.final and output.write and len(output.waveform) == 0
    assert state.prefix == prefix


def test_streams_are_independent(system):
    pipeline = RecomputePipeline(system, task="s2tt")
    first, second = noise(1.5), noise(1.5)[::-1].copy()

    def alone(samples):
        return pipeline.step(samples, 16000, pipeline.init_state(), final=True)[0]

    states = [pipeline.init_state(), pipeline.init_state()]
    texts: list[list[str]] = [[], []]
    for start in range(0, 24000, 5120):
        for index, samples in enumerate((first, second)):
            outputs, states[index] = pipeline.step(
                samples[start : start + 5120], 16000, states[index], final=start + 5120 >= 24000
            )
            texts[index] += [output.text for output in outputs]
    assert texts == [[o.text for o in alone(first)], [o.text for o in alone(second)]]


def test_chunks_shorter_than_a_frame(system):
    pipeline = RecomputePipeline(system, chunk_ms=25, task="asr")
    outputs, _ = pipeline.step(noise(0.2), 16000, pipeline.init_state(), final=True)
    assert len(outputs) == 8 and pipeline.attention_chunk == 1


def test_features_hold_back_as_the_original_does(system):
    pipeline = RecomputePipeline(system)
    for rate in (16000, 48000):
        samples = noise(1.0, rate)
        counts = [
            pipeline.features(samples[: rate * ms // 1000], rate).size(0)
            for ms in (10, 24, 25, 34, 35, 320, 640)
        ]
        assert counts == [0, 0, 1, 1, 2, 30, 62]


def test_convolution_chunks_follow_the_task(system):
    assert conv_chunk("s2st", 24) == 16 and conv_chunk("s2st", 4) == 8
    assert conv_chunk("asr", 24) == 16 and conv_chunk("s2tt", 4) == 4
    state = StreamSpeechPipeline(system, chunk_ms=160, task="asr").init_state()
    assert state.model.listening.encoder.conv_chunk_frames == 4
    state = StreamSpeechPipeline(system, chunk_ms=160).init_state()
    assert state.model.listening.encoder.conv_chunk_frames == 8


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
@pytest.mark.parametrize("chunk_ms", [320, 640, 960])
def test_incremental_hears_what_recomputing_hears(system, rate, chunk_ms):
    """Same transcript at every decision, the resampler's edge included."""
    samples = noise(3.01, rate)
    slow, fast = (
        kind(system, chunk_ms=chunk_ms) for kind in (RecomputePipeline, StreamSpeechPipeline)
    )
    expected, _ = slow.step(samples, rate, slow.init_state(), final=True)
    outputs, _ = fast.step(samples, rate, fast.init_state(), final=True)
    heard: tuple[int, ...] = ()
    assert len(outputs) == len(expected)
    for output, full in zip(outputs, expected, strict=True):
        heard += output.asr_tokens
        assert heard + output.asr_tail == full.asr_tokens


class Deaf(EndpointFinder):
    """Finds that nobody has ever spoken."""

    def step(self, heard, state):
        return super().step(FrameTokens(heard.frames, (), ()), state)


def test_an_encoder_that_starts_anew_in_long_silence_misses_nothing(system):
    """What it had not settled is read again, before the features of the next chunk."""
    endpoint = EndpointConfig("pause", max_sentence_ms=1000)
    pipeline = StreamSpeechPipeline(system, chunk_ms=320, task="s2tt", endpoint=endpoint)
    pipeline.endpoints, restarts = Deaf(endpoint), []
    forget = pipeline._forget_silence
    pipeline._forget_silence = lambda *given: restarts.append(given[1].recent) or forget(*given)
    whole = StreamSpeechPipeline(system, chunk_ms=320, task="s2tt")
    frames = [
        sum(o.encoder_frames for o in one.step(noise(5.1), 16000, one.init_state(), final=True)[0])
        for one in (pipeline, whole)
    ]
    assert frames[0] == frames[1]
    assert len(restarts) > 1 and any(recent.shape[1] for recent in restarts)


def test_a_source_that_ends_without_new_frames_keeps_the_last_ones(system):
    """975 ms are 24 encoder frames, 8 of which wait for the convolution's chunk of 16."""
    model = copy.deepcopy(system.model)
    # The other head of this model emits more, so that the last frames say something.
    model.source_unigram_decoder = model.ctc_target_unigram_decoder
    talkative = dataclasses.replace(system, model=model)
    samples, ends = noise(0.975), []
    for kind in (RecomputePipeline, StreamSpeechPipeline):
        pipeline = kind(talkative, chunk_ms=975, task="asr")
        first, state = pipeline.step(samples, 16000, pipeline.init_state())
        last, _ = pipeline.step([], 16000, state, final=True)
        ends.append((first[-1], last[-1]))
    (_, expected), (heard, output) = ends
    assert len(expected.asr_tokens) > 3
    assert heard.asr_tokens + output.asr_tokens == expected.asr_tokens


@pytest.mark.parametrize(
    "task,written,max_len,expected",
    [
        ("s2st", 10, 7, 7),
        ("s2st", 10, 200, SPEECH_MAX_TOKENS - 10),
        ("s2st", SPEECH_MAX_TOKENS + 1, 7, 0),
        # 98 frames and 200 more tokens than that.
        ("s2tt", 290, 200, 8),
        ("s2tt", 290, 7, 7),
    ],
)
def test_the_last_decision_keeps_to_both_limits(system, task, written, max_len, expected):
    pipeline = StreamSpeechPipeline(system, task=task)
    counts = Counts(asr=0, st=0, written=written, source_ms=1000, source_finished=True)
    decision, _ = pipeline.decide(counts, PolicyState(), PolicyConfig(max_len=max_len), False)
    assert decision.until_eos and decision.max_new_tokens == expected


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
@pytest.mark.parametrize("step", [500, 5120, 15360])
def test_incremental_filterbank_equals_the_whole(rate, step):
    config = preset("tiny").frontend
    cmvn = CMVN(torch.full((80,), 10.0), torch.full((80,), 4.0))
    frontend = StreamSpeechFrontend(config, cmvn)
    samples, state, done = noise(1.3, rate), frontend.init_state(), []
    for end in range(step, len(samples) + step, step):
        features, state = frontend.step(samples[end - step : end], rate, state)
        done.append(features.final[0])
        got = torch.cat([*done, features.tail[0]])
        expected = whole_features(samples[:end], rate, config, cmvn)
        torch.testing.assert_close(got, expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize("rate", [8000, 11025, 22050])
@pytest.mark.parametrize("kind", [RecomputePipeline, StreamSpeechPipeline])
def test_rates_without_equality_run_to_the_end(system, rate, kind):
    pipeline = kind(system)
    outputs, state = pipeline.step(noise(3.01, rate), rate, pipeline.init_state(), final=True)
    assert len(outputs) == 10 and outputs[-1].final and state.finished
    assert sum(len(output.waveform) for output in outputs) > 0


def test_incremental_writes_the_same_text_on_the_recorded_clips(recording, recorded_system):
    """Where nothing that was written would be revised, freezing it changes nothing."""
    for run in recording.runs("s2st"):
        if run["chunk_ms"] > 320:
            continue
        samples, rate = read_audio(clip(run["wav"]))
        slow, fast = (
            kind(recorded_system, chunk_ms=run["chunk_ms"])
            for kind in (RecomputePipeline, StreamSpeechPipeline)
        )
        expected, _ = slow.step(samples, rate, slow.init_state(), final=True)
        outputs, _ = fast.step(samples, rate, fast.init_state(), final=True)
        written: tuple[int, ...] = ()
        for output, full in zip(outputs, expected, strict=True):
            written += output.mt_tokens
            assert written == full.mt_tokens


@pytest.mark.parametrize(
    "options,message",
    [
        ({"chunk_ms": 0}, "chunk_ms must be at least 1"),
        ({"policy": PolicyConfig(name="wait_k")}, "'ctc' policy"),
    ],
)
def test_wrong_options_are_named(system, options, message):
    with pytest.raises(ValueError, match=message):
        RecomputePipeline(system, **options)


def test_other_models_are_refused(system):
    emformer = dataclasses.replace(system.config, encoder=EmformerConfig())
    other = System(
        emformer, system.model, system.source_vocabulary, *[system.target_vocabulary, system.cmvn]
    )
    with pytest.raises(ValueError, match="'emformer'"):
        RecomputePipeline(other)


def test_bad_audio_is_named(system):
    pipeline = RecomputePipeline(system)
    state = pipeline.init_state()
    with pytest.raises(ValueError, match="sample 1 is nan"):
        pipeline.step([0.0, float("nan")], 16000, state)
    _, state = pipeline.step(noise(0.1), 16000, state)
    with pytest.raises(ValueError, match="sample rate changed"):
        pipeline.step(noise(0.1), 48000, state)
