"""The whole system, presets, and the file that stores it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from echostream.config.card import CardConfig
from echostream.config.checks import require, require_heads
from echostream.config.decoders import (
    CTCHeadConfig,
    MTDecoderConfig,
    T2UEncoderConfig,
    UnitDecoderConfig,
)
from echostream.config.encoders import (
    ChunkConformerConfig,
    EmformerConfig,
    EncoderConfig,
    FrontendConfig,
)
from echostream.config.loading import MAY_BE_MISSING, from_dict, load_yaml, to_dict
from echostream.config.policy import BacklogConfig, EndpointConfig, PolicyConfig, SpeechConfig
from echostream.config.vocoder import DurationPredictorConfig, VocoderConfig


@dataclass(frozen=True)
class EchoStreamConfig:
    """The whole system. Vocabulary sizes include the four special symbols of fairseq
    dictionaries; ``num_units`` counts real units, without specials and blank. With 0 of them the
    model has no unit decoder, ``t2u`` and ``unit`` say nothing, and a voice speaks its text
    (``speech.voice``)."""

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
    # Model directories written before these existed lack them.
    endpoint: EndpointConfig = field(default_factory=EndpointConfig, metadata=MAY_BE_MISSING)
    backlog: BacklogConfig = field(default_factory=BacklogConfig, metadata=MAY_BE_MISSING)
    speech: SpeechConfig = field(default_factory=SpeechConfig, metadata=MAY_BE_MISSING)
    card: CardConfig = field(default_factory=CardConfig, metadata=MAY_BE_MISSING)

    @property
    def speaks(self) -> bool:
        """Whether there is a vocoder or a voice."""
        return self.vocoder is not None or self.speech.voice is not None

    def __post_init__(self) -> None:
        for name in ("source_vocab_size", "target_vocab_size"):
            value = getattr(self, name)
            require(value > 4, f"{name} must exceed the 4 special symbols, got {value}")
        require(self.num_units >= 0, f"num_units must not be negative, got {self.num_units}")
        require(
            not self.num_units or self.mt.embed_dim == self.unit.embed_dim,
            "mt.embed_dim and unit.embed_dim must be equal, "
            f"got {self.mt.embed_dim} and {self.unit.embed_dim}",
        )
        require(
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
                require_heads(name, width, part.attention_heads)
        if self.vocoder is not None:
            require(self.num_units > 0, "a model without units (num_units 0) has no vocoder")
            require(
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


def load_config(path: Path) -> EchoStreamConfig:
    """Read an :class:`EchoStreamConfig` from YAML, strictly."""
    return from_dict(EchoStreamConfig, load_yaml(path), str(path))


def save_config(config: EchoStreamConfig, path: Path) -> None:
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
