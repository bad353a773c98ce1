"""Streams that listen together hear what each hears alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from echostream.config import CTCHeadConfig, EmformerConfig, preset
from echostream.models.batched import batch_key, listen, stack_states, unstack_states
from echostream.models.echostream_model import seeded_model
from echostream.streaming import state_bytes


def config_of(**encoder):
    tiny = preset("tiny")
    # Short windows: within the test they fill, overflow and are trimmed.
    heads = {
        "asr_ctc": replace(tiny.asr_ctc, layers=0),
        "st_ctc": CTCHeadConfig(layers=2, attention_heads=4, ffn_dim=64, context_frames=24),
    }
    return replace(tiny, encoder=replace(tiny.encoder, **encoder), **heads)


VARIANTS = {
    "memory": {},
    "no memory": {"memory_size": 0},
    "convolution": {"depthwise_kernel_size": 5, "right_context_frames": 0},
    "no left context": {"left_context_frames": 0},
}


def alone(model, features, state, **options):
    frames, tail, state = model.encode(features, state)
    heard, state = model.emit(frames, tail, state, **options)
    return frames, heard, state


def tensors(state):
    """All tensors that listening reads, in a fixed order."""
    found = [*state.encoder.subsampler.buffers, state.encoder.lookahead]
    for layer in state.encoder.layers:
        found += [layer.left, layer.memory, layer.conv]
    return found


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_batch_equals_separate_runs(name):
    """Three streams that begin one after another, through two hundred encoder frames, batched and
    taken apart and regrouped on the way."""
    config = config_of(**VARIANTS[name])
    model = seeded_model(config, 3).double()
    generator = torch.Generator().manual_seed(1)
    bins = config.encoder.input_dim

    def chunk():
        return torch.randn(1, 32, bins, generator=generator, dtype=torch.double)

    expected = [model.init_state() for _ in range(3)]
    # The first two streams are 1 and 9 chunks ahead.
    for stream, ahead in ((0, 1), (1, 9), (2, 0)):
        for _ in range(ahead + 1):
            _, _, expected[stream] = alone(model, chunk(), expected[stream])
    batched = stack_states(expected)
    emitted = 0
    for step in range(25):
        new = [chunk() for _ in expected]
        frames, heard, batched = listen(model, torch.cat(new), batched)
        for row, features in enumerate(new):
            own, own_heard, expected[row] = alone(model, features, expected[row])
            torch.testing.assert_close(frames[row : row + 1], own, atol=1e-10, rtol=0)
            logits = heard[row].asr_logits, own_heard.asr_logits
            torch.testing.assert_close(*logits, atol=1e-10, rtol=0)
            same = {"tail": None, "asr_logits": None}
            assert replace(heard[row], **same) == replace(own_heard, **same)
            emitted += len(own_heard.st_tokens)
        if step % 4 == 3:
            states = unstack_states(batched)
            for one, other in zip(states, expected, strict=True):
                assert one.encoder.frames == other.encoder.frames
                assert one.st.length == other.st.length
                assert one.st_collapse == other.st_collapse
                for a, b in zip(tensors(one), tensors(other), strict=True):
                    torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
            batched = stack_states(states)
    assert emitted > 10
    sizes = {state_bytes(batched.encoder)}
    for _ in range(3):
        _, _, batched = listen(model, torch.cat([chunk() for _ in expected]), batched)
        sizes.add(state_bytes(batched.encoder))
    assert len(sizes) == 1


@torch.no_grad()
def test_single_precision_and_recognition_alone():
    model = seeded_model(config_of(), 3)
    generator = torch.Generator().manual_seed(1)
    states = [model.init_state() for _ in range(3)]
    for stream in range(3):
        for _ in range(4 * stream + 1):
            features = torch.randn(1, 32, 80, generator=generator)
            _, _, states[stream] = alone(model, features, states[stream])
    features = torch.randn(3, 32, 80, generator=generator)
    before = [t.clone() for state in states for t in tensors(state)]
    frames, heard, batched = listen(model, features, stack_states(states), transcribe_only=True)
    for row, state in enumerate(states):
        own, own_heard, _ = alone(model, features[row : row + 1], state, transcribe_only=True)
        torch.testing.assert_close(frames[row : row + 1], own, atol=1e-4, rtol=0)
        assert heard[row].asr_tokens == own_heard.asr_tokens and not heard[row].st_tokens
    after = [t for state in states for t in tensors(state)]
    assert all(map(torch.equal, before, after))
    assert [s.st.length for s in unstack_states(batched)] == [s.st.length for s in states]


@torch.no_grad()
def test_only_streams_of_one_key_are_stacked():
    model = seeded_model(config_of(), 3)
    fresh = model.init_state()
    features = torch.zeros(1, 32, 80)
    _, _, later = alone(model, torch.zeros(1, 33, 80), fresh)
    assert batch_key(features, fresh) != batch_key(features, later)
    assert batch_key(features, fresh) != batch_key(features[:, 1:], fresh)
    with pytest.raises(ValueError, match="must hold equally many frames"):
        stack_states([fresh, later])


def test_the_chunk_conformer_listens_alone():
    from echostream.config import ChunkConformerConfig

    config = ChunkConformerConfig(
        embed_dim=32, layers=1, attention_heads=4, ffn_dim=64, conv_channels=8
    )
    model = seeded_model(replace(preset("tiny"), encoder=config), 0)
    state = model.init_state(segment_frames=8)
    assert batch_key(torch.zeros(1, 32, 80), state) is None
    assert isinstance(preset("tiny").encoder, EmformerConfig)
