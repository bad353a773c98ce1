"""Training under the streaming mask computes what incremental inference computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("fairseq")

from echostream.fairseq_plugin.criterion import WHOLE  # noqa: E402
from echostream.fairseq_plugin.model import TextPolicy  # noqa: E402
from echostream.models.decoders.unit_decoder import strided_visibility  # noqa: E402
from echostream.models.echostream_model import EchoStreamModel  # noqa: E402
from tests.fairseq_plugin.small_models import FRAMES_PER_CHUNK, SEGMENT, emitting, make_model  # noqa: E402


def make_input(frames=142, tokens=9, seed=5):
    torch.manual_seed(seed)
    features = torch.randn(1, frames, 80)
    previous = torch.cat([torch.tensor([2]), torch.randint(4, 28, (tokens - 1,))])[None]
    return features, torch.tensor([frames]), previous


@pytest.mark.parametrize(("k1", "n1", "n2"), [(0, 1, 1), (1, 2, 3), (2, 3, 2)])
@pytest.mark.parametrize("flags", [{}, {"right_context_frames": 2}, {"memory_size": 0}])
def test_teacher_forced_logits_equal_step_by_step_logits(k1, n1, n2, flags):
    model = emitting(make_model(st_ctc_layers=0, **flags))
    features, lengths, previous = make_input()
    policy = TextPolicy(k1, n1)
    out = model(
        features,
        lengths,
        previous,
        segment_frames=SEGMENT,
        policy=policy,
        visible_text=strided_visibility(previous.size(1), lagging_k2=0, stride_n2=n2),
    )
    visible = model.policy_visibility(out.asr, out.st, previous.size(1), policy, SEGMENT)[0]
    total = out.asr.size(0)
    assert len(set(visible.tolist())) > 1, "the mask must not be trivial"

    state = model.init_state()
    mt_logits, hidden, read = [], [], 0
    chunks = range(0, features.size(1), FRAMES_PER_CHUNK)
    # A chunk's last two filterbank frames still wait for samples of the next one.
    ends = [min(start + FRAMES_PER_CHUNK, features.size(1)) - 2 for start in chunks]
    ends[-1] = features.size(1)
    start = 0
    for end in ends:
        final = end == features.size(1)
        encoded, listening = model.encode(features[:, start:end], state.listening, final=final)
        _, listening = model.emit(encoded, listening)
        state = model.read(encoded.frames, replace(state, listening=listening))
        start, read = end, read + encoded.frames.size(1)
        while len(hidden) < previous.size(1) and int(visible[len(hidden)]) <= read:
            assert int(visible[len(hidden)]) == read or not hidden or final
            token = previous[:, len(hidden) : len(hidden) + 1]
            step, mt = model.target_unigram_decoder.step(token, state.mt)
            state = replace(state, mt=mt)
            hidden.append(step)
            mt_logits.append(model.target_unigram_decoder.logits(step))
    assert read == total and len(hidden) == previous.size(1)
    assert torch.allclose(torch.cat(mt_logits, dim=1), out.mt, atol=1e-4)

    unit_logits = []
    t2u, unit = state.speech.t2u, state.speech.unit
    for first in range(0, previous.size(1), n2):
        group = torch.cat(hidden[first : first + n2], dim=1)
        text, t2u = model.synthesizer_encoder.step(group, t2u)
        logits, unit = model.decoder.step(text, unit)
        unit_logits.append(logits)
    assert torch.allclose(torch.cat(unit_logits, dim=1), out.unit, atol=1e-4)


@pytest.mark.parametrize("arch", ["echostream_tiny", "streamspeech_tiny"])
@pytest.mark.parametrize("segment", [SEGMENT, 16, WHOLE])
def test_the_policy_changes_nothing_but_the_mask(arch, segment):
    """The plugin's wiring equals the model's own when that is given the same mask."""
    model = emitting(make_model(arch, st_ctc_layers=0))
    features, lengths, previous = make_input()
    features = torch.cat([features, features.flip(1)])
    lengths = torch.tensor([142, 111])
    features[1, 111:] = 0
    previous = torch.cat([previous, previous.flip(1)])
    previous[1, 0], previous[1, 5:] = 2, 1
    policy = TextPolicy(0, 1)
    out = model(features, lengths, previous, segment_frames=segment, policy=policy)
    visible = model.policy_visibility(out.asr, out.st, previous.size(1), policy, segment)
    reference = EchoStreamModel.forward(
        model, features, lengths, previous, segment_frames=segment, visible_source=visible
    )
    for name in ("asr", "st", "mt", "unit"):
        assert torch.equal(getattr(out, name), getattr(reference, name)), name
    if segment == WHOLE:
        assert bool((visible == out.asr.size(0)).all())


def test_no_gradient_through_the_policy():
    model = make_model().train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    features, lengths, previous = make_input()
    out = model(features, lengths, previous, segment_frames=8, policy=TextPolicy(0, 1))
    out.mt.sum().backward()
    assert model.source_unigram_decoder.proj.weight.grad is None
    assert model.encoder.emformer.layers[0].fc1.weight.grad is not None


def test_segment_ends_cover_the_utterance():
    ours, baseline = make_model(), make_model("streamspeech_tiny")
    assert ours.segment_ends(20, 8) == [7, 15, 20]
    assert baseline.segment_ends(20, 8) == [8, 16, 20]
    assert baseline.segment_ends(16, 8) == [8, 16]
    assert ours.segment_ends(20, WHOLE) == baseline.segment_ends(20, WHOLE) == [20]
