"""The text decoder: incremental equals teacher-forced under the same visibility."""

from dataclasses import replace

import pytest
import torch

from echostream.config import MTDecoderConfig
from echostream.models.decoders.mt_state import repeating
from echostream.models.decoders.policy_visibility import ctc_emission, streaming_visibility
from echostream.models.decoders.transformer_decoder import TransformerMTDecoder
from echostream.models.kv_cache import TRIM_SLACK, KVCache, causal_mask
from echostream.models.transformer_layer import visible_mask
from echostream.streaming import PerRow, state_bytes

SOURCE, VOCAB = 12, 20


def make(**options) -> TransformerMTDecoder:
    config = MTDecoderConfig(
        **{"layers": 2, "embed_dim": 16, "attention_heads": 2, "ffn_dim": 24, **options}
    )
    return TransformerMTDecoder(config, SOURCE, VOCAB).double().eval()


def frames(count, batch=1):
    return torch.randn(batch, count, SOURCE, dtype=torch.double)


@torch.no_grad()
@pytest.mark.parametrize("context_tokens", [None, 3])
@pytest.mark.parametrize("source_context", [None, 4])
def test_incremental_equals_training_mask(context_tokens, source_context):
    decoder = make(context_tokens=context_tokens, source_context_frames=source_context)
    source = frames(11)
    tokens = torch.tensor([[2, 7, 9, 4, 11, 5, 8]])
    visible = torch.tensor([[3, 3, 4, 8, 8, 10, 11]])
    logits, hidden = decoder(tokens, source.transpose(0, 1), None, visible)
    state, seen, steps = decoder.init_state(), 0, []
    for position, now in enumerate(visible[0].tolist()):
        state = decoder.read(source[:, seen:now], state)
        seen = now
        out, state = decoder.step(tokens[:, position : position + 1], state)
        steps.append(out)
    torch.testing.assert_close(torch.cat(steps, 1), hidden.transpose(0, 1), atol=1e-12, rtol=0)
    torch.testing.assert_close(decoder.logits(torch.cat(steps, 1)), logits, atol=1e-12, rtol=0)


@torch.no_grad()
def test_several_positions_at_once_equal_one_by_one():
    decoder = make(context_tokens=4)
    tokens = torch.randint(4, VOCAB, (1, 9))
    start = decoder.read(frames(6), decoder.init_state())
    whole, _ = decoder.step(tokens, start)
    for cut in (1, 2, 5):
        state, pieces = start, []
        for piece in tokens.split(cut, dim=1):
            out, state = decoder.step(piece, state)
            pieces.append(out)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-12, rtol=0)


