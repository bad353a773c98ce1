"""Shared fixtures: small seeded systems and the recorded reference data."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

# Read when torch is loaded, here and by what tests start: tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings

from echostream.checkpoint import System, save_model_dir
from echostream.config import EchoStreamConfig, EmformerConfig, preset
from echostream.models.echostream_model import seeded_model
from echostream.samples import read_audio
from echostream.synthetic import random_system
from tests.reference.recordings import MID, SUBSET, SUBSET_CLIPS, Recording, clip, opener
from tests.streams import MOST_TOKENS

# Examples are seeded, and a machine that is busy fails no test.
settings.register_profile("project", derandomize=True, deadline=None, database=None)
settings.load_profile("project")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def open_recording(tmp_path_factory) -> Callable[[str], Recording]:
    """Opens a recorded StreamSpeech model by name, each once."""
    return opener(lambda: tmp_path_factory.mktemp("release"))


@pytest.fixture(params=[SUBSET, MID])
def recorded(request, open_recording) -> Recording:
    """A recorded StreamSpeech model."""
    return open_recording(request.param)


@pytest.fixture(scope="session")
def clip_48k() -> tuple[np.ndarray, int]:
    """Samples and rate of recorded speech, 4 s at 48 kHz."""
    return read_audio(clip(f"{SUBSET_CLIPS[0]}.wav"))


def tiny_config(**encoder) -> EchoStreamConfig:
    config = preset("tiny")
    return replace(config, encoder=replace(config.encoder, **encoder))


@pytest.fixture(scope="session")
def system() -> System:
    """A tiny float32 system with seeded random weights that writes little at once."""
    whole = random_system()
    policy = replace(whole.config.policy, max_len=MOST_TOKENS)
    return replace(whole, config=replace(whole.config, policy=policy))


@pytest.fixture(scope="session")
def double_system(system) -> System:
    """The same in float64, for equality tests."""
    return replace(system, model=seeded_model(system.config, 1).double())


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, system) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model_dir(path, system)
    return path


def small_encoder(**options) -> EmformerConfig:
    """An encoder for equality sweeps."""
    return EmformerConfig(
        **{
            "conv_channels": 4,
            "embed_dim": 16,
            "layers": 3,
            "ffn_dim": 24,
            "left_context_frames": 6,
            "memory_size": 2,
            **options,
        }
    )
