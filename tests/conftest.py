"""Shared fixtures: small seeded systems and the recorded reference data."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

# Read when torch is loaded, here and by what tests start: tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from echostream.checkpoint import System, save_model_dir
from echostream.config import EchoStreamConfig, EmformerConfig, preset
from echostream.models.echostream_model import seeded_model
from echostream.synthetic import random_system

SHARED = Path(__file__).resolve().parents[2] / "shared"
REFERENCE = SHARED / "reference"
REFERENCE_MODELS = ("tiny", "mid")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)


def require_reference(path: str = "") -> Path:
    """A path in the reference data, or skip."""
    found = REFERENCE / path
    if not found.exists():
        pytest.skip(f"reference data not there: {path}")
    return found


@pytest.fixture
def clips() -> list[Path]:
    """The two recorded 48 kHz clips."""
    return sorted(require_reference("audio").glob("*.wav"))


@pytest.fixture(params=REFERENCE_MODELS)
def recorded(request):
    """A recorded StreamSpeech model: folder, state dict, tensors."""
    folder = require_reference(f"streamspeech_{request.param}")
    return (
        folder,
        load_file(folder / "model.safetensors"),
        load_file(folder / "tensors.safetensors"),
    )


def tiny_config(**encoder) -> EchoStreamConfig:
    config = preset("tiny")
    return replace(config, encoder=replace(config.encoder, **encoder))


@pytest.fixture(scope="session")
def system() -> System:
    """A tiny float32 system with seeded random weights."""
    return random_system()


@pytest.fixture(scope="session")
def double_system() -> System:
    """The same in float64, for equality tests."""
    single = random_system()
    return replace(single, model=seeded_model(single.config, 1).double())


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
