"""Vocoder training: losses fall, resuming is exact, exports load, validation measures."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch import nn

from echostream.checkpoint import save_model_dir
from echostream.config import from_dict, to_dict
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder
from echostream.models.echostream_model import seeded_model
from echostream.synthetic import random_system
from echostream.training.units.sequences import write_units
from echostream.training.vocoder import topline, validation
from echostream.training.vocoder.data import SegmentSampler, SpeechWithUnits, load_speech
from echostream.training.vocoder.discriminators import (
    Discriminators,
    discriminator_loss,
    feature_loss,
    generator_loss,
)
from echostream.training.vocoder.spectral_losses import MelLoss, STFTLoss
from echostream.training.vocoder.train_vocoder import main, settings_from
from echostream.training.vocoder.training_settings import (
    DiscriminatorConfig,
    VocoderTrainingConfig,
    preset,
)
from echostream.training.vocoder.vocoder_trainer import CHECKPOINT, VocoderTrainer, build_generator
from tests.training.small_vocoders import HIFIGAN, config_file

CONFIG = HIFIGAN
FRAME = CONFIG.vocoder.unit_samples


def speech(name, seed, frames=40):
    """Each unit is a tone of its own, of one to four frames."""
    rng = np.random.default_rng(seed)
    units = np.repeat(rng.integers(0, 20, frames), rng.integers(1, 5, frames))[:frames]
    phase = np.cumsum(2 * np.pi * np.repeat(200 + 150 * units, FRAME) / 16000)
    return SpeechWithUnits(name, units, (8000 * np.sin(phase)).astype(np.int16))


@pytest.fixture
def sampler():
    return SegmentSampler(
        [speech(f"u{i}", i) for i in range(6)],
        segment_frames=CONFIG.segment_frames,
        frame_samples=FRAME,
        seed=1,
    )


def make_trainer(sampler, config=CONFIG):
    return VocoderTrainer(config, sampler, torch.device("cpu"))


def tensors(trainer):
    networks = (trainer.generator, trainer.discriminators)
    return [tensor for network in networks for tensor in network.state_dict().values()]


def test_losses_fall(sampler):
    trainer = make_trainer(sampler)
    losses = [trainer.step() for _ in range(60)]
    mean = {
        name: (
            np.mean([step[name] for step in losses[:5]]),
            np.mean([step[name] for step in losses[-5:]]),
        )
        for name in ("mel", "stft", "duration")
    }
    assert mean["mel"][1] < 0.6 * mean["mel"][0]
    assert mean["stft"][1] < 0.9 * mean["stft"][0]
    assert mean["duration"][1] < mean["duration"][0]
    assert "adversarial" not in losses[CONFIG.adversarial_start - 1]
    assert {"adversarial", "feature", "discriminator"} <= set(losses[CONFIG.adversarial_start])


def test_resuming_is_bit_exact(tmp_path, sampler):
    """Stopped on either side of the start of the discriminators."""
    straight = make_trainer(sampler)
    history = [straight.step() for _ in range(12)]
    for stop in (3, 10):
        first = make_trainer(sampler)
        for _ in range(stop):
            first.step()
        first.save(tmp_path)
        second = make_trainer(sampler)
        torch.rand(7)  # whatever happened in between must not matter
        second.restore(tmp_path / CHECKPOINT)
        assert second.update == stop
        assert [second.step() for _ in range(12 - stop)] == history[stop:]
        for left, right in zip(tensors(straight), tensors(second), strict=True):
            assert torch.equal(left, right)


def test_foreign_checkpoints_are_refused(tmp_path, sampler):
    make_trainer(sampler).save(tmp_path)
    other = make_trainer(sampler, dataclasses.replace(CONFIG, mel_weight=1.0))
    with pytest.raises(ValueError, match="was trained with mel_weight = 45.0, now it is 1.0"):
        other.restore(tmp_path / CHECKPOINT)
    longer = make_trainer(sampler, dataclasses.replace(CONFIG, updates=99))
    longer.restore(tmp_path / CHECKPOINT)
    data = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / "half.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not a vocoder training checkpoint"):
        longer.restore(tmp_path / "half.safetensors")


def test_export_is_the_trained_generator(tmp_path, sampler):
    trainer = make_trainer(sampler)
    for _ in range(3):
        trainer.step()
    trainer.export(tmp_path)
    vocoder = CodeHiFiGANVocoder.load(tmp_path / "model.safetensors", tmp_path / "config.json")
    assert vocoder.config == CONFIG.vocoder
    units = torch.tensor([[3, 3, 5, 7, 7, 7]])
    trainer.generator.eval()
    with torch.inference_mode():
        expected = trainer.generator.synthesize(trainer.generator.embed(units, None))
        folded = vocoder.generator.synthesize(vocoder.generator.embed(units, None))
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-6)
    waveform, frames = vocoder.generate([3, 5, 7])
    assert len(waveform) == int(frames.sum()) * FRAME


def test_training_starts_from_a_trained_generator(tmp_path, sampler):
    first = make_trainer(sampler)
    first.step()
    first.export(tmp_path)
    second = make_trainer(sampler, dataclasses.replace(CONFIG, seed=CONFIG.seed + 1))
    second.start_from(tmp_path / "model.safetensors")
    units = torch.tensor([[3, 3, 5, 7, 7, 7]])
    waveforms = []
    for trainer in (first, second):
        trainer.generator.eval()
        with torch.inference_mode():
            embedded = trainer.generator.embed(units, None)
            waveforms.append(trainer.generator.synthesize(embedded))
    torch.testing.assert_close(waveforms[1], waveforms[0], rtol=1e-4, atol=1e-6)
    assert second.step()["generator"] > 0  # what was taken over can be trained
    smaller = dataclasses.replace(CONFIG.vocoder, num_embeddings=10)
    other = make_trainer(sampler, dataclasses.replace(CONFIG, vocoder=smaller))
    with pytest.raises(ValueError, match=r"dict.weight: expected \(10, 16\), got \(20, 16\)"):
        other.start_from(tmp_path / "model.safetensors")


def test_weight_norm_covers_the_waveform_path_only():
    generator = build_generator(CONFIG)
    names = set(generator.state_dict())
    convolutions = [
        name
        for name, module in generator.named_modules()
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)) and "dur_predictor" not in name
    ]
    for name in convolutions:
        assert f"{name}.parametrizations.weight.original0" in names
    assert "dur_predictor.conv1.0.weight" in names


def test_losses_of_perfect_speech():
    torch.manual_seed(0)
    real = 0.1 * torch.randn(2, 1, 5120)
    assert MelLoss(16000)(real, real) == 0
    assert STFTLoss()(real, real) == 0
    assert STFTLoss()(0.5 * real, real) > 0.3
    networks = Discriminators(DiscriminatorConfig((2, 3), (4, 8), 2, (4, 8)))
    outputs = networks(real)
    assert len(outputs) == 4
    assert feature_loss(outputs, networks(real)).item() == pytest.approx(0, abs=1e-4)
    ones = [(torch.ones(2, 5), []) for _ in range(4)]
    zeros = [(torch.zeros(2, 5), []) for _ in range(4)]
    assert discriminator_loss(ones, zeros) == 0 and discriminator_loss(zeros, ones) == 8
    assert generator_loss(ones) == 0 and generator_loss(zeros) == 4


def test_silence_has_finite_gradients():
    silence = torch.zeros(1, 1, 5120)
    fake = torch.zeros(1, 1, 5120, requires_grad=True)
    (STFTLoss()(fake, silence) + MelLoss(16000)(fake, silence)).backward()
    assert torch.isfinite(fake.grad).all()


def test_a_diverged_loss_stops_training(sampler):
    trainer = make_trainer(sampler)
    with torch.no_grad():
        trainer.generator.conv_post.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss of the generator is nan at update 0"):
        trainer.step()


def test_segments_are_aligned_and_depend_on_the_update_alone(sampler):
    segments, again = sampler.segments(5, 4), sampler.segments(5, 4)
    units, sounds = segments.units, segments.waveform
    assert torch.equal(units, again.units) and torch.equal(sounds, again.waveform)
    assert not torch.equal(units, sampler.segments(6, 4).units) and segments.f0 is None
    assert units.shape == (4, 16) and sounds.shape == (4, 1, 16 * FRAME)
    whole = {u.id: u for u in sampler.utterances}
    for row, sound in zip(units, sounds[:, 0], strict=True):
        matches = [
            (u, start)
            for u in whole.values()
            for start in range(len(u.units) - 15)
            if np.array_equal(u.units[start : start + 16], row.numpy())
        ]
        assert any(
            np.allclose(u.waveform[start * FRAME : (start + 16) * FRAME], sound.numpy())
            for u, start in matches
        )


def write_split(folder, name, seeds):
    utterances = [speech(f"{name}{seed}", seed) for seed in seeds]
    for utterance in utterances:
        path = folder / name / f"{utterance.id}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, utterance.pcm, 16000)
    write_units(folder / f"{name}.km20", {u.id: u.units for u in utterances})
    lines = ["id\ttgt_text", *(f"{u.id}\thello world" for u in utterances)]
    (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return utterances


def test_speech_is_read_back(tmp_path):
    written = write_split(tmp_path, "train", range(3))
    options = {"num_units": 20, "sample_rate": 16000, "frame_samples": FRAME}
    read = load_speech(tmp_path / "train.km20", tmp_path / "train", **options)
    for left, right in zip(written, read, strict=True):
        np.testing.assert_array_equal(left.units, right.units)
        np.testing.assert_array_equal(left.pcm, right.pcm)
    write_units(tmp_path / "long.km20", {"train0": [1] * 90})
    with pytest.raises(ValueError, match="12800 samples make 40 frames, .* has 90 units"):
        load_speech(tmp_path / "long.km20", tmp_path / "train", **options)
    write_units(tmp_path / "gone.km20", {"other": [1] * 40})
    with pytest.raises(FileNotFoundError, match="no sound of utterance 'other'"):
        load_speech(tmp_path / "gone.km20", tmp_path / "train", **options)
    soundfile.write(tmp_path / "train" / "slow.wav", np.zeros(8000), 8000)
    write_units(tmp_path / "slow.km20", {"slow": [1] * 25})
    with pytest.raises(ValueError, match="expected mono at 16000 Hz"):
        load_speech(tmp_path / "slow.km20", tmp_path / "train", **options)


def test_no_utterance_long_enough_is_an_error():
    with pytest.raises(ValueError, match="no utterance has 99 frames"):
        SegmentSampler([speech("a", 0)], segment_frames=99, frame_samples=FRAME, seed=1)


def test_validation_reports(tmp_path, monkeypatch, sampler):
    heard = iter(["Hello, world now then.", "hello world now then"] * 2)
    monkeypatch.setattr(validation, "recogniser_is_installed", lambda: True)
    monkeypatch.setattr(validation, "transcribe", lambda sounds: [next(heard) for _ in sounds])
    utterances = sampler.utterances[:2]
    report = validation.validate(
        make_trainer(sampler).vocoder(),
        utterances,
        texts={u.id: "Hello world now then." for u in utterances},
        sample_folder=tmp_path,
        samples=1,
    )
    assert report["asr_bleu"] == report["asr_bleu_real"] == pytest.approx(100)
    assert report["mel"] > 0 and report["duration_error"] >= 0 and report["length_ratio"] > 0
    assert [path.name for path in tmp_path.iterdir()] == [f"{utterances[0].id}.wav"]


def test_pocketsphinx_listens():
    pytest.importorskip("pocketsphinx")
    assert validation.asr_bleu([np.zeros(16000, dtype=np.float32)], ["hello"]) == 0


def command(tmp_path, *more):
    return [
        *(
            "--out",
            str(tmp_path / "out"),
            "--config",
            config_file(CONFIG, tmp_path),
            "--device",
            "cpu",
        ),
        *("--units", str(tmp_path / "train.km20"), "--audio", str(tmp_path / "train")),
        *("--valid-units", str(tmp_path / "dev.km20"), "--valid-audio", str(tmp_path / "dev")),
        *("--log-every", "2", "--save-every", "5"),
        *more,
    ]


def test_command_trains_resumes_and_exports(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "recogniser_is_installed", lambda: False)
    write_split(tmp_path, "train", range(4))
    write_split(tmp_path, "dev", range(10, 12))
    texts = ["--valid-texts", str(tmp_path / "dev.tsv")]
    assert main(command(tmp_path, "--updates", "4", *texts)) == 0
    assert main(command(tmp_path, "--updates", "10", "--validate-every", "6", *texts)) == 0
    out = tmp_path / "out"
    logged = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [record["update"] for record in logged] == [2, 4, 6, 8, 10]
    checks = [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]
    assert [record["update"] for record in checks] == [4, 6, 10]
    vocoder = CodeHiFiGANVocoder.load(out / "model.safetensors", out / "config.json")
    assert len(vocoder.generate([1, 2, 3])[0]) >= 3 * FRAME
    assert not list(out.glob(".*"))


def test_topline_and_ceiling_of_a_model_directory(tmp_path, monkeypatch, capsys):
    """Real speech is heard as it is, speech from units through the model directory's vocoder."""
    system = random_system()
    config = system.config.vocoder
    save_model_dir(tmp_path / "model", system)
    rng = np.random.default_rng(0)
    units = {name: rng.integers(0, config.num_embeddings, 20).tolist() for name in "ab"}
    (tmp_path / "real").mkdir()
    for name in units:
        loud = np.full(20 * config.unit_samples, 0.5)
        soundfile.write(tmp_path / "real" / f"{name}.wav", loud, config.sampling_rate)
    write_units(tmp_path / "x.km", units)
    rows = ["id\ttgt_text", "a\tone two three four", "b\tfive six seven eight"]
    (tmp_path / "x.tsv").write_text("\n".join(rows) + "\n")
    arguments = ["--model-dir", str(tmp_path / "model"), "--units", str(tmp_path / "x.km"),
                 "--audio", str(tmp_path / "real"), "--texts", str(tmp_path / "x.tsv")]  # fmt: skip
    texts = ["one two three four", "five six seven eight"]

    def transcribe(sounds):
        real = all(np.allclose(sound, 0.5, atol=1e-3) for sound in sounds)
        return texts if real else [texts[0], "five six seven eight nine"]

    monkeypatch.setattr(validation, "transcribe", transcribe)
    monkeypatch.setattr(topline, "recogniser_is_installed", lambda: True)
    monkeypatch.setattr(validation, "recogniser_is_installed", lambda: True)
    assert topline.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["utterances"] == 2 and report["asr_bleu_real"] == pytest.approx(100)
    assert 0 < report["asr_bleu"] < 100
    assert report["topline_over_ceiling"] == pytest.approx(report["asr_bleu"] / 100)
    for name, message in (("text", "has no vocoder"), ("gone", "no such model directory")):
        if name == "text":
            silent = dataclasses.replace(system.config, vocoder=None)
            model = seeded_model(silent, 1)
            save_model_dir(tmp_path / name, dataclasses.replace(system, config=silent, model=model))
        with pytest.raises(SystemExit):
            topline.main(["--model-dir", str(tmp_path / name), *arguments[2:]])
        assert message in capsys.readouterr().err


