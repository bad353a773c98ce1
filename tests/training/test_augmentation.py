"""What real recordings have and synthetic speech lacks, effect by effect."""

import dataclasses

import pytest
import torch

from echostream.training.warm_start.augment import AugmentOptions, augment

RATE = 16000
NOTHING = AugmentOptions(
    room=0, noise=0, music=0, telephone=0, narrow=0, codec=0, clipped=0, gain_db=(0.0, 0.0)
)


def apply(waveforms, seed=1, **changes):
    lengths = torch.full((len(waveforms),), waveforms.size(1))
    generator = torch.Generator().manual_seed(seed)
    return augment(waveforms, lengths, generator, dataclasses.replace(NOTHING, **changes))


def tones(*hertz, seconds=1.0, amplitude=0.2):
    time = torch.arange(int(RATE * seconds)) / RATE
    return torch.stack([amplitude * torch.sin(2 * torch.pi * h * time) for h in hertz])


def decibels(signal, of):
    return float(10 * torch.log10(signal.square().mean() / of.square().mean()))


def test_nothing_changes_nothing():
    sound = tones(300, 3000)
    assert torch.equal(apply(sound), sound)


def test_the_seed_decides():
    sound, options = tones(300, 700, 1500), {"room": 1, "noise": 1, "music": 1, "codec": 1}
    first = apply(sound, **options)
    assert torch.equal(first, apply(sound, **options))
    assert not torch.allclose(first, apply(sound, seed=2, **options))


def test_padding_stays_silent():
    sound = tones(300, 700)
    sound[1, 8000:] = 0
    lengths = torch.tensor([16000, 8000])
    every = AugmentOptions(room=1, noise=1, music=1, codec=1)
    heard = augment(sound, lengths, torch.Generator().manual_seed(1), every)
    assert heard.shape == sound.shape and heard.abs().max() <= 1
    assert not heard[1, 8000:].any() and heard[1, :8000].any()


@pytest.mark.parametrize("effect", ["noise", "music"])
def test_what_is_added_keeps_its_distance(effect):
    sound = tones(*[400] * 8)
    ranges = {"noise": {"snr_db": (12.0, 12.0)}, "music": {"music_db": (12.0, 12.0)}}
    added = apply(sound, **{effect: 1}, **ranges[effect]) - sound
    for row, speech in zip(added, sound, strict=True):
        assert decibels(row, speech) == pytest.approx(-12, abs=0.3)


def test_a_telephone_passes_its_band_alone():
    sound = tones(60, 1000, 6000)
    low, middle, high = apply(sound, telephone=1)
    assert decibels(low, sound[0]) < -15 and decibels(high, sound[2]) < -40
    assert decibels(middle, sound[1]) == pytest.approx(0, abs=0.3)


def test_a_narrow_band_keeps_the_bass():
    sound = tones(60, 7500)
    low, high = apply(sound, narrow=1)
    assert decibels(low, sound[0]) == pytest.approx(0, abs=0.3) and decibels(high, sound[1]) < -40


def test_a_room_keeps_place_and_level():
    sound = torch.zeros(4, RATE)
    sound[:, 4000:4400] = tones(500)[0, :400]
    heard = apply(sound, room=1)
    assert heard[:, :3990].abs().max() < 1e-6  # nothing is heard before it is said
    assert heard[:, 4000:4400].square().sum(1).div(heard.square().sum(1)).min() > 0.3
    assert heard[:, 4500:].square().sum(1).min() > 0  # and something after it
    for row, clean in zip(heard, sound, strict=True):
        assert decibels(row, clean) == pytest.approx(0, abs=0.3)


def test_eight_bits_are_heard_little():
    sound = tones(500)
    error = apply(sound, codec=1) - sound
    assert -45 < decibels(error, sound) < -25


def test_gain_and_clipping():
    sound = tones(500)
    louder = apply(sound, gain_db=(6.0, 6.0))
    assert decibels(louder, sound) == pytest.approx(6, abs=0.01)
    clipped = apply(sound, clipped=1)
    assert clipped.abs().max() == 1 and (clipped.abs() == 1).float().mean() > 0.3
