"""StreamSpeech's settings, as fairseq stores them, in the terms of this package and back.

Sizes sit in the checkpoint's arguments and in the multitask YAML, under fairseq's names and with
StreamSpeech's defaults. Settings that name a part which does not exist here are errors.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echostream.config import (
    ChunkConformerConfig,
    CTCHeadConfig,
    EchoStreamConfig,
    FrontendConfig,
    MTDecoderConfig,
    T2UEncoderConfig,
    UnitDecoderConfig,
    VocoderConfig,
)

# Tasks of StreamSpeech's multitask YAML, which also name the modules in the state dict.
MT_TASK, ASR_TASK, ST_TASK = "target_unigram", "source_unigram", "ctc_target_unigram"

# Weights that fairseq stores twice: (the copy, what is kept here).
TIED = (
    (f"{MT_TASK}_decoder.output_projection.weight", f"{MT_TASK}_decoder.embed_tokens.weight"),
    ("decoder.embed_tokens.weight", "decoder.output_projection.weight"),
)
# fairseq's marks of the decoder format.
VERSIONS = ("decoder.version", f"{MT_TASK}_decoder.version")
# File names of the release's data directories.
DATA_YAML, TASKS_YAML = "config_gcmvn.yaml", "config_mtl_asr_st_ctcst.yaml"

# Settings whose other values name parts that do not exist here: (name, value in a checkpoint
# that lacks it, accepted value, the missing part).
_REQUIRED = (
    ("conv_version", "convtransformer", "s2t_transformer", "Conv2d subsampling"),
    ("attn_type", None, "espnet", "encoder attention other than ESPnet's"),
    ("pos_enc_type", "abs", "rel_pos", "encoder positions other than relative"),
    ("input_channels", 1, 1, "multi-channel input"),
    ("no_scale_embedding", False, False, "an unscaled encoder input"),
    ("decoder_normalize_before", True, True, "post-norm decoder layers"),
    ("decoder_learned_pos", False, False, "learned decoder positions"),
    ("no_token_positional_embeddings", False, False, "decoders without positions"),
    ("layernorm_embedding", False, False, "normalised decoder embeddings"),
    ("adaptive_input", False, False, "adaptive embeddings"),
    ("share_decoder_input_output_embed", False, True, "an untied unit decoder"),
    ("activation_fn", "relu", "relu", "decoder activations other than ReLU"),
    ("synthesizer_augmented_cross_attention", False, False, "augmented cross-attention"),
    ("target_speaker_embed", False, False, "speaker embeddings"),
    ("n_frames_per_step", 1, 1, "stacked units"),
    ("target_is_code", False, True, "spectrogram targets"),
)


def check_tasks(tasks: Mapping[str, Any], path: Path) -> None:
    """The multitask YAML describes exactly the three text decoders of simultaneous translation.

    Raises:
        ValueError: names the part that is missing or has no counterpart here.
    """
    parts = {
        MT_TASK: ("transformer", "the text decoder"),
        ASR_TASK: ("ctc", "the recognition CTC head"),
        ST_TASK: ("ctc", "the translation CTC head"),
    }
    for task, (kind, part) in parts.items():
        if not isinstance(tasks.get(task), dict):
            raise ValueError(
                f"{path}: has no task {task!r}, so {part} is missing; simultaneous translation "
                f"needs {', '.join(parts)}"
            )
        if tasks[task].get("decoder_type") != kind:
            raise ValueError(
                f"{path}: {task} must have decoder_type {kind!r}, "
                f"got {tasks[task].get('decoder_type')!r}"
            )
    extra = [task for task in tasks if task not in parts]
    if extra:
        raise ValueError(f"{path}: task {extra[0]!r} has no counterpart here")


def config_from_settings(
    args: Mapping[str, Any],
    data: Mapping[str, Any],
    tasks: Mapping[str, Any],
    vocabulary_sizes: tuple[int, int],
    vocoder: VocoderConfig | None,
    where: str,
) -> EchoStreamConfig:
    """Sizes of all parts.

    Args:
        args: the checkpoint's model and task arguments.
        data: the data YAML.
        tasks: the multitask YAML, see :func:`check_tasks`.
        vocabulary_sizes: of source and target, special symbols included.
        vocoder: sizes of the vocoder, if there is one.
        where: names the checkpoint in messages.

    Raises:
        ValueError: a part that does not exist here, or a value of the wrong type.
    """
    if args.get("arch", "streamspeech") != "streamspeech":
        raise ValueError(
            f"{where}: architecture {reprlib.repr(args['arch'])} has an autoregressive unit "
            "decoder, which does not exist here; only 'streamspeech' can be converted"
        )
    for name, default, accepted, part in _REQUIRED:
        value = args.get(name, default)
        if (value or None) != (accepted or None):
            raise ValueError(
                f"{where}: {part} ({name} {reprlib.repr(value)}) does not exist here; "
                f"only {accepted!r} does"
            )

    def number(name: str, default: int, least: int = 1) -> int:
        return _integer(args, name, default, where, least)

    dropout = _fraction(args, "dropout", 0.1, where)
    bins = _integer(data, "input_feat_per_channel", 80, f"{where}: data YAML")
    heads = number("decoder_attention_heads", 4)
    ffn = number("decoder_ffn_embed_dim", 2048)
    dim = number("decoder_embed_dim", 256)
    synthesizer_layers = number("synthesizer_encoder_layers", 0, least=0)
    unidirectional = bool(args.get("uni_encoder", False))
    if synthesizer_layers and not unidirectional:
        raise ValueError(
            f"{where}: a bidirectional synthesizer encoder (trained without --uni-encoder) does "
            "not exist here; it cannot stream"
        )
    mt = _decoder_args(tasks[MT_TASK], f"{where}: {MT_TASK}")
    return EchoStreamConfig(
        source_vocab_size=vocabulary_sizes[0],
        target_vocab_size=vocabulary_sizes[1],
        num_units=number("target_code_size", 1000),
        frontend=FrontendConfig(num_mel_bins=bins),
        encoder=ChunkConformerConfig(
            input_dim=bins,
            conv_channels=number("conv_channels", 1024),
            conv_kernel_sizes=_kernel_sizes(args, where),
            embed_dim=number("encoder_embed_dim", 256),
            layers=number("encoder_layers", 16),
            attention_heads=number("encoder_attention_heads", 4),
            ffn_dim=number("encoder_ffn_embed_dim", 2048),
            depthwise_kernel_size=number("depthwise_conv_kernel_size", 31),
            dropout=dropout,
            segment_frames=number("chunk_size", 8),
        ),
        asr_ctc=_ctc_head(tasks[ASR_TASK], dropout, f"{where}: {ASR_TASK}"),
        st_ctc=_ctc_head(tasks[ST_TASK], dropout, f"{where}: {ST_TASK}"),
        mt=MTDecoderConfig(
            layers=number("translation_decoder_layers", 4),
            embed_dim=dim,
            attention_heads=heads,
            ffn_dim=_integer(mt, "decoder_ffn_embed_dim", 2048, f"{where}: {MT_TASK}"),
            dropout=dropout,
            context_tokens=None,
            source_context_frames=None,
        ),
        t2u=T2UEncoderConfig(
            layers=synthesizer_layers,
            attention_heads=heads,
            ffn_dim=ffn,
            dropout=dropout,
            context_tokens=None,
        ),
        unit=UnitDecoderConfig(
            layers=number("decoder_layers", 6),
            upsample_ratio=number("ctc_upsample_rate", 10),
            embed_dim=dim,
            attention_heads=heads,
            ffn_dim=ffn,
            dropout=dropout,
            positions="streamspeech",
            context_tokens=None,
        ),
        vocoder=vocoder,
    )


def _integer(
    settings: Mapping[str, Any], name: str, default: int, where: str, least: int = 1
) -> int:
    value = settings.get(name, default)
    if type(value) is not int or value < least:
        raise ValueError(
            f"{where}: {name} must be an integer of at least {least}, got {reprlib.repr(value)}"
        )
    return value


def _fraction(settings: Mapping[str, Any], name: str, default: float, where: str) -> float:
    value = settings.get(name, default)
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(f"{where}: {name} must be a number from 0 to 1, got {reprlib.repr(value)}")
    return float(value)


def _kernel_sizes(args: Mapping[str, Any], where: str) -> tuple[int, ...]:
    value = args.get("conv_kernel_sizes", "5,5")
    sizes = str(value).split(",") if isinstance(value, (str, int)) else [""]
    if not all(size.strip().isdecimal() for size in sizes):
        raise ValueError(
            f"{where}: conv_kernel_sizes must be integers with commas between them, "
            f"got {reprlib.repr(value)}"
        )
    return tuple(map(int, sizes))


def _decoder_args(task: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    settings = task.get("decoder_args") or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"{where}: decoder_args must be a mapping, got {reprlib.repr(settings)}")
    return settings


def _ctc_head(task: Mapping[str, Any], dropout: float, where: str) -> CTCHeadConfig:
    settings = _decoder_args(task, where)
    layers = _integer(settings, "encoder_layers", 0, where, least=0)
    if layers and not settings.get("uni_encoder", False):
        raise ValueError(f"{where}: a bidirectional CTC head does not exist here")
    return CTCHeadConfig(
        layers=layers,
        attention_heads=_integer(settings, "encoder_attention_heads", 4, where),
        ffn_dim=_integer(settings, "encoder_ffn_embed_dim", 2048, where),
        dropout=dropout,
        context_frames=None,
    )


def settings_from_config(config: EchoStreamConfig, where: str) -> tuple[dict[str, Any], ...]:
    """The reverse of :func:`config_from_settings`.

    Returns:
        Arguments, data YAML and multitask YAML; file paths are the caller's to fill in.

    Raises:
        ValueError: StreamSpeech has no counterpart of a part.
    """
    encoder, mt, t2u, unit = config.encoder, config.mt, config.t2u, config.unit
    if not isinstance(encoder, ChunkConformerConfig):
        raise ValueError(
            f"{where}: StreamSpeech has no {encoder.kind} encoder; only models with a "
            "chunk_conformer encoder can be converted"
        )
    wanted = {
        "unit.positions": (unit.positions, "streamspeech"),
        "mt.attention_heads": (mt.attention_heads, unit.attention_heads),
        "t2u.attention_heads": (t2u.attention_heads, unit.attention_heads),
        "t2u.ffn_dim": (t2u.ffn_dim, unit.ffn_dim),
    }
    if not t2u.layers:
        wanted = {name: pair for name, pair in wanted.items() if not name.startswith("t2u")}
    for name, (value, accepted) in wanted.items():
        if value != accepted:
            raise ValueError(f"{where}: {name} is {value!r}, StreamSpeech needs {accepted!r}")
    args = {
        **{name: accepted for name, _, accepted, _ in _REQUIRED if accepted is not None},
        "arch": "streamspeech",
        "task": "speech_to_speech_ctc",
        "_name": "streamspeech",
        "criterion": "speech_to_unit_2pass_ctc_asr_st",
        "config_yaml": DATA_YAML,
        "multitask_config_yaml": TASKS_YAML,
        "target_code_size": config.num_units,
        "vocoder": "code_hifigan",
        "encoder_layers": encoder.layers,
        "encoder_embed_dim": encoder.embed_dim,
        "encoder_ffn_embed_dim": encoder.ffn_dim,
        "encoder_attention_heads": encoder.attention_heads,
        "encoder_normalize_before": True,
        "encoder_freezing_updates": 0,
        "conv_channels": encoder.conv_channels,
        "conv_kernel_sizes": ",".join(map(str, encoder.conv_kernel_sizes)),
        "depthwise_conv_kernel_size": encoder.depthwise_kernel_size,
        "input_feat_per_channel": encoder.input_dim,
        "chunk_size": encoder.segment_frames,
        "uni_encoder": True,
        "translation_decoder_layers": mt.layers,
        "synthesizer": "transformer",
        "synthesizer_encoder_layers": t2u.layers,
        "decoder_layers": unit.layers,
        "decoder_embed_dim": unit.embed_dim,
        "decoder_input_dim": unit.embed_dim,
        "decoder_output_dim": unit.embed_dim,
        "decoder_ffn_embed_dim": unit.ffn_dim,
        "decoder_attention_heads": unit.attention_heads,
        "decoder_layerdrop": 0.0,
        "ctc_upsample_rate": unit.upsample_ratio,
        "dropout": encoder.dropout,
        "attention_dropout": encoder.dropout,
        "activation_dropout": encoder.dropout,
        "adaptive_softmax_cutoff": None,
        "adaptive_softmax_dropout": 0,
        "quant_noise_pq": 0,
        "max_source_positions": 6000,
        "max_target_positions": 1200,
        "speaker_embed_dim": 256,
        "label_smoothing": 0.1,
        "multichunk": True,
        "k1": config.policy.lagging_k1,
        "k2": 0,
        "n1": config.policy.stride_n,
        "n2": -1,
        "seed": 1,
        "fp16": False,
        "data": "",
        "eval_inference": False,
        "eval_args": "{}",
        "eos_prob_threshold": 0.5,
        "mcd_normalize_type": "targ",
        "spec_bwd_max_iter": 8,
        "infer_target_lang": "",
        "train_subset": "train",
        "max_tokens": 22000,
    }
    data = {
        "input_channels": 1,
        "input_feat_per_channel": config.frontend.num_mel_bins,
        "specaugment": {
            "freq_mask_F": 27,
            "freq_mask_N": 1,
            "time_mask_N": 1,
            "time_mask_T": 100,
            "time_mask_p": 1.0,
            "time_wrap_W": 0,
        },
        "transforms": {"*": ["global_cmvn"], "_train": ["global_cmvn", "specaugment"]},
    }
    tasks = {
        MT_TASK: {
            "decoder_type": "transformer",
            "loss_weight": 8.0,
            "rdrop_alpha": 0.0,
            "decoder_args": {
                "decoder_layers": mt.layers,
                "decoder_embed_dim": mt.embed_dim,
                "decoder_ffn_embed_dim": mt.ffn_dim,
                "decoder_attention_heads": mt.attention_heads,
            },
            "label_smoothing": 0.1,
        }
    }
    for task, head in ((ASR_TASK, config.asr_ctc), (ST_TASK, config.st_ctc)):
        settings: dict[str, Any] = {"decoder_layers": 0}
        if head.layers:
            settings = {
                "encoder_layers": head.layers,
                "encoder_embed_dim": encoder.embed_dim,
                "encoder_ffn_embed_dim": head.ffn_dim,
                "encoder_attention_heads": head.attention_heads,
                "encoder_normalize_before": True,
                "uni_encoder": True,
                "dropout": head.dropout,
            }
        tasks[task] = {
            "decoder_type": "ctc",
            "loss_weight": 4.0,
            "rdrop_alpha": 0.0,
            "decoder_args": settings,
            "label_smoothing": 0.1,
        }
    return args, data, tasks