def test_command_errors(tmp_path, capsys):
    for arguments, message in (
        (["--log-every", "0"], "--log-every must be positive"),
        ([], "no such unit file"),
        (["--config", str(tmp_path / "none.yaml")], "no such configuration file"),
    ):
        with pytest.raises(SystemExit):
            main(command(tmp_path, *arguments))
        assert message in capsys.readouterr().err


def test_settings_round_trip_through_yaml(tmp_path):
    for name in ("mini", "mini-tune", "vocos", "hifigan"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(to_dict(preset(name))))
        data = yaml.safe_load(path.read_text())
        assert from_dict(VocoderTrainingConfig, data, str(path)) == preset(name)
    with pytest.raises(ValueError, match="batch_size must be positive"):
        dataclasses.replace(CONFIG, batch_size=0)
    with pytest.raises(ValueError, match="preset must be"):
        preset("huge")
    with pytest.raises(ValueError, match="multiples of 4"):
        DiscriminatorConfig(scale_channels=(6,))


def test_num_units_sets_the_embeddings():
    from echostream.training.vocoder.train_vocoder import build_parser

    required = ["--out", "o", "--units", "u", "--audio", "a"]
    required += ["--valid-units", "v", "--valid-audio", "w"]
    args = build_parser().parse_args([*required, "--num-units", "55", "--seed", "9"])
    config = settings_from(args)
    assert config.vocoder.num_embeddings == 55 and config.seed == 9
