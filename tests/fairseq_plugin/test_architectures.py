"""Named architectures and their flags."""

from __future__ import annotations

import pytest
import torch

from echostream.fairseq_plugin.architectures import ARCHITECTURES, build_config
from echostream.models.echostream_model import EchoStreamModel

SIZES = {"source_vocab_size": 1000, "target_vocab_size": 1004, "num_units": 200, "num_mel_bins": 80}


def parameters(arch, **flags):
    with torch.device("meta"):
        model = EchoStreamModel(build_config(arch, flags, **SIZES))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_builds(arch):
    config = build_config(arch, {}, **SIZES)
    assert config.vocoder is None
    assert (config.source_vocab_size, config.target_vocab_size) == (1000, 1004)
    assert parameters(arch) > 0


def test_small_twins_are_equally_large():
    ours, baseline = parameters("echostream_mini"), parameters("streamspeech_mini")
    assert 4e6 < ours < 6.5e6
    assert abs(ours - baseline) < 0.1 * ours


def test_the_published_command_is_the_streamspeech_architecture():
    flags = {
        "share_decoder_input_output_embed": True, "uni_encoder": True, "attn_type": "espnet",
        "pos_enc_type": "rel_pos", "encoder_layers": 12, "encoder_embed_dim": 256,
        "encoder_ffn_embed_dim": 2048, "encoder_attention_heads": 4,
        "translation_decoder_layers": 4, "synthesizer_encoder_layers": 2, "decoder_layers": 2,
        "decoder_embed_dim": 512, "decoder_ffn_embed_dim": 2048, "decoder_attention_heads": 8,
        "chunk_size": 8, "dropout": 0.1, "attention_dropout": 0.1, "relu_dropout": 0.1,
        "ctc_upsample_rate": 25,
    }  # fmt: skip
    assert build_config("streamspeech", flags, **SIZES) == build_config("streamspeech", {}, **SIZES)


def test_flags_reach_their_parts():
    flags = {
        "encoder_layers": 3, "encoder_embed_dim": 64, "decoder_embed_dim": 48,
        "decoder_attention_heads": 2, "decoder_ffn_embed_dim": 96, "dropout": 0.0,
        "translation_decoder_ffn_embed_dim": 80, "ctc_upsample_rate": 7, "chunk_size": 16,
        "memory_size": 0, "left_context_frames": 12, "right_context_frames": 2,
        "subsampler": "conv1d_glu", "conv_kernel_sizes": "3,3", "st_ctc_layers": 1,
    }  # fmt: skip
    config = build_config("echostream_tiny", flags, **SIZES)
    encoder = config.encoder
    assert (encoder.layers, encoder.embed_dim, encoder.segment_frames) == (3, 64, 16)
    assert (encoder.memory_size, encoder.left_context_frames) == (0, 12)
    assert (encoder.right_context_frames, encoder.conv_kernel_sizes) == (2, (3, 3))
    assert config.mt.embed_dim == config.unit.embed_dim == 48
    assert (config.mt.ffn_dim, config.unit.ffn_dim) == (80, 96)
    assert config.unit.upsample_ratio == 7
    assert {config.mt.dropout, config.unit.dropout, config.t2u.dropout, encoder.dropout} == {0.0}
    assert (config.asr_ctc.layers, config.st_ctc.layers) == (0, 1)


@pytest.mark.parametrize(
    ("arch", "flags", "message"),
    [
        ("nothing", {}, "unknown architecture 'nothing'"),
        ("echostream", {"attn_type": "espnet"}, "--attn-type 'espnet': echostream has no such"),
        ("streamspeech", {"attn_type": "fairseq"}, "only 'espnet' exists"),
        ("streamspeech", {"memory_size": 4}, "--memory-size: streamspeech has no such part"),
        ("echostream", {"depthwise_conv_kernel_size": -1}, "depthwise_kernel_size must not be"),
        ("echostream", {"dropout": 0.1, "relu_dropout": 0.2}, "--relu-dropout must equal"),
        ("echostream", {"conv_kernel_sizes": "5;5"}, "--conv-kernel-sizes must be numbers"),
        ("echostream", {"encoder_embed_dim": 250}, "multiple of attention_heads"),
    ],
)
def test_flags_that_cannot_be_followed(arch, flags, message):
    with pytest.raises(ValueError, match=message):
        build_config(arch, flags, **SIZES)
