"""Rows of a batch at different positions compute what each computes alone; shapes never change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from echostream.config import CTCHeadConfig, T2UEncoderConfig, preset
from echostream.models.echostream_model import seeded_model
from echostream.streaming import (
    join_rows,
    load_state,
    move,
    per_row,
    rows_apart,
    save_state,
    state_bytes,
    take_rows,
    tensors_of,
    with_tensors,
)

VARIANTS = {
    "memory": {},
    "no memory": {"memory_size": 0},
    "right context": {"right_context_frames": 3},
    "convolution and right context": {"depthwise_kernel_size": 5, "right_context_frames": 2},
    "no left context": {"left_context_frames": 0, "depthwise_kernel_size": 3},
    "other subsampler": {"subsampler": "conv1d_glu"},
    "Whisper's layers": {
        "subsampler": "whisper",
        "activation": "gelu",
        "output_norm": "stack",
        "positions": "sinusoid",
        "position_period": 30,
    },
}


def config_of(**encoder):
    tiny = preset("tiny")
    # Short windows: within the test they fill, overflow and are trimmed.
    heads = {
        "asr_ctc": replace(tiny.asr_ctc, layers=0),
        "st_ctc": CTCHeadConfig(layers=2, attention_heads=4, ffn_dim=64, context_frames=24),
        "t2u": T2UEncoderConfig(layers=1, attention_heads=4, ffn_dim=64, context_tokens=5),
        "mt": replace(tiny.mt, context_tokens=6, source_context_frames=20),
        "unit": replace(tiny.unit, context_tokens=7),
    }
    return replace(tiny, encoder=replace(tiny.encoder, **encoder), **heads)


def model_of(**encoder):
    return seeded_model(config_of(**encoder), 3).double()


def noise(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.double)


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def padded(parts):
    """(1, N, D) parts to (B, N, D), with something in the padding that must not matter."""
    size = max(part.size(1) for part in parts)
    rows = torch.full((len(parts), size, parts[0].size(2)), 7.0, dtype=parts[0].dtype)
    for row, part in enumerate(parts):
        rows[row, : part.size(1)] = part[0]
    return rows


def held(cache):
    """What each row of a cache holds, layer by layer."""
    rows = enumerate(zip(cache.start, cache.end, strict=True))
    return [layer[row, :, :, start:end] for row, (start, end) in rows for layer in cache.tensors()]


def told(output):
    """What a head emitted, without the logits."""
    return replace(output, asr_logits=None, st_logits=None)


def hear(model, features, state, **options):
    encoded, state = model.encode(features, state, **options)
    outputs, state = model.emit(encoded, state)
    return encoded, outputs, state


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_listening_rows_equal_streams_alone(name):
    """Streams in random chunks, some empty, that enter and leave in the middle."""
    model = model_of(**VARIANTS[name])
    generator = torch.Generator().manual_seed(1)

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    streams = []
    for begins in (0, 0, 3, 7):
        chunks = [noise(generator, 1, draw(0, 60), 80) for _ in range(draw(6, 16))]
        streams.append((begins, chunks))
    expected = []
    for _, chunks in streams:
        state, found = model.init_listening(), []
        for index, chunk in enumerate(chunks):
            encoded, (output,), state = hear(model, chunk, state, final=index == len(chunks) - 1)
            found.append((encoded.frames, output))
        expected.append((found, state))
    states = {row: model.init_listening() for row in range(len(streams))}
    shapes = [tensor.shape for tensor in tensors_of(states[0])]
    sizes, together, emitted = {state_bytes(states[0])}, 0, 0
    for turn in range(25):
        active = [
            row for row, (begins, chunks) in enumerate(streams) if 0 <= turn - begins < len(chunks)
        ]
        if not active:
            continue
        together = max(together, len(active))
        turns = [turn - streams[row][0] for row in active]
        new = [streams[row][1][own] for row, own in zip(active, turns, strict=True)]
        ends = [len(streams[row][1]) - 1 == own for row, own in zip(active, turns, strict=True)]
        before = join_rows([states[row] for row in active])
        # Behind a cache's end, later ones write: what it shows stays as it is.
        seen = [*tensors_of(before.encoder), *held(before.st)]
        kept = [tensor.clone() for tensor in seen]
        encoded, outputs, after = hear(
            model, padded(new), before, lengths=[part.size(1) for part in new], final=ends
        )
        assert all(map(torch.equal, kept, seen)), "a step changed the state it got"
        for index, (row, own) in enumerate(zip(active, turns, strict=True)):
            frames, output = expected[row][0][own]
            assert encoded.counts[index] == frames.size(1)
            close(encoded.frames[index : index + 1, : frames.size(1)], frames)
            assert told(outputs[index]) == told(output)
            emitted += len(output.st_tokens)
            states[row] = take_rows(after, [index])
            assert [tensor.shape for tensor in tensors_of(states[row])] == shapes
            sizes.add(state_bytes(states[row]))
    assert together >= 3 and emitted > 10
    assert len(sizes) == 1
    for row, (_, state) in enumerate(expected):
        for a, b in zip(tensors_of(states[row].encoder), tensors_of(state.encoder), strict=True):
            close(a, b)
        assert states[row].encoder.frames == state.encoder.frames
        assert states[row].st.lengths == state.st.lengths


@torch.no_grad()
def test_rows_in_single_precision():
    model = seeded_model(config_of(), 3)
    generator = torch.Generator().manual_seed(1)
    states = []
    for count in (1, 5, 9):
        state = model.init_listening()
        for _ in range(count):
            _, _, state = hear(model, noise(generator, 1, 32, 80).float(), state)
        states.append(state)
    features = noise(generator, 3, 32, 80).float()
    encoded, outputs, _ = hear(model, features, join_rows(states))
    for row, state in enumerate(states):
        own, (output,), _ = hear(model, features[row : row + 1], state)
        close(encoded.frames[row : row + 1], own.frames, 1e-5)
        assert told(outputs[row]) == told(output)


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 3])
def test_writing_rows_equal_streams_alone(beam):
    """Text decoder rows with sources, texts and limits of different lengths, beyond their windows;
    some have ended, and one leaves on the way."""
    model = model_of()
    decoder = model.target_unigram_decoder
    generator = torch.Generator().manual_seed(2)
    width = model.encoder.embed_dim
    alone = [decoder.init_state() for _ in range(4)]
    rows = list(alone)
    written = 0
    for turn in range(25):
        active = [row for row in range(4) if turn < 20 or row != 1]
        frames = [noise(generator, 1, 1 + (3 * turn + 5 * row) % 40, width) for row in active]
        limits = [1 + (5 * turn + 7 * row) % 23 for row in active]
        ends = [turn % 3 == 2 and row % 2 == 0 for row in active]
        read = decoder.read(
            padded(frames),
            join_rows([rows[row] for row in active]),
            lengths=[part.size(1) for part in frames],
        )
        found = decoder.decode_rows(read, limits, ends, beam=beam)
        for index, row in enumerate(active):
            own = decoder.decode(
                decoder.read(frames[index], alone[row]),
                max_new_tokens=limits[index],
                final=ends[index],
                beam=beam,
            )
            together = found[index]
            assert (together.tokens, together.finished) == (own.tokens, own.finished)
            assert together.score == pytest.approx(own.score, abs=1e-9)
            close(together.hidden, own.hidden)
            assert together.state.last_tokens == own.state.last_tokens
            assert together.state.cache.lengths == own.state.cache.lengths
            assert together.state.sources.lengths == own.state.sources.lengths
            alone[row], rows[row] = own.state, together.state
            written += len(own.tokens)
    assert written > 40
    assert max(state.cache.offset[0] for state in alone) > 0, "no window was left"


@torch.no_grad()
def test_speaking_rows_equal_streams_alone():
    """Text-to-unit model and vocoder: rows with different numbers of text states and units."""
    model = model_of()
    generator = torch.Generator().manual_seed(3)
    width = model.config.mt.embed_dim
    alone = [model.init_speech() for _ in range(3)]
    rows, spoken = list(alone), 0
    for turn in range(12):
        active = [row for row in range(3) if turn != 4 + row]
        hidden = [3 * noise(generator, 1, 1 + (turn + 2 * row) % 4, width) for row in active]
        units, state = model.speak(hidden, join_rows([rows[row] for row in active]))
        for index, row in enumerate(active):
            (own,), alone[row] = model.speak([hidden[index]], alone[row])
            assert units[index] == own
            rows[row] = take_rows(state, [index])
            assert rows[row].unit.cache.lengths == alone[row].unit.cache.lengths
        speaking = [row for index, row in enumerate(active) if units[index]]
        new = [own for own in units if own]
        if not speaking:
            continue
        speeds = [1.0, 1.3, 0.8][: len(speaking)]
        waves, state = model.vocode(new, join_rows([rows[row] for row in speaking]), speeds)
        for index, row in enumerate(speaking):
            (wave,), alone[row] = model.vocode([new[index]], alone[row], [speeds[index]])
            close(waves[index], wave, 1e-8)
            rows[row] = take_rows(state, [index])
            assert rows[row].vocoder.tails == alone[row].vocoder.tails
            spoken += len(new[index])
    assert spoken > 50


@torch.no_grad()
def test_a_taken_row_shares_no_memory_with_the_others():
    model = model_of()
    generator = torch.Generator().manual_seed(1)
    _, _, state = hear(model, noise(generator, 3, 64, 80), model.init_listening(3))
    one = take_rows(state, [1])
    apart = rows_apart(state, 3)
    assert all(map(torch.equal, tensors_of(apart[1]), tensors_of(one)))
    kept = [tensor.clone() for tensor in tensors_of(one)]
    for tensor in tensors_of(state):
        tensor.fill_(9.0)
    for own in (one, apart[1]):
        assert all(map(torch.equal, kept, tensors_of(own)))
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors_of(own))


@torch.no_grad()
def test_rows_are_taken_apart_as_one_by_one():
    """After speech of different lengths, so that caches differ in how much they hold."""
    model = model_of()
    generator = torch.Generator().manual_seed(3)
    width = model.config.mt.embed_dim
    _, state = model.speak([noise(generator, 1, n, width) for n in (1, 9, 4)], model.init_speech(3))
    for row, own in enumerate(rows_apart(state, 3)):
        one = take_rows(state, [row])
        assert own.collapse == one.collapse and own.vocoder.tails == one.vocoder.tails
        assert own.unit.cache.lengths == one.unit.cache.lengths
        hidden = [noise(generator, 1, 2, width)]
        (units, after), (wanted, behind) = model.speak(hidden, own), model.speak(hidden, one)
        assert units == wanted
        assert after.unit.cache.lengths == behind.unit.cache.lengths


@torch.no_grad()
def test_states_are_saved_loaded_moved_and_rebuilt(tmp_path):
    model = model_of()
    generator = torch.Generator().manual_seed(1)
    state = model.init_listening()
    _, _, state = hear(model, noise(generator, 1, 64, 80), state)
    path = tmp_path / "stream.safetensors"
    # What a collapse remembers is no tensor and no counter of the encoder.
    save_state(state.encoder, path)
    loaded = load_state(path, model.encoder.init_state())
    assert loaded.frames == state.encoder.frames and loaded.waiting == state.encoder.waiting
    features = noise(generator, 1, 32, 80)
    close(model.encoder.step(features, loaded)[0], model.encoder.step(features, state.encoder)[0])
    save_state(state.st, path)
    cache = load_state(path, model.ctc_target_unigram_decoder.init_state())
    assert (cache.lengths, cache.start, cache.end) == (
        state.st.lengths,
        state.st.start,
        state.st.end,
    )
    with pytest.raises(ValueError, match="holds .* tensors and .* counters"):
        load_state(path, model.encoder.init_state())
    assert {tensor.device.type for tensor in tensors_of(move(state, "meta"))} == {"meta"}
    tensors = [tensor + 1 for tensor in tensors_of(state)]
    rebuilt = with_tensors(state, tensors)
    assert all(map(torch.equal, tensors, tensors_of(rebuilt)))
    with pytest.raises(ValueError, match="more tensors than"):
        with_tensors(state, [*tensors, tensors[0]])


def test_rows_need_one_value_each():
    assert per_row(3, 2) == (3, 3) and per_row([1, 2], 2) == (1, 2)
    with pytest.raises(ValueError, match="2 rows need 2 values, got 3"):
        per_row([1, 2, 3], 2)


def test_states_of_other_models_cannot_be_joined():
    model = model_of()
    one = model.init_listening()
    with pytest.raises((ValueError, RuntimeError)):
        join_rows([one.encoder, model_of(left_context_frames=9).encoder.init_state()])
