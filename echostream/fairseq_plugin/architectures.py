"""Named architectures and the flags that change them. Needs no fairseq.

A flag left alone keeps the architecture's value. Flags are StreamSpeech's where they mean the
same; the multitask YAML's ``decoder_args`` decide nothing, so that one data folder serves every
architecture.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from echostream.config import (
    ChunkConformerConfig,
    CTCHeadConfig,
    EchoStreamConfig,
    EmformerConfig,
    MTDecoderConfig,
    T2UEncoderConfig,
    UnitDecoderConfig,
    preset,
)
from echostream.models.encoder_exchange import emformer_like

logger = logging.getLogger(__name__)

# Accepted because StreamSpeech's commands give them; the only value that exists here, and for
# which encoder (None: both).
FIXED_FLAGS: dict[str, tuple[Any, type | None]] = {
    "uni_encoder": (True, None),
    "share_decoder_input_output_embed": (True, None),
    "attn_type": ("espnet", ChunkConformerConfig),
    "pos_enc_type": ("rel_pos", ChunkConformerConfig),
}
_ONE_ENCODER_FLAGS: dict[str, type] = {
    "left_context_frames": EmformerConfig,
    "right_context_frames": EmformerConfig,
    "memory_size": EmformerConfig,
    "subsampler": EmformerConfig,
}

_ENCODER_FLAGS = {
    "encoder_embed_dim": "embed_dim",
    "encoder_layers": "layers",
    "encoder_attention_heads": "attention_heads",
    "encoder_ffn_embed_dim": "ffn_dim",
    "conv_channels": "conv_channels",
    "chunk_size": "segment_frames",
    "left_context_frames": "left_context_frames",
    "right_context_frames": "right_context_frames",
    "memory_size": "memory_size",
    "subsampler": "subsampler",
    "depthwise_conv_kernel_size": "depthwise_kernel_size",
}

_MINI_WIDTH: dict[str, Any] = {"embed_dim": 192, "attention_heads": 4, "ffn_dim": 512}


def _mini(encoder: type[EmformerConfig | ChunkConformerConfig], **sizes: Any) -> EchoStreamConfig:
    """About 5 M parameters; ``sizes`` are the encoder's own."""
    return EchoStreamConfig(
        encoder=encoder(**_MINI_WIDTH, **sizes),
        asr_ctc=CTCHeadConfig(layers=0),
        st_ctc=CTCHeadConfig(layers=0),
        mt=MTDecoderConfig(layers=2, **_MINI_WIDTH),
        t2u=T2UEncoderConfig(layers=0, attention_heads=4, ffn_dim=512),
        unit=UnitDecoderConfig(layers=2, upsample_ratio=20, **_MINI_WIDTH),
        vocoder=None,
    )


_MINI_EMFORMER = {
    "conv_channels": 32,
    "layers": 6,
    "left_context_frames": 32,
    "memory_size": 4,
    "depthwise_kernel_size": 15,
}
_MINI_CONFORMER = {"conv_channels": 256, "layers": 4, "depthwise_kernel_size": 31}
_TINY_CONFORMER = ChunkConformerConfig(
    conv_channels=16,
    embed_dim=32,
    layers=2,
    attention_heads=4,
    ffn_dim=64,
    depthwise_kernel_size=15,
)

ARCHITECTURES = {
    # StreamSpeech's published recipe with the Emformer in place of its encoder, and the baseline.
    "echostream": lambda: preset("streamspeech-recipe"),
    "echostream_base": lambda: preset("base"),
    "streamspeech": lambda: preset("streamspeech"),
    # About 5 M parameters: echo-mini.
    "echostream_mini": lambda: _mini(EmformerConfig, **_MINI_EMFORMER),
    "streamspeech_mini": lambda: _mini(ChunkConformerConfig, **_MINI_CONFORMER),
    # Seconds to train: tests.
    "echostream_tiny": lambda: preset("tiny"),
    "streamspeech_tiny": lambda: dataclasses.replace(preset("tiny"), encoder=_TINY_CONFORMER),
}


