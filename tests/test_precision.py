"""Other number formats against float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from echostream.assets import model_dir
from echostream.checkpoint import load_model_dir
from echostream.config import preset
from echostream.models.echostream_model import seeded_model
from echostream.precision import DTYPES, MIN_INT8_WEIGHTS, check_dtype, convert
from echostream.synthetic import synthetic_clip
from echostream.translator.pipeline import Pipeline

RATE = 16000


def quantised(model):
    kind = torch.ao.nn.quantized.dynamic.Linear
    return [m for m in model.modules() if isinstance(m, kind)]


def heard(model, clip_seconds=2.0):
    """Encoder frames of a stream of made-up features."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, int(100 * clip_seconds), 80, generator=generator)
    state, frames = model.init_listening(), []
    with torch.no_grad():
        for chunk in features.split(32, dim=1):
            weight = next(model.parameters())
            encoded, state = model.encode(chunk.to(weight), state)
            frames.append(encoded.frames.float())
    return torch.cat(frames, dim=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [("int8", 0.05), ("bf16", 0.05)])
def test_encoder_frames_stay_close(dtype, tolerance):
    """Relative root-mean-square error of a stream's encoder frames."""
    expected = heard(seeded_model(preset("tiny"), 1))
    got = heard(convert(seeded_model(preset("tiny"), 1), dtype, "cpu", min_int8_weights=0))
    error = ((got - expected).square().mean() / expected.square().mean()).sqrt()
    assert 0 < error < tolerance


@pytest.mark.parametrize("name", ["tiny", "streamspeech"])
def test_int8_takes_the_large_projections_alone(name):
    if name == "streamspeech":
        from dataclasses import replace

        from echostream.config import ChunkConformerConfig

        encoder = ChunkConformerConfig(
            embed_dim=32, layers=1, attention_heads=4, ffn_dim=64, conv_channels=8
        )
        config = replace(preset("tiny"), encoder=encoder)
    else:
        config = preset("tiny")
    model = seeded_model(config, 1)
    count = sum(m.weight.numel() >= 2048 for m in model.modules() if type(m) is nn.Linear)
    model = convert(model, "int8", "cpu", min_int8_weights=2048)
    kept = [m for m in model.modules() if type(m) is nn.Linear]
    assert len(quantised(model)) == count > 0
    assert kept and all(m.weight.numel() < 2048 for m in kept)
    assert not quantised(convert(seeded_model(config, 1), "int8", "cpu"))
    assert MIN_INT8_WEIGHTS > 64 * 32


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
def test_shipped_system_streams(dtype):
    system = load_model_dir(model_dir("echostream"), dtype=dtype)
    if dtype == "int8":
        system.model = convert(system.model, "int8", "cpu", min_int8_weights=0)
        assert quantised(system.model)
    pipeline = Pipeline(system)
    state = pipeline.init_state()
    clip = synthetic_clip(1.5, RATE, seed=1)
    outputs, state = pipeline.step(clip, RATE, state, final=True)
    assert state.finished and outputs[-1].final
    assert all(np.isfinite(o.waveform).all() for o in outputs)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="dtype must be one of fp32, fp16, bf16, int8, got 'int4'"):
        check_dtype("int4", "cpu")
    with pytest.raises(ValueError, match="int8 computes on the CPU alone, got device 'cuda:0'"):
        check_dtype("int8", "cuda:0")
    with pytest.raises(ValueError, match="dtype must be one of"):
        load_model_dir(model_dir("echostream"), dtype="double")
    for name in DTYPES:
        check_dtype(name, "cpu")


@pytest.mark.parametrize(("dtype", "tolerance"), [("int8", 0.03), ("bf16", 0.01)])
def test_projection_tied_to_embeddings(dtype, tolerance):
    """It is computed in the format; the embeddings and the names of the weights stay."""
    model = seeded_model(preset("tiny"), 1)
    decoder = model.target_unigram_decoder
    with torch.no_grad():  # rows of very different lengths, as those of words
        decoder.embed_tokens.weight.mul_(
            torch.logspace(-2, 1, len(decoder.embed_tokens.weight))[:, None]
        )
    hidden = torch.randn(2, 3, decoder.config.embed_dim, generator=torch.Generator().manual_seed(2))
    table, names = decoder.embed_tokens.weight.clone(), list(model.state_dict())
    with torch.no_grad():
        expected = decoder.logits(hidden)
        model = convert(model, dtype, "cpu", min_int8_weights=0)
        got = model.target_unigram_decoder.logits(
            hidden.to(table if dtype == "int8" else torch.bfloat16)
        )
    error = (got.float() - expected).square().mean(dim=(0, 1)).sqrt() / expected.std(dim=(0, 1))
    assert 0 < error.nanmedian() < tolerance  # padding is zero in both
    kept = model.target_unigram_decoder.embed_tokens.weight.float()
    torch.testing.assert_close(kept, table, rtol=0.01, atol=0.0)
    assert "target_unigram_decoder.embed_tokens.weight" in names
    back = convert(seeded_model(preset("tiny"), 1), "fp32", "cpu")
    assert list(back.state_dict()) == names


def test_float32_again_is_a_plain_product():
    model = convert(seeded_model(preset("tiny"), 1), "int8", "cpu", min_int8_weights=0)
    decoder = convert(model, "fp32", "cpu").target_unigram_decoder
    hidden = torch.randn(1, 2, decoder.config.embed_dim)
    with torch.no_grad():
        assert torch.equal(decoder.logits(hidden), hidden @ decoder.embed_tokens.weight.T)
