"""Sentences inside a stream: the training pass computes what streaming computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("fairseq")

from echostream.fairseq_plugin.losses import ctc_loss  # noqa: E402
from echostream.fairseq_plugin.model import TextPolicy  # noqa: E402
from echostream.fairseq_plugin.sentences import (  # noqa: E402
    LATE_FRAMES,
    boundaries,
    gather,
    sentence_segment_ends,
    sentence_windows,
    split_end_label,
)
from echostream.models.decoders.unit_decoder import strided_visibility  # noqa: E402
from echostream.text import Vocabulary  # noqa: E402
from tests.fairseq_plugin.small_models import (  # noqa: E402
    FRAMES_PER_CHUNK,
    SEGMENT,
    emitting,
    make_model,
)

# Three sentences in the first stream, two in the second; filterbank frames.
SENTENCES = torch.tensor([[0, 8, 90], [0, 104, 190], [0, 252, 318], [1, 0, 120], [1, 130, 200]])
FRAMES = [330, 210]


def make_streams(seed=5, tokens=7):
    torch.manual_seed(seed)
    features = torch.randn(2, max(FRAMES), 80)
    features[1, FRAMES[1] :] = 0
    previous = torch.randint(4, 28, (len(SENTENCES), tokens))
    previous[:, 0] = Vocabulary.eos
    previous[1, 5:] = Vocabulary.pad
    return features, torch.tensor(FRAMES), previous


@pytest.mark.parametrize(("k1", "n1", "n2"), [(0, 1, 1), (1, 2, 3)])
@pytest.mark.parametrize("flags", [{}, {"right_context_frames": 2}])
def test_training_on_streams_equals_streaming(k1, n1, n2, flags):
    model = emitting(make_model(st_ctc_layers=0, **flags))
    features, lengths, previous = make_streams()
    policy = TextPolicy(k1, n1)
    out = model(
        features,
        lengths,
        previous,
        segment_frames=SEGMENT,
        policy=policy,
        visible_text=strided_visibility(previous.size(1), lagging_k2=0, stride_n2=n2),
        sentences=SENTENCES,
    )
    total = torch.tensor([(frames + 3) // 4 for frames in FRAMES])
    windows = sentence_windows(SENTENCES, total)
    says_end = out.asr.log_softmax(dim=-1)[..., Vocabulary.eos].t()
    starts, ends = boundaries(windows, says_end)
    visible = model.stream_visibility(
        out.asr, out.st, previous.size(1), policy, SEGMENT, windows.stream, starts, ends
    )
    assert len(set(visible[0].tolist())) > 1, "the mask must not be trivial"

    for row, frames in enumerate(FRAMES):
        mine = [n for n in range(len(SENTENCES)) if SENTENCES[n, 0] == row]
        fresh = model.init_state()
        listening = fresh.listening
        hidden: dict[int, list] = {n: [] for n in mine}
        texts: dict[int, object] = {n: fresh.mt for n in mine}
        start = read = 0
        chunks = range(0, frames, FRAMES_PER_CHUNK)
        chunk_ends = [min(c + FRAMES_PER_CHUNK, frames) - 2 for c in chunks]
        chunk_ends[-1] = frames
        for end in chunk_ends:
            step, listening = model.encode(
                features[row : row + 1, start:end], listening, final=end == frames
            )
            _, listening = model.emit(step, listening)
            encoded = step.frames
            first, start, read = read, end, read + encoded.size(1)
            for n in mine:
                low, high = max(int(starts[n]), first), min(int(ends[n]), read)
                if high <= low:
                    continue
                # A frame belongs to one sentence; the boundary may lie inside the chunk.
                part = encoded[:, low - first : high - first]
                texts[n] = model.target_unigram_decoder.read(part, texts[n])
                words = previous[n][previous[n] != Vocabulary.pad]
                while len(hidden[n]) < len(words) and (
                    int(starts[n] + visible[n, len(hidden[n])]) <= high
                ):
                    token = words[len(hidden[n])].view(1, 1)
                    step, texts[n] = model.target_unigram_decoder.step(token, texts[n])
                    hidden[n].append(step)
        assert read == int(total[row])
        for n in mine:
            states = torch.cat(hidden[n], dim=1)
            count = states.size(1)
            assert count == int((previous[n] != Vocabulary.pad).sum())
            logits = model.target_unigram_decoder.logits(states)
            assert torch.allclose(logits[0], out.mt[n, :count], atol=1e-4)
            spoken, units = fresh.speech, []
            for group in states.split(n2, dim=1):
                text, t2u = model.synthesizer_encoder.step(group, spoken.t2u)
                unit_logits, unit = model.decoder.step(text, spoken.unit)
                spoken = replace(spoken, t2u=t2u, unit=unit)
                units.append(unit_logits[0])
            units = torch.cat(units)
            assert torch.allclose(units, out.unit[n, : len(units)], atol=1e-4)


def test_a_sentence_does_not_see_its_neighbours():
    """Text logits change with the encoder's view of other sentences only, which streaming has
    too: with an encoder that forgets at once, they do not change at all."""
    model = emitting(make_model(left_context_frames=0, memory_size=0, depthwise_conv_kernel_size=0))
    features, lengths, previous = make_streams()
    options = {"segment_frames": SEGMENT, "policy": TextPolicy(0, 1), "sentences": SENTENCES}
    out = model(features, lengths, previous, **options)
    changed = features.clone()
    # Behind the segment in which the end of the second sentence may be noticed at the latest.
    late = changed[0, 252 + 4 * LATE_FRAMES + 4 :]
    late.copy_(torch.randn_like(late))
    other = model(changed, lengths, previous, **options)
    assert torch.allclose(out.mt[:2], other.mt[:2], atol=1e-5)
    assert torch.allclose(out.unit[:2], other.unit[:2], atol=1e-5)
    assert not torch.allclose(out.mt[2], other.mt[2], atol=1e-2)


def test_every_frame_belongs_to_one_sentence_up_to_the_last_boundary():
    torch.manual_seed(0)
    lengths = torch.tensor([83, 53])
    windows = sentence_windows(SENTENCES, lengths)
    starts, ends = boundaries(windows, torch.randn(2, 83))
    for row in (0, 1):
        mine = windows.stream == row
        covered = [f for s, e in zip(starts[mine], ends[mine], strict=True) for f in range(s, e)]
        assert covered == list(range(int(ends[mine].max())))
    assert bool((ends <= lengths[windows.stream]).all())


def test_windows_reach_from_the_end_of_speech_to_just_behind_the_next_beginning():
    windows = sentence_windows(SENTENCES, torch.tensor([83, 53]))
    assert windows.first.tolist() == [22, 47, 79, 30, 50]
    assert windows.last.tolist() == [
        104 // 4 + LATE_FRAMES, 252 // 4 + LATE_FRAMES, 83, 130 // 4 + LATE_FRAMES, 53
    ]  # fmt: skip
    allowed = windows.allowed(torch.tensor([83, 53]), 83)
    assert allowed[1].nonzero().flatten().tolist() == [*range(30, 32 + LATE_FRAMES), *range(50, 53)]


def test_windows_never_overlap_however_short_a_sentence():
    sentences = torch.tensor([[0, 0, 8], [0, 9, 12], [0, 13, 16]])
    windows = sentence_windows(sentences, torch.tensor([5]))
    assert bool((windows.last > windows.first).all())
    assert bool((windows.last[:-1] <= windows.first[1:].clamp(min=1)).all())
    starts, ends = boundaries(windows, torch.zeros(1, 5))
    assert bool((ends > starts).all())


def test_gathered_rows_are_padded_with_zeros():
    frames = torch.arange(1, 21.0).view(2, 10, 1)
    rows, padding = gather(
        frames, torch.tensor([0, 0, 1]), torch.tensor([0, 4, 2]), torch.tensor([4, 10, 5])
    )
    assert rows[1, :, 0].tolist() == [5, 6, 7, 8, 9, 10]
    assert rows[2, :, 0].tolist() == [13, 14, 15, 0, 0, 0]
    assert padding.sum(dim=1).tolist() == [2, 0, 3]


def test_segment_ends_count_from_a_sentences_first_frame():
    ends = sentence_segment_ends([7, 15, 23, 30], torch.tensor([0, 9]), torch.tensor([9, 26]))
    assert ends.tolist() == [[7, 9, 9, 9], [0, 6, 14, 17]]


def test_an_end_is_learned_where_it_may_stand():
    """The gradient of the constrained loss equals that of summing over allowed alignments."""
    torch.manual_seed(1)
    end, blank = 2, 0
    allowed = torch.tensor([[False, False, True, True, False, True]])
    target, lengths = torch.tensor([[3, end, 4, end]]), torch.tensor([4])
    logits = torch.randn(6, 1, 5, dtype=torch.float64, requires_grad=True)
    loss = ctc_loss(
        logits, torch.tensor([6]), target, lengths, blank=blank, name="x", ends=(end, allowed)
    )
    (gradient,) = torch.autograd.grad(loss, logits)

    def brute_force(values):
        log_probs = values[:, 0].log_softmax(dim=-1)
        scores = []
        for path in torch.cartesian_prod(*[torch.arange(5)] * 6):
            merged = [int(p) for i, p in enumerate(path) if not i or p != path[i - 1]]
            said = [label for label in merged if label != blank]
            legal = all(allowed[0, i] for i, p in enumerate(path) if int(p) == end)
            if said == target[0].tolist() and legal:
                scores.append(log_probs[torch.arange(6), path].sum())
        return -torch.stack(scores).logsumexp(dim=0)

    reference = brute_force(logits)
    (expected,) = torch.autograd.grad(reference, logits)
    assert torch.allclose(loss.double(), reference, atol=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_split_log_probabilities_sum_to_one():
    logits = torch.randn(5, 2, 6)
    split = split_end_label(logits, torch.tensor([[True] * 5, [False] * 5]), 2)
    assert torch.allclose(split.exp().sum(dim=-1), torch.ones(5, 2), atol=1e-6)
    assert bool((split[:, 0, 2] < -1e3).all()) and bool((split[:, 1, 6] < -1e3).all())