def build_config(
    arch: str,
    flags: Mapping[str, Any],
    *,
    source_vocab_size: int,
    target_vocab_size: int,
    num_units: int,
    num_mel_bins: int,
) -> EchoStreamConfig:
    """The configuration that an architecture, flags and data give.

    Args:
        arch: a name of :data:`ARCHITECTURES`.
        flags: flag names with underscores; None: not given.

    Raises:
        ValueError: unknown architecture, or a flag that the architecture cannot follow.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}; there are {', '.join(ARCHITECTURES)}")
    config = ARCHITECTURES[arch]()
    given = {name: value for name, value in flags.items() if value is not None}
    _check_flags(arch, type(config.encoder), given)

    def pick(**names: str) -> dict[str, Any]:
        return {field: given[flag] for field, flag in names.items() if flag in given}

    dropout = pick(dropout="dropout")
    encoder = dataclasses.replace(
        config.encoder, input_dim=num_mel_bins, **_encoder_fields(given), **dropout
    )
    heads = pick(attention_heads="encoder_attention_heads", ffn_dim="encoder_ffn_embed_dim")
    decoder = pick(attention_heads="decoder_attention_heads", ffn_dim="decoder_ffn_embed_dim")
    width = pick(embed_dim="decoder_embed_dim")
    parts = {
        "asr_ctc": heads | pick(layers="asr_ctc_layers"),
        "st_ctc": heads | pick(layers="st_ctc_layers"),
        "mt": decoder
        | width
        | pick(layers="translation_decoder_layers", ffn_dim="translation_decoder_ffn_embed_dim"),
        "t2u": decoder | pick(layers="synthesizer_encoder_layers"),
        "unit": decoder | width | pick(layers="decoder_layers", upsample_ratio="ctc_upsample_rate"),
    }
    return dataclasses.replace(
        config,
        source_vocab_size=source_vocab_size,
        target_vocab_size=target_vocab_size,
        num_units=num_units,
        frontend=dataclasses.replace(config.frontend, num_mel_bins=num_mel_bins),
        encoder=encoder,
        **{
            name: dataclasses.replace(getattr(config, name), **changes, **dropout)
            for name, changes in parts.items()
        },
        vocoder=None,
    )


def _encoder_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field: given[flag] for flag, field in _ENCODER_FLAGS.items() if flag in given}
    if "conv_kernel_sizes" in given:
        fields["conv_kernel_sizes"] = _kernel_sizes(given["conv_kernel_sizes"])
    return fields


def exchange_config(config: EchoStreamConfig, flags: Mapping[str, Any]) -> EchoStreamConfig:
    """A trained system's configuration with an Emformer in its chunk Conformer's place.

    Args:
        config: the system's.
        flags: as in :func:`build_config`; those of the encoder change the Emformer.

    Raises:
        ValueError: it has no chunk Conformer, or a flag would change something else.
    """
    if not isinstance(config.encoder, ChunkConformerConfig):
        raise ValueError(
            "--exchange-encoder needs a system with a chunk Conformer (StreamSpeech's), this one "
            f"has kind {config.encoder.kind!r}"
        )
    given = {name: value for name, value in flags.items() if value is not None}
    kept = {*_ENCODER_FLAGS, "conv_kernel_sizes", "dropout", *FIXED_FLAGS}
    for name in given:
        if name not in kept:
            raise ValueError(
                f"--{name.replace('_', '-')}: --exchange-encoder keeps everything but the encoder"
            )
    dropout = {"dropout": given["dropout"]} if "dropout" in given else {}
    encoder = dataclasses.replace(
        emformer_like(config.encoder), **_encoder_fields(given), **dropout
    )
    parts = ("asr_ctc", "st_ctc", "mt", "t2u", "unit")
    return dataclasses.replace(
        config,
        encoder=encoder,
        vocoder=None,
        **{name: dataclasses.replace(getattr(config, name), **dropout) for name in parts},
    )


def _check_flags(arch: str, encoder: type, given: Mapping[str, Any]) -> None:
    for name, (accepted, only) in FIXED_FLAGS.items():
        value = given.get(name)
        if value is None or value is False:
            continue
        flag = "--" + name.replace("_", "-")
        if only not in (None, encoder):
            raise ValueError(f"{flag} {value!r}: {arch} has no such choice")
        if value != accepted:
            raise ValueError(f"{flag} {value!r}: only {accepted!r} exists")
    for name, owner in _ONE_ENCODER_FLAGS.items():
        if name in given and owner is not encoder:
            raise ValueError(f"--{name.replace('_', '-')}: {arch} has no such part")
    for name in ("attention_dropout", "relu_dropout"):
        if name in given and given[name] != given.get("dropout", given[name]):
            raise ValueError(
                f"--{name.replace('_', '-')} must equal --dropout ({given['dropout']}), "
                f"got {given[name]}: there is one dropout rate"
            )


def _kernel_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(kernel) for kernel in text.split(","))
    except ValueError:
        raise ValueError(
            f"--conv-kernel-sizes must be numbers separated by commas, got {text!r}"
        ) from None


def report_superseded(tasks: Mapping[str, Any], config: EchoStreamConfig) -> None:
    """Say where the multitask YAML's sizes differ from the architecture's, which count."""
    sizes = {
        "decoder_layers": config.mt.layers,
        "decoder_embed_dim": config.mt.embed_dim,
        "decoder_ffn_embed_dim": config.mt.ffn_dim,
        "decoder_attention_heads": config.mt.attention_heads,
    }
    for task in tasks.values():
        if task.is_ctc:
            continue
        for name, used in sizes.items():
            named = task.decoder_args.get(name, used)
            if named != used:
                logger.info(
                    "%s: decoder_args: %s %r is superseded by the architecture's %r",
                    task.name, name, named, used,
                )  # fmt: skip
