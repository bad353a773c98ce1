"""Vocoder trainings that take seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from echostream.config import (
    CodeVocosConfig,
    DurationPredictorConfig,
    UnitDurationConfig,
    VocoderConfig,
    to_dict,
)
from echostream.training.vocoder.training_settings import (
    DiscriminatorConfig,
    VocoderTrainingConfig,
)

HIFIGAN = VocoderTrainingConfig(
    vocoder=VocoderConfig(
        num_embeddings=20,
        embedding_dim=16,
        model_in_dim=16,
        upsample_rates=(8, 8, 5),
        upsample_kernel_sizes=(16, 16, 11),
        upsample_initial_channel=16,
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
        dur_predictor_params=DurationPredictorConfig(16, 16),
    ),
    discriminators=DiscriminatorConfig((2,), (4, 8), 1, (4, 8)),
    updates=20,
    batch_size=4,
    segment_frames=16,
    learning_rate=2e-3,
    adversarial_start=8,
    stft_weight=1.0,
    duration_utterances=2,
)
VOCOS = replace(
    HIFIGAN,
    vocoder=CodeVocosConfig(
        num_embeddings=20,
        sampling_rate=16000,
        hop_samples=160,
        frames_per_unit=2,
        width=24,
        hidden_width=32,
        blocks=2,
        kernel=3,
        lookahead_frames=1,
        durations=UnitDurationConfig(8, 2, 1),
    ),
    warmup_updates=2,
    clip_norm=5.0,
    regression_updates=3,
)


def config_file(config: VocoderTrainingConfig, folder: Path) -> str:
    """The settings as ``--config`` takes them."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    return str(path)
