"""The vocoder with state: equal to whole synthesis for any cut, at constant cost."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echostream.config import DurationPredictorConfig, VocoderConfig, preset
from echostream.models.decoders.streaming_generator import Growth, streaming_generator
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder
from echostream.models.decoders.vocoder_integration import StreamingVocoder, VocoderState
from echostream.models.echostream_model import freeze
from echostream.streaming import move, state_bytes

TINY = replace(preset("tiny").vocoder, upsample_initial_channel=32)
# Kernels that are no multiple of their rates, and an upsampling without overlap.
UNEVEN = VocoderConfig(
    num_embeddings=30,
    embedding_dim=8,
    model_in_dim=8,
    upsample_rates=(5, 4, 2),
    upsample_kernel_sizes=(11, 8, 2),
    upsample_initial_channel=16,
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 2), (1, 3)),
    dur_predictor_params=DurationPredictorConfig(8, 8, 3, 0.0),
)
CONFIGS = {"tiny": TINY, "uneven": UNEVEN}


@torch.no_grad()
def make(config, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        vocoder = CodeHiFiGANVocoder(config)
        for parameter in vocoder.parameters():
            torch.nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
    # Durations of one to a few frames, some of which change when the next unit arrives.
    predictor = vocoder.generator.dur_predictor
    predictor.ln2.bias.zero_()
    predictor.proj.weight.mul_(0.3)
    predictor.proj.bias.fill_(1.2)
    return freeze(vocoder.to(dtype))


VOCODERS = {name: make(config) for name, config in CONFIGS.items()}
cuts = st.lists(st.integers(1, 25), min_size=1, max_size=7)


@settings(max_examples=12)
@given(cuts=cuts, name=st.sampled_from(sorted(CONFIGS)), durations=st.booleans(), data=st.data())
@torch.no_grad()
def test_any_cut_gives_the_tail_of_whole_synthesis(cuts, name, durations, data):
    vocoder = VOCODERS[name]
    streaming = StreamingVocoder(vocoder, dur_prediction=durations)
    total = sum(cuts)
    unit = st.integers(0, vocoder.config.num_embeddings - 1)
    units = data.draw(st.lists(unit, min_size=total, max_size=total))
    state, done = streaming.init_state(), 0
    for count in cuts:
        samples, frames, state = streaming.step(units[done : done + count], state)
        done += count
        whole, all_frames = vocoder.generate(units[:done], dur_prediction=durations)
        assert torch.equal(frames, all_frames[-count:])
        expected = whole[len(whole) - int(frames.sum()) * vocoder.config.unit_samples :]
        torch.testing.assert_close(samples, expected, atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_single_precision(name):
    vocoder = make(CONFIGS[name], torch.float32)
    streaming = StreamingVocoder(vocoder)
    generator = torch.Generator().manual_seed(1)
    units = torch.randint(0, 30, (50,), generator=generator).tolist()
    state, done = streaming.init_state(), 0
    for count in (1, 12, 3, 25, 2, 7):
        samples, _, state = streaming.step(units[done : done + count], state)
        done += count
        whole, _ = vocoder.generate(units[:done])
        torch.testing.assert_close(samples, whole[-len(samples) :], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_durations_change_when_units_follow(name):
    """Otherwise the tests here would say nothing about it."""
    generator = VOCODERS[name].generator
    code = torch.arange(30)[None]
    whole = generator.durations(code)[0].tolist()
    assert len(set(whole)) > 1
    assert any(generator.durations(code[:, :n])[0].tolist() != whole[:n] for n in range(1, 30))


@torch.no_grad()
def test_state_is_constant_and_written_to_by_nobody():
    streaming = StreamingVocoder(VOCODERS["tiny"])
    state = streaming.init_state()
    size = state_bytes(state)
    assert size == sum(cache.nbytes for cache in state.caches) > 0
    for _ in range(40):
        before = [cache.clone() for cache in state.caches]
        again, _, _ = streaming.step([1, 2, 3], state)
        samples, _, following = streaming.step([1, 2, 3], state)
        assert torch.equal(again, samples)
        assert all(map(torch.equal, before, state.caches))
        state = following
        assert state_bytes(state) == size
        assert len(state.tails[0].units) <= 2 * streaming.unsettled_units
    # A cache must not keep the whole signal alive that it was cut from.
    assert all(c.untyped_storage().nbytes() == c.nbytes for c in state.caches)


def test_state_moves_between_devices():
    state = StreamingVocoder(VOCODERS["tiny"]).init_state()
    moved = move(state, "meta")
    assert isinstance(moved, VocoderState)
    assert all(cache.device.type == "meta" for cache in moved.caches)
    assert moved.tails == state.tails


@torch.no_grad()
def test_only_new_and_unsettled_samples_are_computed(monkeypatch):
    """Against the frames that recomputing the left context would take: over a long stream of
    short writes a convolution computes little more than the new samples."""
    from echostream.models.decoders import time_major

    vocoder = VOCODERS["tiny"]
    streaming = StreamingVocoder(vocoder, dur_prediction=False)
    computed = []
    original = time_major.TimeMajorConv.__call__

    def count(self, x, **options):
        y = original(self, x, **options)
        computed.append(y.size(1))
        return y

    monkeypatch.setattr(time_major.TimeMajorConv, "__call__", count)
    state, per_write = streaming.init_state(), []
    for _ in range(6):
        computed.clear()
        _, _, state = streaming.step(list(range(12)), state)
        per_write.append(sum(computed))
    assert len(set(per_write[1:])) == 1
    computed.clear()
    context = vocoder.generator.left_context_frames()
    streaming.step([1] * (12 + context), streaming.init_state())
    assert per_write[-1] < 0.8 * sum(computed)


@torch.no_grad()
def test_changed_weights_are_noticed():
    vocoder = make(TINY)
    streaming = StreamingVocoder(vocoder)
    before, _, _ = streaming.step([1, 2, 3], streaming.init_state())
    vocoder.generator.conv_post.weight.mul_(0.5)
    after, _, _ = streaming.step([1, 2, 3], streaming.init_state())
    torch.testing.assert_close(after, vocoder.generate([1, 2, 3])[0], atol=1e-12, rtol=0)
    assert not torch.allclose(before, after)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_streams_at_different_positions_share_a_call(name):
    """Three streams with different pasts and numbers of new frames, against each alone."""
    vocoder = VOCODERS[name]
    network = streaming_generator(vocoder.generator)
    generator = torch.Generator().manual_seed(3)
    width = vocoder.config.model_in_dim
    alone = [network.init_caches() for _ in range(3)]
    together = network.init_caches(3)
    position = [0, 0, 0]
    for counts in ((3, 9, 1), (4, 4, 4), (1, 20, 7), (30, 2, 11)):
        frames = [torch.randn(1, n, width, generator=generator).double() for n in counts]
        growth = [Growth(position[b], 0, n, n) for b, n in enumerate(counts)]
        expected = []
        for b in range(3):
            waves, alone[b] = network.step(frames[b], alone[b], growth[b : b + 1])
            expected.append(waves[0])
        padded = torch.cat(
            [torch.nn.functional.pad(x, (0, 0, 0, max(counts) - x.size(1))) for x in frames]
        )
        waves, together = network.step(padded, together, growth)
        for ours, theirs in zip(waves, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
        position = [p + n for p, n in zip(position, counts, strict=True)]