@torch.no_grad()
def test_padding_in_a_batch_changes_nothing():
    decoder = make()
    source = torch.randn(7, 2, SOURCE, dtype=torch.double)
    tokens = torch.tensor([[2, 5, 6, 7, 8], [2, 9, 4, 1, 1]])
    padding = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
    logits, _ = decoder(tokens, source, padding)
    alone, _ = decoder(tokens[1:, :3], source[:4, 1:])
    torch.testing.assert_close(logits[1:, :3], alone, atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("context_tokens", [None, 5])
def test_truncate_equals_fresh_prefill(context_tokens):
    decoder = make(context_tokens=context_tokens)
    tokens = torch.randint(4, VOCAB, (1, 12))
    start = decoder.read(frames(6), decoder.init_state())
    _, full = decoder.step(tokens, start)
    for length in (0, 1, 7, 12):
        truncated = full.truncate(length, last_token=2)
        fresh = start
        if length:
            _, fresh = decoder.step(tokens[:, :length], start)
        probe = torch.tensor([[6]])
        torch.testing.assert_close(
            decoder.step(probe, truncated)[0], decoder.step(probe, fresh)[0], atol=1e-12, rtol=0
        )
    with pytest.raises(ValueError, match="cannot truncate to 13 positions"):
        full.truncate(13, last_token=2)


@torch.no_grad()
def test_decode_follows_greedy_choice_and_rolls_back_end_of_sentence():
    decoder = make()
    state = decoder.read(frames(5), decoder.init_state())
    # Make end-of-sentence win from the third position on.
    calls = []
    original = decoder._log_probs

    def forced(hidden, first, transcribes):
        (position,) = first
        calls.append(position)
        scores = original(hidden, first, transcribes)
        if position >= 2:
            scores[..., decoder.eos] = 100.0
        return scores

    decoder._log_probs = forced
    going = decoder.decode(state, max_new_tokens=10, final=False)
    assert len(going.tokens) == 2 and not going.finished
    assert going.state.length == 2 and going.hidden.shape == (1, 2, 16)
    assert calls == [0, 1, 2]
    ended = decoder.decode(state, max_new_tokens=10, final=True)
    assert ended.tokens == going.tokens and ended.finished
    assert ended.hidden.shape == (1, 3, 16) and ended.state.length == 3
    torch.testing.assert_close(ended.hidden[:, :2], going.hidden)
    # The position that wanted to stop is asked again with more source.
    again = decoder.decode(going.state, max_new_tokens=1, final=False)
    assert calls[-1] == 2 and again.tokens == ()


@torch.no_grad()
def test_decode_never_pads_and_never_starts_with_end_of_sentence():
    for seed in range(20):
        torch.manual_seed(seed)
        decoder = make()
        state = decoder.read(frames(5), decoder.init_state())
        tokens = decoder.decode(state, max_new_tokens=8, final=True).tokens
        assert tokens and decoder.pad not in tokens and decoder.eos not in tokens


@torch.no_grad()
def test_beam_finds_the_best_scored_sentence():
    """Against exhaustive search over all sentences of up to two tokens."""
    torch.manual_seed(3)
    decoder = TransformerMTDecoder(
        MTDecoderConfig(layers=1, embed_dim=8, attention_heads=2, ffn_dim=8), SOURCE, 7
    )
    decoder = decoder.double().eval()
    torch.nn.init.normal_(decoder.embed_tokens.weight)
    state = decoder.read(frames(4), decoder.init_state())

    def score(sentence):
        total, current = 0.0, state
        for token in (*sentence, decoder.eos):
            hidden, following = decoder.step(torch.tensor([[current.last_token]]), current)
            total += float(decoder._log_probs(hidden, [current.length], [False])[0, 0, token])
            current = replace(following, last_tokens=PerRow([token]))
        return total / (len(sentence) + 1)

    vocabulary = [t for t in range(7) if t not in (decoder.pad, decoder.eos)]
    sentences = [(a,) for a in vocabulary] + [(a, b) for a in vocabulary for b in vocabulary]
    best = max(sentences, key=score)
    found = decoder.decode(state, max_new_tokens=3, final=True, beam=50)
    assert found.finished
    # Sentences of the full length are searched too: ours scores at least as well.
    value = found.score / (len(found.tokens) + 1)
    assert value >= score(best) - 1e-5
    if len(found.tokens) <= 2:
        assert found.tokens == best
    assert abs(value - score(found.tokens)) < 1e-5
    greedy = decoder.decode(state, max_new_tokens=3, final=True)
    assert decoder.decode(state, max_new_tokens=3, final=True, beam=1).tokens == greedy.tokens


@torch.no_grad()
def test_beam_continues_like_greedy_state():
    """After a beam decision the state holds exactly the chosen tokens."""
    decoder = make()
    state = decoder.read(frames(6), decoder.init_state())
    found = decoder.decode(state, max_new_tokens=3, final=False, beam=4)
    inputs = torch.tensor([[2, *found.tokens[:-1]]])
    hidden, forced = decoder.step(inputs, state)
    torch.testing.assert_close(found.hidden, hidden, atol=1e-12, rtol=0)
    probe = torch.tensor([[found.tokens[-1]]])
    torch.testing.assert_close(
        decoder.step(probe, found.state)[0], decoder.step(probe, forced)[0], atol=1e-12, rtol=0
    )
    assert found.state.last_token == found.tokens[-1]


@torch.no_grad()
def test_state_is_bounded():
    decoder = make(context_tokens=5, source_context_frames=10)
    state = decoder.init_state()
    sizes = []
    for _ in range(200):
        state = decoder.read(frames(4), state)
        _, state = decoder.step(torch.tensor([[5]]), state)
        sizes.append(state_bytes(state.cache) + state_bytes(state.sources))
    assert state.length == 200 and state.source_length == 800
    assert state.cache.stored[0] <= 5 + 2 * TRIM_SLACK
    assert state.sources.stored[0] <= 10 + 2 * TRIM_SLACK
    assert max(sizes[150:]) <= max(sizes[:150])


def test_step_without_source_is_an_error():
    decoder = make()
    with pytest.raises(ValueError, match="at least one source frame"):
        decoder.step(torch.tensor([[2]]), decoder.init_state())


def test_cache_views_never_change():
    def append(cache, value):
        appending = cache.extend([3])
        new = torch.full((1, 1, 3, 2), float(value))
        appending.write(0, new, new)
        return appending.cache

    def keys(cache):
        return cache.layer(0)[0][0, 0, :, 0].tolist()

    cache = KVCache.empty(1, torch.zeros(1), 1, 1, 2)
    first = append(cache, 1)
    second, branch = append(first, 2), append(first, 3)
    assert keys(first) == [1, 1, 1]
    assert keys(second) == [1, 1, 1, 2, 2, 2]
    assert keys(branch) == [1, 1, 1, 3, 3, 3]
    assert (cache.length, first.length, second.length) == (0, 3, 6)
    assert second.storage is first.storage and branch.storage is not first.storage
    # A copy of a branch is as good, and truncating is forgetting.
    assert keys(append(second.truncate(3), 4)) == [1, 1, 1, 4, 4, 4] and keys(second)[3:] == [2] * 3


@pytest.mark.parametrize(
    ("queries", "keys", "window", "rows"),
    [
        (1, 5, None, None),
        (1, 5, 5, None),
        (1, 5, 2, ["00011"]),
        (3, 5, None, ["11100", "11110", "11111"]),
        (3, 5, 2, ["01100", "00110", "00011"]),
    ],
)
def test_causal_mask(queries, keys, window, rows):
    mask = causal_mask(queries, keys, window, torch.device("cpu"))
    if rows is None:
        assert mask is None
    else:
        assert torch.equal(mask, torch.tensor([[int(c) for c in row] for row in rows]).bool())


def test_visible_mask_windows():
    mask = visible_mask(torch.tensor([[1, 4]]), 5, 2, torch.device("cpu"))
    assert mask.int().tolist() == [[[1, 0, 0, 0, 0], [0, 0, 1, 1, 0]]]
    assert visible_mask(None, 5, None, torch.device("cpu")) is None
    assert visible_mask(None, 5, 2, torch.device("cpu")).int().tolist() == [[[0, 0, 0, 1, 1]]]


def test_streaming_visibility_by_hand():
    """Four tokens' worth of ST evidence at frames 1, 3, 4, 7; ASR emits at frames 2, 3, 5, 6."""
    st = torch.tensor([[0.0, 1, 0, 1, 1, 0, 0, 1, 0]])
    asr = torch.tensor([[0.0, 0, 1, 1, 0, 1, 1, 0, 0]])
    ends = [3, 6, 9]
    visible = streaming_visibility(asr, st, 5, lagging_k1=0, stride_n=1, segment_ends=ends)
    # Token 0 needs 1 ST token (frame 1), next ASR frame 2, segment end 3; and so on.
    assert visible.tolist() == [[3, 6, 6, 9, 9]]
    lagged = streaming_visibility(asr, st, 3, lagging_k1=1, stride_n=1, segment_ends=ends)
    assert lagged.tolist() == [[6, 6, 9]]
    strided = streaming_visibility(asr, st, 4, lagging_k1=0, stride_n=2, segment_ends=ends)
    assert strided.tolist() == [[6, 6, 9, 9]]


def test_ctc_emission_counts_new_labels():
    # Frames: blank, a, a, blank, a, b with certainty.
    logits = torch.full((1, 6, 3), -50.0)
    for frame, label in enumerate([0, 1, 1, 0, 1, 2]):
        logits[0, frame, label] = 50.0
    torch.testing.assert_close(ctc_emission(logits)[0], torch.tensor([0.0, 1, 0, 0, 1, 1]))


@torch.no_grad()
@pytest.mark.parametrize("window", [3, 20])
def test_long_streams_equal_forward_behind_the_window(window):
    """Far beyond window and slack, where caches have dropped positions many times."""
    decoder = make(context_tokens=window, source_context_frames=window)
    steps = window + 3 * TRIM_SLACK
    source, tokens = frames(2 * steps), torch.randint(4, VOCAB, (1, steps))
    visible = torch.arange(2, 2 * steps + 1, 2)[None]
    _, hidden = decoder(tokens, source.transpose(0, 1), None, visible)
    state, pieces = decoder.init_state(), []
    for position in range(steps):
        state = decoder.read(source[:, 2 * position : 2 * position + 2], state)
        out, state = decoder.step(tokens[:, position : position + 1], state)
        pieces.append(out)
    assert state.cache.offset[0] > 0 and state.sources.offset[0] > 0
    torch.testing.assert_close(torch.cat(pieces, 1), hidden.transpose(0, 1), atol=1e-12, rtol=0)


@torch.no_grad()
def test_ragged_batch_with_a_window_shorter_than_the_source():
    decoder = make(source_context_frames=5)
    source = torch.randn(30, 2, SOURCE, dtype=torch.double)
    tokens = torch.randint(4, VOCAB, (2, 4))
    padding = torch.arange(30)[None] >= torch.tensor([[30], [8]])
    logits, _ = decoder(tokens, source, padding)
    alone, _ = decoder(tokens[1:], source[:8, 1:])
    torch.testing.assert_close(logits[1:], alone, atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("final", [False, True])
def test_guesses_change_nothing_but_the_time(final, monkeypatch):
    """Right, wrong at every place, too long, of one row only, and where judges look on."""
    decoder = make()
    source = frames(8, batch=2)
    state = decoder.read(source, decoder.init_state(2), lengths=[8, 5])
    limits = [7, 5]
    wanted = decoder.decode_rows(state, limits, final)
    steps = []
    original = type(decoder).step
    monkeypatch.setattr(type(decoder), "step", lambda *a, **k: steps.append(1) or original(*a, **k))
    right = [one.tokens for one in wanted]
    candidates = [right, [right[0], ()], [(9,) * 9, right[1]], [(*right[0], 5, 6, 7), (4,)]]
    for place in range(1, 7):
        own = list(right[0])
        own[place:] = [8] * (len(own) - place)
        candidates.append([own, right[1][:place]])
    for guesses in candidates:
        found = decoder.decode_rows(state, limits, final, guesses=guesses)
        for a, b in zip(found, wanted, strict=True):
            assert (a.tokens, a.finished, a.refused) == (b.tokens, b.finished, b.refused)
            torch.testing.assert_close(a.hidden, b.hidden, atol=1e-9, rtol=0)
            assert a.state.length == b.state.length
            assert a.state.written == b.state.written
            assert a.score == pytest.approx(b.score, abs=1e-6)
            again = decoder.decode_rows(a.state, [3], final)[0].tokens
            assert again == decoder.decode_rows(b.state, [3], final)[0].tokens
    steps.clear()
    decoder.decode_rows(state, limits, final, guesses=right)
    assert len(steps) <= 2
    stands = [lambda tokens, _: len(tokens) < 3, None]
    judged = decoder.decode_rows(state, limits, final, stands=stands)
    found = decoder.decode_rows(state, limits, final, stands=stands, guesses=right)
    assert [(a.tokens, a.refused) for a in found] == [(b.tokens, b.refused) for b in judged]


@torch.no_grad()
@pytest.mark.parametrize("guess", [(), (5, 6, 7)])
def test_rows_do_not_end_before_their_least(guess):
    decoder = make()
    original = decoder._log_probs

    def ending(hidden, first, transcribes):
        scores = original(hidden, first, transcribes)
        scores[..., decoder.eos] = 100.0
        return scores

    decoder._log_probs = ending
    state = decoder.read(frames(5, batch=2), decoder.init_state(2))
    options = {"least": [3, 0], "guesses": [guess, ()]}
    long, short = decoder.decode_rows(state, [5, 5], True, **options)
    assert len(long.tokens) == 3 and long.finished
    assert not short.tokens and short.finished
    again = decoder.decode_rows(long.state, [5], False, least=[2])[0]
    assert len(again.tokens) == 2 and not again.finished


@torch.no_grad()
def test_beam_while_the_source_goes_on_keeps_unfinished_sentences():
    decoder = make()
    state = decoder.read(frames(5), decoder.init_state())
    original = decoder._log_probs

    def ending(hidden, first, transcribes):
        position = first[0]
        scores = original(hidden, first, transcribes)
        if position >= 1:
            scores[..., decoder.eos] = -1e-3 if position == 1 else -50.0
        return scores

    decoder._log_probs = ending
    going = decoder.decode(state, max_new_tokens=4, final=False, beam=3)
    assert not going.finished and going.state.length == len(going.tokens)
    assert len(going.state.sources.end) == 1
    ended = decoder.decode(state, max_new_tokens=4, final=True, beam=3)
    assert ended.finished and ended.hidden.size(1) == len(ended.tokens) + 1


def test_visibility_of_one_frame_segments():
    always = torch.ones(1, 6)
    visible = streaming_visibility(
        always, always, 4, lagging_k1=0, stride_n=1, segment_ends=[1, 2, 3, 4, 5, 6]
    )
    assert visible.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("written", "size", "forbidden"),
    [
        ((5, 6, 7, 5, 6), 3, {7}),
        ((5, 5, 5), 2, {5}),
        ((5, 6, 7), 3, set()),
        ((5, 6), 3, set()),
        ((1, 2, 3, 1, 2, 4, 1, 2), 3, {3, 4}),
        ((8, 9, 8), 1, {8, 9}),
    ],
)
def test_what_would_repeat(written, size, forbidden):
    assert set(repeating(written, size)) == forbidden


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 3])
def test_no_run_is_written_twice(beam):
    """Over several decisions of a sentence, and after words were taken back."""
    source = frames(4)
    runs = {}
    for size in (0, 2):
        torch.manual_seed(3)
        decoder = make(no_repeat_ngram=size)
        state = decoder.read(source, decoder.init_state())
        tokens: list[int] = []
        for count in (5, 4, 6):
            found = decoder.decode(state, max_new_tokens=count, final=False, beam=beam)
            found = found.keep(max(len(found.tokens) - 1, 0), state)
            tokens += found.tokens
            state = found.state
            assert state.written == ((*tokens,),)
        runs[size] = tokens
    pairs = list(zip(runs[2], runs[2][1:], strict=False))
    assert len(pairs) == len(set(pairs))
    again = list(zip(runs[0], runs[0][1:], strict=False))
    assert len(again) > len(set(again))  # this decoder does go round in circles


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 3])
def test_transcripts_may_repeat_more(beam):
    """Each task has its own bound; where a transcript has none, it is the translation's."""
    sizes = {}
    for own in (None, 0):
        torch.manual_seed(3)
        decoder = make(
            no_repeat_ngram=2,
            transcript_no_repeat_ngram=own,
            prompt=(18, 19),
            transcript_prompt=(8, 9),
            transcript_vocab_size=10,
        )
        source = frames(4)
        for transcribes in (False, True):
            state = decoder.read(source, decoder.init_state(transcribes=transcribes))
            tokens = decoder.decode(state, max_new_tokens=15, final=False, beam=beam).tokens
            pairs = list(zip(tokens, tokens[1:], strict=False))
            sizes[own, transcribes] = len(pairs) - len(set(pairs))
    assert sizes[None, False] == sizes[None, True] == sizes[0, False] == 0
    assert sizes[0, True] > 0
