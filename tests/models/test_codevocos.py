"""CodeVocos: any cut gives the whole, rows of a batch do not know each other, bounds, errors."""

from dataclasses import replace

import pytest
import torch

from echostream.config import CodeVocosConfig
from echostream.models.decoders.codevocos import CodeVocos

SMALL = CodeVocosConfig(
    num_embeddings=24,
    pitch_classes=4,
    sampling_rate=8000,
    hop_samples=40,
    width=16,
    hidden_width=24,
    blocks=3,
    kernel=4,
    lookahead_frames=3,
    noise_frames=7,
)
OTHERS = [
    replace(SMALL, frames_per_unit=2, pitch_classes=1),
    replace(SMALL, lookahead_frames=0),
    replace(SMALL, lookahead_frames=0, frames_per_unit=3, kernel=1),
]


def make(config=SMALL, seed=0):
    torch.manual_seed(seed)
    network = CodeVocos(config).double().eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network


def cut(network, units, sizes):
    """One stream, in pieces of these sizes; its samples."""
    state, parts, done = network.init_state(1), [], 0
    for index, size in enumerate(sizes):
        piece = units[None, done : done + size]
        done += size
        last = index == len(sizes) - 1
        final = torch.tensor([True]) if last else None
        out = network.step(piece, torch.tensor([size]), state, final)
        parts += out.waves()
        state = out.state
    return torch.cat(parts), state


@pytest.mark.parametrize("config", [SMALL, *OTHERS])
@pytest.mark.parametrize("sizes", [(23,), (1,) * 23, (0, 2, 3, 0, 17, 1), (22, 1, 0), (20, 3)])
def test_any_cut_gives_the_whole(config, sizes):
    network = make(config)
    units = torch.randint(config.num_embeddings, (23,))
    whole, _ = network(units[None])
    assert whole.shape == (1, 23 * config.unit_samples)
    samples, state = cut(network, units, sizes)
    torch.testing.assert_close(samples, whole[0], atol=1e-10, rtol=0)
    fresh = network.init_state(1)
    for name in vars(fresh):
        assert torch.equal(getattr(state, name), getattr(fresh, name)), name
    assert whole.std() > 1e-4  # not silence


def test_rows_at_different_places_do_not_know_each_other():
    """Rows start, end and pause at different steps; each is what it would be alone."""
    network = make()
    lengths = [(5, 0, 7, 4, 0), (1, 9, 0, 2, 6), (0, 0, 3, 0, 8)]
    ends = [3, 4, None]  # the step after which a row's sequence ends
    units = [torch.randint(24, (sum(row),)) for row in lengths]
    state, parts, done = network.init_state(3), [[], [], []], [0, 0, 0]
    for step in range(5):
        counts = torch.tensor([row[step] for row in lengths])
        table = torch.randint(24, (3, int(counts.max())))  # rubbish behind every row's count
        for row in range(3):
            table[row, : counts[row]] = units[row][done[row] : done[row] + counts[row]]
            done[row] += int(counts[row])
        final = torch.tensor([ends[row] == step for row in range(3)])
        out = network.step(table, counts, state, final)
        state = out.state
        for row, wave in enumerate(out.waves()):
            parts[row].append(wave)
    for row in range(3):
        whole = network(units[row][None])[0][0]
        samples = torch.cat(parts[row])
        if ends[row] is None:  # look-ahead and the open hop are held back
            assert len(samples) == len(whole) - (3 + 1) * SMALL.unit_samples
        else:
            assert len(samples) == len(whole)
        torch.testing.assert_close(samples, whole[: len(samples)], atol=1e-10, rtol=0)


def test_state_has_one_shape():
    network = make()
    state = network.init_state(2)
    shapes = {name: value.shape for name, value in vars(state).items()}
    for count in (0, 1, 30):
        units, counts = torch.zeros(2, count, dtype=torch.long), torch.tensor([count, 0])
        state = network.step(units, counts, state).state
        assert {name: value.shape for name, value in vars(state).items()} == shapes


def test_nothing_beyond_the_lookahead_matters():
    network = make()
    units = torch.randint(24, (1, 30))
    other = units.clone()
    other[0, 20:] = (other[0, 20:] + 5) % 24
    (first, _), (second, _) = network(units), network(other)
    # The spectrum of frame t reaches one hop back from the frame's first sample.
    same = (20 - SMALL.lookahead_frames - 1) * SMALL.unit_samples
    torch.testing.assert_close(first[0, :same], second[0, :same], atol=0, rtol=0)
    after = slice(same, same + SMALL.unit_samples)
    assert (first[0, after] - second[0, after]).abs().max() > 1e-6


def test_speaks_at_the_pitch_it_is_given():
    """The pulse train repeats with the period asked for."""
    config = replace(SMALL, lookahead_frames=0, highest_f0=500.0)
    network = make(config)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.head.bias[config.bins : 2 * config.bins] = -30.0  # no noise
    units = torch.zeros(1, 40, dtype=torch.long)
    wave, predicted = network(units, torch.full((1, 40), 200.0, dtype=torch.float64))
    period = 8000 // 200
    steady = wave[0, 400:1200]
    torch.testing.assert_close(steady[period:], steady[:-period], atol=1e-9, rtol=0)
    assert steady.abs().max() > 10 * steady.abs().median()  # pulses, not a tone
    middle = (config.lowest_f0 * config.highest_f0) ** 0.5
    torch.testing.assert_close(predicted, torch.full_like(predicted, middle))


def test_transforms_of_unchanged_spectra_give_the_signal_back():
    network = make()
    hop = SMALL.hop_samples
    signal = torch.randn(10 * hop, dtype=torch.float64)
    frames = signal.unfold(0, 2 * hop, hop) @ network.analysis @ network.synthesis
    back = frames[:-1, hop:] + frames[1:, :hop]
    torch.testing.assert_close(back.flatten(), signal[hop:-hop], atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", [SMALL, OTHERS[0]])
def test_training_computes_the_same(config):
    """Training takes a Fourier transform where speaking takes a matrix product."""
    network = make(config)
    units = torch.randint(config.num_embeddings, (2, 12))
    spoken = network(units)[0]
    torch.testing.assert_close(network.train()(units)[0], spoken, atol=1e-6, rtol=0)
    network.trains_in_half = True
    rough = network.float()(units)[0].double()
    assert 0 < (rough - spoken).norm() < 0.3 * spoken.norm()


@pytest.mark.parametrize(
    "change",
    [
        {"num_embeddings": 25},
        {"blocks": 0},
        {"lookahead_frames": -1},
        {"lowest_f0": 500.0},
        {"highest_f0": 5000.0},
    ],
)
def test_sizes_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(SMALL, **change)
