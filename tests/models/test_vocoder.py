"""The vocoder: streaming equals the tail of full synthesis, formats, errors."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from echostream.config import DurationPredictorConfig, VocoderConfig, preset, to_dict
from echostream.models.decoders.codehifigan_standalone import fold_weight_norm
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder, vocoder_config_from_json
from echostream.models.decoders.vocoder_integration import StreamingVocoder
from echostream.models.echostream_model import freeze

CONFIG = replace(preset("tiny").vocoder, upsample_initial_channel=32)
OTHER = VocoderConfig(
    num_embeddings=30,
    embedding_dim=8,
    model_in_dim=8,
    upsample_rates=(4, 2),
    upsample_kernel_sizes=(8, 4),
    upsample_initial_channel=8,
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 2), (1, 3)),
    dur_predictor_params=DurationPredictorConfig(8, 8, 3, 0.0),
)


def make(config=CONFIG, scale=1.0):
    vocoder = CodeHiFiGANVocoder(config).double()
    for parameter in vocoder.parameters():
        torch.nn.init.normal_(parameter, std=scale * parameter[0].numel() ** -0.5)
    # Durations of one to a few frames.
    vocoder.generator.dur_predictor.proj.bias.data.fill_(0.9)
    return freeze(vocoder)


@torch.no_grad()
@pytest.mark.parametrize("config", [CONFIG, OTHER])
@pytest.mark.parametrize("durations", [True, False])
def test_streaming_equals_tail_of_full_synthesis(config, durations):
    vocoder = make(config)
    streaming = StreamingVocoder(vocoder, dur_prediction=durations)
    units = torch.randint(0, config.num_embeddings, (150,)).tolist()
    state, done = streaming.init_state(), 0
    for count in (1, 1, 2, 7, 30, 1, 50, 3, 40, 15):
        new = units[done : done + count]
        done += count
        samples, frames, state = streaming.step(new, state)
        full, all_frames = vocoder.generate(units[:done], dur_prediction=durations)
        assert torch.equal(frames, all_frames[-count:])
        assert len(samples) == int(frames.sum()) * config.unit_samples
        torch.testing.assert_close(samples, full[-len(samples) :], atol=1e-10, rtol=0)
        assert len(state.tails[0].units) <= 2 * streaming.unsettled_units


@torch.no_grad()
def test_left_context_is_the_receptive_field():
    """One frame less than the computed context changes the samples; more does not."""
    for config in (CONFIG, OTHER):
        generator = make(config, scale=3.0).generator
        reach = generator.left_context_frames()
        x = torch.randn(1, config.embedding_dim, reach + 40, dtype=torch.double)
        base = generator.synthesize(x)
        start = (reach + 20) * config.unit_samples
        inside, outside = x.clone(), x.clone()
        inside[..., 20] += 1.0
        outside[..., 19] += 1.0
        changed = (generator.synthesize(inside) - base)[..., start:].abs().max()
        same = (generator.synthesize(outside) - base)[..., start:].abs().max()
        assert same == 0.0
        assert changed >= 0.0 and reach >= 1


def test_weight_norm_is_folded_in_both_spellings():
    conv = torch.nn.Conv1d(3, 4, 5)
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(3, 4, 5))
    with torch.no_grad():
        normed.parametrizations.weight.original0.mul_(2.5)
    expected = normed.weight.detach().clone()
    state = {f"c.{k}": v for k, v in normed.state_dict().items()}
    torch.testing.assert_close(fold_weight_norm(state)["c.weight"], expected)
    old = {
        "c.weight_g": normed.parametrizations.weight.original0,
        "c.weight_v": normed.parametrizations.weight.original1,
        "c.bias": conv.bias,
    }
    folded = fold_weight_norm(old)
    torch.testing.assert_close(folded["c.weight"], expected)
    assert set(folded) == {"c.weight", "c.bias"}


def write_public(folder, vocoder, **extra):
    data = {**to_dict(vocoder.config), "resblock": "1", "f0": False, "num_mels": 80, **extra}
    (folder / "config.json").write_text(json.dumps(data))
    state = {k: v.float() for k, v in vocoder.generator.state_dict().items()}
    torch.save({"generator": state}, folder / "g")
    save_file(state, folder / "g.safetensors")


def test_public_format_round_trip(tmp_path):
    vocoder = make()
    write_public(tmp_path, vocoder)
    for name in ("g", "g.safetensors"):
        loaded = CodeHiFiGANVocoder.load(tmp_path / name, tmp_path / "config.json")
        assert loaded.config == vocoder.config
        units = [1, 5, 9]
        torch.testing.assert_close(
            loaded.generate(units)[0], vocoder.float().generate(units)[0], atol=1e-6, rtol=0
        )


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", b"", "not a readable vocoder checkpoint"),
        ("text", b"not a checkpoint", "not a readable vocoder checkpoint"),
        ("bad.safetensors", b"12345678abc", "not a readable vocoder checkpoint"),
    ],
)
def test_unreadable_checkpoints(tmp_path, name, content, message):
    write_public(tmp_path, make())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        CodeHiFiGANVocoder.load(tmp_path / name, tmp_path / "config.json")


def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_public(tmp_path, make())
    torch.save({"generator": Evil()}, tmp_path / "evil")
    with pytest.raises(ValueError, match="not a readable vocoder checkpoint"):
        CodeHiFiGANVocoder.load(tmp_path / "evil", tmp_path / "config.json")
    assert not (tmp_path / "executed").exists()


def test_errors_name_the_rule(tmp_path):
    vocoder = make()
    with pytest.raises(ValueError, match="unit 50 at position 1 .* 0 to 49"):
        vocoder.generate([3, 50])
    with pytest.raises(ValueError, match="unit -1 at position 0"):
        StreamingVocoder(vocoder).step([-1], StreamingVocoder(vocoder).init_state())
    write_public(tmp_path, vocoder, f0=True)
    with pytest.raises(ValueError, match="vocoders with 'f0' are not supported"):
        vocoder_config_from_json(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match="no such vocoder configuration"):
        vocoder_config_from_json(tmp_path / "missing.json")
    torch.save({"model": {}}, tmp_path / "other")
    write_public(tmp_path, vocoder)
    with pytest.raises(ValueError, match="needs a 'generator' entry"):
        CodeHiFiGANVocoder.load(tmp_path / "other", tmp_path / "config.json")
    with pytest.raises(ValueError, match="does not fit the vocoder configuration"):
        vocoder.load_generator({"dict.weight": torch.zeros(2, 2)}, "here")


@torch.no_grad()
def test_no_units_give_no_samples():
    vocoder = make()
    samples, durations = vocoder.generate([])
    assert samples.numel() == 0 and durations.numel() == 0
    samples, _, state = StreamingVocoder(vocoder).step((), StreamingVocoder(vocoder).init_state())
    assert samples.numel() == 0 and state.tails[0].units == ()
