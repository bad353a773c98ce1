"""CodeVocos in training: losses fall, resuming is exact, pitch is asked for, the file speaks."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch

from echostream.config import CodeVocosConfig
from echostream.models.decoders.codevocos import CodeVocos
from echostream.models.decoders.codevocos_vocoder import CodeVocosVocoder
from echostream.training.units.sequences import write_units
from echostream.training.vocoder import validation
from echostream.training.vocoder.codevocos_training import (
    CodeVocosTrainer,
    bridge_pitch,
    gain_targets,
)
from echostream.training.vocoder.data import SegmentSampler, SpeechWithUnits
from echostream.training.vocoder.train_vocoder import main
from echostream.training.vocoder.vocoder_trainer import CHECKPOINT
from tests.training.small_vocoders import VOCOS, config_file

CONFIG = VOCOS
FRAME = CONFIG.vocoder.unit_samples


def speech(name, seed, frames=40):
    """Each unit is a tone of its own pitch, with two harmonics, of one to four frames."""
    rng = np.random.default_rng(seed)
    units = np.repeat(rng.integers(0, 20, frames), rng.integers(1, 5, frames))[:frames]
    f0 = 100.0 + 10 * units
    phase = np.cumsum(2 * np.pi * np.repeat(f0, FRAME) / 16000)
    tone = 6000 * np.sin(phase) + 3000 * np.sin(2 * phase)
    pitch = np.repeat(np.where(units == 3, 0, f0), 2).astype(np.float32)
    return SpeechWithUnits(name, units, tone.astype(np.int16), pitch)


@pytest.fixture
def sampler():
    return SegmentSampler(
        [speech(f"u{i}", i) for i in range(6)], segment_frames=16, frame_samples=FRAME, seed=1
    )


def make_trainer(sampler, config=CONFIG):
    return CodeVocosTrainer(config, sampler, torch.device("cpu"))


def test_losses_fall(sampler):
    config = dataclasses.replace(CONFIG, adversarial_start=100, learning_rate=1e-2)
    trainer = make_trainer(sampler, config)
    losses = [trainer.step() for _ in range(100)]
    for name, share in (("mel", 0.7), ("stft", 0.8), ("pitch", 0.7), ("duration", 0.9)):
        told = [step[name] for step in losses if name in step]
        assert np.mean(told[-5:]) < share * np.mean(told[:5]), name
    assert ["mel" in step for step in losses[:4]] == [False, False, False, True]
    assert ["gains" in step for step in losses[:4]] == [True, True, True, False]


def test_resuming_is_bit_exact(tmp_path, sampler):
    """With discriminators from update 8 on."""
    straight = make_trainer(sampler)
    history = [straight.step() for _ in range(12)]
    assert {"adversarial", "pitch"} <= set(history[-1])
    first = make_trainer(sampler)
    for _ in range(6):
        first.step()
    first.save(tmp_path)
    second = make_trainer(sampler)
    second.restore(tmp_path / CHECKPOINT)
    assert [second.step() for _ in range(6)] == history[6:]


def test_speech_without_pitch_is_refused(sampler):
    mute = [dataclasses.replace(u, f0=None) for u in sampler.utterances]
    other = SegmentSampler(mute, segment_frames=16, frame_samples=FRAME, seed=1)
    with pytest.raises(ValueError, match="give --pitch"):
        make_trainer(other)


def test_pitch_is_bridged_where_there_is_none():
    f0 = torch.tensor([[0, 100, 0, 0, 0, 200, 0.0], [0, 0, 0, 0, 0, 0, 0]])
    bridged = bridge_pitch(f0, 150.0)
    step = 2 ** (1 / 4)
    expected = [100, 100, 100 * step, 100 * step**2, 100 * step**3, 200, 200]
    torch.testing.assert_close(bridged[0], torch.tensor(expected))
    assert bridged[1].tolist() == [150.0] * 7


@pytest.mark.parametrize("pulses", [True, False])
def test_gain_targets_are_the_gains_of_speech_that_the_network_makes(pulses):
    """Speech of pulses or of noise alone, at known gains, asks for these gains again."""
    config = CodeVocosConfig(num_embeddings=4, width=8, hidden_width=8, blocks=1)
    network = CodeVocos(config).eval().requires_grad_(False)
    network.head.weight.zero_()
    network.head.bias.zero_()
    network.head.bias[: config.bins] = 0.7 if pulses else -30.0
    network.head.bias[config.bins : 2 * config.bins] = -30.0 if pulses else -0.4
    f0 = torch.full((1, 60), 190.0)
    speech, _ = network(torch.zeros(1, 60, dtype=torch.long), f0)
    targets = gain_targets(speech, f0, torch.full((1, 60), pulses), config)[0, 5:55]
    if pulses:
        low = targets[:, 5:70]  # below 3 kHz, where voice is pulses
        torch.testing.assert_close(low.mean(), torch.tensor(0.7), atol=0.1, rtol=0)
    else:
        of_noise = targets[:, config.bins + 5 : -5]
        torch.testing.assert_close(of_noise.mean(), torch.tensor(-0.4), atol=0.15, rtol=0)


def test_start_from_takes_weights_of_the_same_sizes_only(tmp_path, sampler):
    first = make_trainer(sampler)
    first.step()
    first.export(tmp_path)
    second = make_trainer(sampler, dataclasses.replace(CONFIG, seed=2))
    second.start_from(tmp_path / "model.safetensors")
    for name, tensor in second.generator.state_dict().items():
        assert torch.equal(tensor, first.generator.state_dict()[name].half().float()), name
    voice = dataclasses.replace(CONFIG, vocoder=dataclasses.replace(CONFIG.vocoder, durations=None))
    make_trainer(sampler, voice).export(tmp_path / "voice")
    before = second.generator.durations.state_dict()
    second.start_from(tmp_path / "voice" / "model.safetensors")
    assert all(map(torch.equal, before.values(), second.generator.durations.state_dict().values()))
    smaller = dataclasses.replace(CONFIG.vocoder, width=16)
    other = make_trainer(sampler, dataclasses.replace(CONFIG, vocoder=smaller))
    with pytest.raises(ValueError, match="other sizes"):
        other.start_from(tmp_path / "model.safetensors")


def write_split(folder, name, seeds):
    utterances = [speech(f"{name}{seed}", seed) for seed in seeds]
    (folder / name).mkdir()
    for utterance in utterances:
        soundfile.write(folder / name / f"{utterance.id}.flac", utterance.pcm, 16000)
    write_units(folder / f"{name}.units", {u.id: u.units for u in utterances})
    write_units(folder / f"{name}.f0", {u.id: u.f0.astype(int) for u in utterances})


def test_command_trains_resumes_and_exports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(validation, "recogniser_is_installed", lambda: False)
    write_split(tmp_path, "train", range(4))
    write_split(tmp_path, "dev", range(10, 12))
    arguments = ["--out", str(tmp_path / "out"), "--config", config_file(CONFIG, tmp_path)]
    arguments += ["--device", "cpu"]
    for option, name in (("", "train"), ("valid-", "dev")):
        arguments += [f"--{option}units", str(tmp_path / f"{name}.units")]
        arguments += [f"--{option}audio", str(tmp_path / name)]
    pitch = ["--pitch", str(tmp_path / "train.f0"), "--valid-pitch", str(tmp_path / "dev.f0")]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "give --pitch" in capsys.readouterr().err
    assert main([*arguments, *pitch, "--updates", "4"]) == 0
    assert main([*arguments, *pitch, "--updates", "9"]) == 0
    checks = (tmp_path / "out" / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in checks] == [4, 9]
    vocoder = CodeVocosVocoder.load(tmp_path / "out" / "model.safetensors")
    assert vocoder.config == CONFIG.vocoder
    wave, frames = vocoder.generate([1, 2, 3])
    assert len(wave) == int(frames.sum()) * FRAME and wave.abs().max() > 0


def test_pitch_that_does_not_fit_is_named(tmp_path):
    write_split(tmp_path, "train", range(2))
    write_units(tmp_path / "train.f0", {"train0": [100] * 80, "train1": [100] * 79})
    from echostream.training.vocoder.data import load_speech

    with pytest.raises(ValueError, match="'train1' has 79 values, but its 40 frames need 80"):
        load_speech(
            tmp_path / "train.units",
            tmp_path / "train",
            num_units=20,
            sample_rate=16000,
            frame_samples=FRAME,
            pitch_file=tmp_path / "train.f0",
            pitch_per_frame=2,
        )
