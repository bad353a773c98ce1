"""Strict configuration: what is saved is what is read, everything else is named."""

from dataclasses import replace

import pytest
import yaml

from echostream.config import (
    ChunkConformerConfig,
    EchoStreamConfig,
    EmformerConfig,
    MTDecoderConfig,
    VocoderConfig,
    from_dict,
    load_config,
    preset,
    save_config,
    to_dict,
)

PRESETS = ("base", "streamspeech-recipe", "streamspeech", "tiny")


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip(name, tmp_path):
    config = preset(name)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_presets_are_what_they_say():
    base, recipe, baseline = preset("base"), preset("streamspeech-recipe"), preset("streamspeech")
    assert (base.encoder.layers, base.encoder.embed_dim) == (16, 256)
    assert (base.encoder.attention_heads, base.encoder.ffn_dim) == (4, 2048)
    assert (base.st_ctc.layers, base.mt.layers) == (2, 4)
    assert (base.unit.layers, base.unit.upsample_ratio) == (6, 5)
    for config in (recipe, baseline):
        assert (config.encoder.layers, config.st_ctc.layers, config.t2u.layers) == (12, 0, 2)
        assert (config.mt.layers, config.mt.embed_dim, config.mt.attention_heads) == (4, 512, 8)
        assert (config.unit.layers, config.unit.upsample_ratio) == (2, 25)
        assert (config.target_vocab_size, config.num_units) == (6000, 1000)
    assert isinstance(recipe.encoder, EmformerConfig)
    assert isinstance(baseline.encoder, ChunkConformerConfig)
    with pytest.raises(ValueError, match="unknown preset 'huge'; available: base"):
        preset("huge")


def changed(path, value=None, *, drop=False):
    data = to_dict(preset("tiny"))
    node = data
    *parents, last = path.split(".")
    for parent in parents:
        node = node[parent]
    if drop:
        del node[last]
    else:
        node[last] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed("beam", 3), "unknown key 'beam'; allowed: source_vocab_size"),
        (changed("mt.cross_attn_layer", 3), "mt: unknown key 'cross_attn_layer'; allowed: layers"),
        (changed("mt.layers", drop=True), "mt: missing key 'layers'"),
        (changed("mt.layers", "4"), "mt: layers: expected int, got '4'"),
        (changed("mt.layers", True), "mt: layers: expected int, got True"),
        (changed("mt", 5), "mt: expected a mapping, got int"),
        (changed("encoder.kind", "lstm"), "encoder: kind must be one of emformer, chunk_conformer"),
        (changed("encoder.subsampler", "x"), r"subsampler: must be one of \('conv2d'"),
        (changed("encoder.conv_kernel_sizes", 5), "conv_kernel_sizes: expected a list, got int"),
        (changed("encoder.conv_kernel_sizes", [5, "5"]), r"conv_kernel_sizes\[1\]: expected int"),
        (changed("encoder.attention_heads", 3), "must be a multiple of attention_heads, got 32"),
        (changed("encoder.memory_size", -1), "memory_size must not be negative"),
        (changed("target_vocab_size", 4), "must exceed the 4 special symbols, got 4"),
        (changed("num_units", 51), "num_embeddings must cover num_units, got 50 and 51"),
        (changed("unit.embed_dim", 64), "must be equal, got 32 and 64"),
        (changed("encoder.input_dim", 40), "must equal frontend.num_mel_bins, got 40 and 80"),
        (changed("frontend.window_ms", 5), "window_ms must be at least shift_ms"),
        (changed("policy.stride_n", 0), "stride_n must be >= 1, got 0"),
        (changed("mt.layers", 0), "mt: layers must be at least 1, got 0"),
        (changed("unit.layers", 0), "unit: layers must be at least 1, got 0"),
        (changed("encoder.layers", 0), "encoder: layers must be at least 1, got 0"),
        (changed("t2u.layers", -1), "t2u: layers must be at least 0, got -1"),
        (changed("st_ctc.attention_heads", 5), "st_ctc: embed_dim must be a multiple"),
        (changed("mt.context_tokens", 0), "context_tokens must be positive or null, got 0"),
        (changed("encoder.kind", ["emformer"]), "kind must be one of emformer"),
        (
            changed("vocoder.dur_predictor_params.var_pred_kernel_size", 5),
            "var_pred_kernel_size must be 3, got 5",
        ),
        (
            changed("vocoder.dur_predictor_params.encoder_embed_dim", 8),
            "must equal embedding_dim, got 8 and 16",
        ),
        (changed("vocoder.model_in_dim", 8), "must equal embedding_dim, got 8 and 16"),
        (
            changed("vocoder.upsample_kernel_sizes", [10, 8, 8, 4, 4]),
            "by an even number, got kernel 10 and rate 5",
        ),
    ],
)
def test_mistakes_are_named(data, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert str(error.value).startswith(str(path))


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such configuration file"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1,")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_config(tmp_path / "binary.yaml")


def test_integers_serve_as_floats_and_none_where_allowed():
    data = {**to_dict(MTDecoderConfig()), "dropout": 0, "context_tokens": None}
    config = from_dict(MTDecoderConfig, data)
    assert config.dropout == 0.0 and config.context_tokens is None


def test_vocoder_lists_must_agree():
    with pytest.raises(ValueError, match="same length, got 2 and 5"):
        VocoderConfig(upsample_rates=(4, 4))
    assert VocoderConfig().unit_samples == 320


def test_configuration_is_frozen():
    with pytest.raises(AttributeError):
        preset("tiny").num_units = 3
    assert replace(preset("tiny"), num_units=20).num_units == 20
    assert EchoStreamConfig() == preset("base")
