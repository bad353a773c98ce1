"""Typed, frozen configuration of every component, with a strict loader.

One dataclass per component, nested in :class:`EchoStreamConfig`. A model directory stores the
whole tree as YAML, so a checkpoint describes itself. Unknown keys, missing keys and wrong types
are errors that name the file and the key.
"""

from echostream.config.card import CardConfig, Task
from echostream.config.codevocos import CodeVocosConfig, UnitDurationConfig
from echostream.config.decoders import (
    CTCHeadConfig,
    MTDecoderConfig,
    T2UEncoderConfig,
    UnitDecoderConfig,
)
from echostream.config.encoders import (
    ENCODER_FRAME_MS,
    ChunkConformerConfig,
    EmformerConfig,
    EncoderConfig,
    FrontendConfig,
)
from echostream.config.flags import (
    Setting,
    add_setting_args,
    given_settings,
    overlay,
    read_settings,
    setting_flags,
    settings_from_args,
    settings_of,
)
from echostream.config.loading import MAY_BE_MISSING, from_dict, load_yaml, to_dict
from echostream.config.model_config import EchoStreamConfig, load_config, preset, save_config
from echostream.config.policy import (
    BacklogConfig,
    EndpointConfig,
    PolicyConfig,
    Settings,
    SpeechConfig,
)
from echostream.config.vocoder import DurationPredictorConfig, VocoderConfig

__all__ = [
    "ENCODER_FRAME_MS",
    "MAY_BE_MISSING",
    "BacklogConfig",
    "CTCHeadConfig",
    "CardConfig",
    "ChunkConformerConfig",
    "CodeVocosConfig",
    "DurationPredictorConfig",
    "EchoStreamConfig",
    "EmformerConfig",
    "EncoderConfig",
    "EndpointConfig",
    "FrontendConfig",
    "MTDecoderConfig",
    "PolicyConfig",
    "Setting",
    "Settings",
    "SpeechConfig",
    "T2UEncoderConfig",
    "Task",
    "UnitDecoderConfig",
    "UnitDurationConfig",
    "VocoderConfig",
    "add_setting_args",
    "from_dict",
    "given_settings",
    "load_config",
    "load_yaml",
    "overlay",
    "preset",
    "read_settings",
    "save_config",
    "setting_flags",
    "settings_from_args",
    "settings_of",
    "to_dict",
]
