"""Typed, frozen configuration of every component, with a strict loader.

One dataclass per component, nested in :class:`EchoStreamConfig`. A model directory stores the
whole tree as YAML, so a checkpoint describes itself. Unknown keys, missing keys and wrong types
are errors that name the file and the key.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

ENCODER_FRAME_MS = 40  # 10 ms fbank shift times 4x subsampling

ConfigT = TypeVar("ConfigT")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_heads(name: str, embed_dim: int, heads: int) -> None:
    _require(
        heads > 0 and embed_dim > 0 and embed_dim % heads == 0,
        f"{name}: embed_dim must be a multiple of attention_heads, got {embed_dim} and {heads}",
    )


def _require_layers(name: str, layers: int, least: int = 1) -> None:
    _require(layers >= least, f"{name}: layers must be at least {least}, got {layers}")


def _require_window(name: str, field: str, value: int | None) -> None:
    _require(value is None or value > 0, f"{name}: {field} must be positive or null, got {value}")


@dataclass(frozen=True)
class FrontendConfig:
    """Kaldi-compatible log-mel filterbank."""

    sample_rate: int = 16000
    num_mel_bins: int = 80
    window_ms: int = 25
    shift_ms: int = 10

    def __post_init__(self) -> None:
        _require(
            self.window_ms >= self.shift_ms > 0,
            "frontend: window_ms must be at least shift_ms and shift_ms positive, "
            f"got {self.window_ms} and {self.shift_ms}",
        )

    @property
    def window_samples(self) -> int:
        return self.sample_rate * self.window_ms // 1000

    @property
    def shift_samples(self) -> int:
        return self.sample_rate * self.shift_ms // 1000


@dataclass(frozen=True)
class EmformerConfig:
    """Streaming Emformer encoder (Shi et al., ICASSP 2021).

    ``segment_frames`` is only the default partition: weights serve any segment length.
    ``conv_channels`` counts the channels of both Conv2d layers, or those of the first
    Conv1d-GLU layer before its gate. ``depthwise_kernel_size`` frames enter a causal convolution
    behind the attention of every layer; 0 leaves it out, as the paper and torchaudio do.
    """

    kind: Literal["emformer"] = "emformer"
    input_dim: int = 80
    subsampler: Literal["conv2d", "conv1d_glu"] = "conv2d"
    conv_channels: int = 64
    conv_kernel_sizes: tuple[int, ...] = (5, 5)
    embed_dim: int = 256
    layers: int = 16
    attention_heads: int = 4
    ffn_dim: int = 2048
    dropout: float = 0.1
    activation: Literal["relu", "gelu", "silu"] = "relu"
    segment_frames: int = 8
    left_context_frames: int = 32
    right_context_frames: int = 0
    memory_size: int = 4
    tanh_on_memory: bool = False
    depthwise_kernel_size: int = 0

    def __post_init__(self) -> None:
        _require_heads("encoder", self.embed_dim, self.attention_heads)
        _require_layers("encoder", self.layers)
        _require(self.segment_frames > 0, "encoder: segment_frames must be positive")
        for name in (
            "left_context_frames",
            "right_context_frames",
            "memory_size",
            "depthwise_kernel_size",
        ):
            _require(getattr(self, name) >= 0, f"encoder: {name} must not be negative")


@dataclass(frozen=True)
class ChunkConformerConfig:
    """StreamSpeech's chunk Conformer encoder, under StreamSpeech's state-dict names.

    ``conv_chunk_frames`` is the chunk of the convolutions; the original ties it to 8 or 16
    whatever the attention chunk is. ``None`` derives it from the segment length as the
    original's agent does.
    """

    kind: Literal["chunk_conformer"] = "chunk_conformer"
    input_dim: int = 80
    conv_channels: int = 1024
    conv_kernel_sizes: tuple[int, ...] = (5, 5)
    embed_dim: int = 256
    layers: int = 12
    attention_heads: int = 4
    ffn_dim: int = 2048
    depthwise_kernel_size: int = 31
    dropout: float = 0.1
    segment_frames: int = 8
    conv_chunk_frames: int | None = None

    def __post_init__(self) -> None:
        _require_heads("encoder", self.embed_dim, self.attention_heads)
        _require_layers("encoder", self.layers)
        _require(self.segment_frames > 0, "encoder: segment_frames must be positive")
        _require(
            self.depthwise_kernel_size % 2 == 1,
            f"encoder: depthwise_kernel_size must be odd, got {self.depthwise_kernel_size}",
        )


EncoderConfig = EmformerConfig | ChunkConformerConfig


@dataclass(frozen=True)
class CTCHeadConfig:
    """A CTC head on the encoder; ``layers`` 0 is a plain projection (StreamSpeech's recipe)."""

    layers: int = 0
    attention_heads: int = 4
    ffn_dim: int = 2048
    dropout: float = 0.1
    context_frames: int | None = 256

    def __post_init__(self) -> None:
        _require_layers("CTC head", self.layers, least=0)
        _require_window("CTC head", "context_frames", self.context_frames)


@dataclass(frozen=True)
class MTDecoderConfig:
    """Autoregressive text decoder.

    ``context_tokens`` and ``source_context_frames`` bound what attention looks back at, and with
    it the streaming state; ``None`` leaves them unbounded.
    """

    layers: int = 4
    embed_dim: int = 256
    attention_heads: int = 4
    ffn_dim: int = 2048
    dropout: float = 0.1
    context_tokens: int | None = 512
    source_context_frames: int | None = 1500

    def __post_init__(self) -> None:
        _require_heads("mt", self.embed_dim, self.attention_heads)
        _require_layers("mt", self.layers)
        _require_window("mt", "context_tokens", self.context_tokens)
        _require_window("mt", "source_context_frames", self.source_context_frames)


@dataclass(frozen=True)
class T2UEncoderConfig:
    """Unidirectional Transformer over MT decoder states (StreamSpeech's synthesizer encoder)."""

    layers: int = 0
    attention_heads: int = 4
    ffn_dim: int = 2048
    dropout: float = 0.1
    context_tokens: int | None = 512

    def __post_init__(self) -> None:
        _require_layers("t2u", self.layers, least=0)
        _require_window("t2u", "context_tokens", self.context_tokens)


@dataclass(frozen=True)
class UnitDecoderConfig:
    """Non-autoregressive CTC unit decoder.

    ``positions``: ``upsample`` marks each of the ``upsample_ratio`` copies of a text state with a
    sinusoid; ``streamspeech`` repeats the original's arithmetic, which adds one constant vector
    per batch row.
    """

    layers: int = 6
    upsample_ratio: int = 5
    embed_dim: int = 256
    attention_heads: int = 4
    ffn_dim: int = 2048
    dropout: float = 0.1
    positions: Literal["upsample", "streamspeech"] = "upsample"
    context_tokens: int | None = 512

    def __post_init__(self) -> None:
        _require_heads("unit", self.embed_dim, self.attention_heads)
        _require_layers("unit", self.layers)
        _require_window("unit", "context_tokens", self.context_tokens)
        _require(self.upsample_ratio > 0, "unit: upsample_ratio must be positive")


@dataclass(frozen=True)
class DurationPredictorConfig:
    """Convolutional duration predictor of CodeHiFiGAN."""

    encoder_embed_dim: int = 128
    var_pred_hidden_dim: int = 128
    var_pred_kernel_size: int = 3
    var_pred_dropout: float = 0.5


@dataclass(frozen=True)
class VocoderConfig:
    """CodeHiFiGAN generator; names follow the JSON that ships with public checkpoints."""

    num_embeddings: int = 1000
    embedding_dim: int = 128
    model_in_dim: int = 128
    upsample_rates: tuple[int, ...] = (5, 4, 4, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (11, 8, 8, 4, 4)
    upsample_initial_channel: int = 512
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    sampling_rate: int = 16000
    dur_predictor_params: DurationPredictorConfig | None = field(
        default_factory=DurationPredictorConfig
    )

    def __post_init__(self) -> None:
        _require(
            len(self.upsample_rates) == len(self.upsample_kernel_sizes),
            "vocoder: upsample_rates and upsample_kernel_sizes must have the same length, "
            f"got {len(self.upsample_rates)} and {len(self.upsample_kernel_sizes)}",
        )
        _require(
            len(self.resblock_kernel_sizes) == len(self.resblock_dilation_sizes),
            "vocoder: resblock_kernel_sizes and resblock_dilation_sizes must have the same "
            f"length, got {len(self.resblock_kernel_sizes)} and "
            f"{len(self.resblock_dilation_sizes)}",
        )

        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            # Otherwise a frame would not become a whole number of samples.
            _require(
                kernel >= rate > 0 and (kernel - rate) % 2 == 0,
                "vocoder: an upsample kernel must exceed its rate by an even number, "
                f"got kernel {kernel} and rate {rate}",
            )
        durations = self.dur_predictor_params
        if durations is not None:
            _require(
                durations.encoder_embed_dim == self.embedding_dim,
                "vocoder: dur_predictor_params.encoder_embed_dim must equal embedding_dim, "
                f"got {durations.encoder_embed_dim} and {self.embedding_dim}",
            )
            # Its second convolution is padded for a kernel of 3 whatever the kernel is.
            _require(
                durations.var_pred_kernel_size == 3,
                "vocoder: dur_predictor_params.var_pred_kernel_size must be 3, "
                f"got {durations.var_pred_kernel_size}",
            )
        _require(
            self.model_in_dim == self.embedding_dim,
            "vocoder: model_in_dim must equal embedding_dim, "
            f"got {self.model_in_dim} and {self.embedding_dim}",
        )

    @property
    def unit_samples(self) -> int:
        """Samples that one unit frame becomes."""
        product = 1
        for rate in self.upsample_rates:
            product *= rate
        return product


@dataclass(frozen=True)
class PolicyConfig:
    """When to READ and when to WRITE; names follow StreamSpeech's flags.

    ``whole_word`` ``None`` switches whole-word mode on from 640 ms chunks, as the original does.
    ``segment_size`` is wait-k's unit of source, in ms. ``max_len`` bounds what one decision may
    write, a guard against endless repetition at the end of the source.
    """

    name: Literal["ctc", "wait_k"] = "ctc"
    lagging_k1: int = 0
    stride_n: int = 1
    segment_size: int = 320
    whole_word: bool | None = None
    max_len: int = 200

    def __post_init__(self) -> None:
        _require(self.lagging_k1 >= 0, f"policy: lagging_k1 must be >= 0, got {self.lagging_k1}")
        _require(self.stride_n >= 1, f"policy: stride_n must be >= 1, got {self.stride_n}")
        _require(
            self.segment_size >= 1, f"policy: segment_size must be >= 1, got {self.segment_size}"
        )
        _require(self.max_len >= 1, f"policy: max_len must be >= 1, got {self.max_len}")


MAY_BE_MISSING = {"may_be_missing": True}


@dataclass(frozen=True)
class EndpointConfig:
    """Where sentences end inside a stream.

    ``off`` takes every stream for one sentence, as StreamSpeech does. ``learned`` needs weights
    whose recognition head emits end-of-sentence; ``pause`` works with any: no source token for
    ``endpoint_ms`` after at least ``min_tokens`` of them. With ``learned`` such a pause ends a
    sentence too, so give it a long one. ``max_sentence_ms`` bounds a sentence that finds no end.
    """

    method: Literal["off", "learned", "pause"] = "off"
    endpoint_ms: int = 640
    min_tokens: int = 3
    max_sentence_ms: int = 20_000

    def __post_init__(self) -> None:
        for name in ("endpoint_ms", "min_tokens", "max_sentence_ms"):
            value = getattr(self, name)
            _require(value >= 1, f"endpoint: {name} must be >= 1, got {value}")


@dataclass(frozen=True)
class BacklogConfig:
    """How far speech may fall behind: beyond ``max_ms`` of it waiting to be played (0: no limit),
    it is spoken faster, at most ``max_speed`` times."""

    max_ms: int = 0
    max_speed: float = 1.4

    def __post_init__(self) -> None:
        _require(self.max_ms >= 0, f"backlog: max_ms must be >= 0, got {self.max_ms}")
        _require(
            1 <= self.max_speed <= 3,
            f"backlog: max_speed must be between 1 and 3, got {self.max_speed}",
        )


@dataclass(frozen=True)
class EchoStreamConfig:
    """The whole system. Vocabulary sizes include the four special symbols of fairseq
    dictionaries; ``num_units`` counts real units, without specials and blank."""

    source_vocab_size: int = 6000
    target_vocab_size: int = 6000
    num_units: int = 1000
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    encoder: EncoderConfig = field(default_factory=EmformerConfig)
    asr_ctc: CTCHeadConfig = field(default_factory=CTCHeadConfig)
    st_ctc: CTCHeadConfig = field(default_factory=lambda: CTCHeadConfig(layers=2))
    mt: MTDecoderConfig = field(default_factory=MTDecoderConfig)
    t2u: T2UEncoderConfig = field(default_factory=T2UEncoderConfig)
    unit: UnitDecoderConfig = field(default_factory=UnitDecoderConfig)
    vocoder: VocoderConfig | None = field(default_factory=VocoderConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    # Model directories written before streams had sentences lack these two.
    endpoint: EndpointConfig = field(default_factory=EndpointConfig, metadata=MAY_BE_MISSING)
    backlog: BacklogConfig = field(default_factory=BacklogConfig, metadata=MAY_BE_MISSING)

    def __post_init__(self) -> None:
        for name in ("source_vocab_size", "target_vocab_size"):
            value = getattr(self, name)
            _require(value > 4, f"{name} must exceed the 4 special symbols, got {value}")
        _require(self.num_units > 0, f"num_units must be positive, got {self.num_units}")
        _require(
            self.mt.embed_dim == self.unit.embed_dim,
            "mt.embed_dim and unit.embed_dim must be equal, "
            f"got {self.mt.embed_dim} and {self.unit.embed_dim}",
        )
        _require(
            self.encoder.input_dim == self.frontend.num_mel_bins,
            "encoder.input_dim must equal frontend.num_mel_bins, "
            f"got {self.encoder.input_dim} and {self.frontend.num_mel_bins}",
        )
        for name, part, width in (
            ("asr_ctc", self.asr_ctc, self.encoder.embed_dim),
            ("st_ctc", self.st_ctc, self.encoder.embed_dim),
            ("t2u", self.t2u, self.mt.embed_dim),
        ):
            if part.layers:
                _require_heads(name, width, part.attention_heads)
        if self.vocoder is not None:
            _require(
                self.vocoder.num_embeddings >= self.num_units,
                "vocoder.num_embeddings must cover num_units, "
                f"got {self.vocoder.num_embeddings} and {self.num_units}",
            )


def _recipe_decoders() -> dict[str, Any]:
    """Decoders of StreamSpeech's published training command (train.simul-s2st.sh)."""
    return {
        "asr_ctc": CTCHeadConfig(layers=0),
        "st_ctc": CTCHeadConfig(layers=0),
        "mt": MTDecoderConfig(layers=4, embed_dim=512, attention_heads=8, ffn_dim=2048),
        "t2u": T2UEncoderConfig(layers=2, attention_heads=8, ffn_dim=2048),
        "unit": UnitDecoderConfig(
            layers=2,
            upsample_ratio=25,
            embed_dim=512,
            attention_heads=8,
            ffn_dim=2048,
            positions="streamspeech",
        ),
    }


def preset(name: str) -> EchoStreamConfig:
    """Return a named configuration: ``base``, ``streamspeech-recipe``, ``streamspeech`` (the
    same decoders on the chunk Conformer) or ``tiny`` (seconds to run, for tests and demos)."""
    if name == "base":
        return EchoStreamConfig()
    if name == "streamspeech-recipe":
        return EchoStreamConfig(encoder=EmformerConfig(layers=12), **_recipe_decoders())
    if name == "streamspeech":
        return EchoStreamConfig(encoder=ChunkConformerConfig(), **_recipe_decoders())
    if name == "tiny":
        return EchoStreamConfig(
            source_vocab_size=64,
            target_vocab_size=64,
            num_units=50,
            encoder=EmformerConfig(
                conv_channels=8,
                embed_dim=32,
                layers=2,
                attention_heads=4,
                ffn_dim=64,
                left_context_frames=16,
                memory_size=2,
            ),
            asr_ctc=CTCHeadConfig(layers=0),
            st_ctc=CTCHeadConfig(layers=2, attention_heads=4, ffn_dim=64, context_frames=64),
            mt=MTDecoderConfig(
                layers=2,
                embed_dim=32,
                attention_heads=4,
                ffn_dim=64,
                context_tokens=64,
                source_context_frames=256,
            ),
            t2u=T2UEncoderConfig(layers=1, attention_heads=4, ffn_dim=64, context_tokens=64),
            unit=UnitDecoderConfig(
                layers=2, embed_dim=32, attention_heads=4, ffn_dim=64, context_tokens=64
            ),
            vocoder=VocoderConfig(
                num_embeddings=50,
                embedding_dim=16,
                model_in_dim=16,
                upsample_initial_channel=32,
                dur_predictor_params=DurationPredictorConfig(16, 16, 3, 0.5),
            ),
        )
    raise ValueError(
        f"unknown preset {name!r}; available: base, streamspeech-recipe, streamspeech, tiny"
    )


def to_dict(config: Any) -> dict[str, Any]:
    """Return plain containers (tuples become lists) that :func:`from_dict` reads back."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return value

    return plain(config)


def from_dict(cls: type[ConfigT], data: Any, where: str = "config") -> ConfigT:
    """Build ``cls`` from plain containers.

    Every field must be present (but for those marked ``MAY_BE_MISSING``) and no other; integers
    are accepted for floats.

    Raises:
        ValueError: unknown or missing key, wrong type, or a value that breaks a rule; the message
            names ``where`` and the key.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected a mapping, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    required = [f.name for f in dataclasses.fields(cls) if f.metadata != MAY_BE_MISSING]
    unknown = [key for key in data if key not in names]
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(names)}")
    missing = [name for name in required if name not in data]
    if missing:
        raise ValueError(f"{where}: missing key {missing[0]!r}; required: {', '.join(required)}")
    values = {name: _convert(hints[name], data[name], f"{where}: {name}") for name in data}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        options = [option for option in options if option is not type(None)]
        if len(options) > 1:
            return _convert_tagged(options, value, where)
        return _convert(options[0], value, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"{where}: must be one of {typing.get_args(hint)}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where}: expected a list, got {type(value).__name__}")
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _convert_tagged(options: list[Any], value: Any, where: str) -> Any:
    """Pick the dataclass of a union by its ``kind`` field."""
    kinds = {option().kind: option for option in options}
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{where}: kind must be one of {', '.join(kinds)}, got {kind!r}")
    return from_dict(kinds[kind], value, where)


def load_yaml(path: Path) -> Any:
    """Read a YAML file with the safe loader.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: the file is not valid YAML.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such configuration file: {path}")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error


def load_config(path: Path) -> EchoStreamConfig:
    """Read an :class:`EchoStreamConfig` from YAML, strictly."""
    return from_dict(EchoStreamConfig, load_yaml(path), str(path))


def save_config(config: EchoStreamConfig, path: Path) -> None:
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
