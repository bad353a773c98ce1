"""A local Hub with a tiny release, and an environment that knows no other."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="the extra 'hub' is not installed")

import huggingface_hub.constants as hub_constants

from echostream.hub import names, table
from echostream.hub.remote import HubStore
from tests.hub.server import HubServer, serving
from tests.hub.stand_in import Release, as_released, build_release, publish, tiny_streamspeech


@pytest.fixture(scope="session")
def release(tmp_path_factory) -> Release:
    return build_release(tiny_streamspeech(), tmp_path_factory.mktemp("release"))


@pytest.fixture
def hub(release) -> HubServer:
    with serving() as server:
        publish(release, server)
        yield server


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """Where models lie."""
    folder = tmp_path / "models"
    monkeypatch.setenv(names.CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def store(hub, models, tmp_path, monkeypatch) -> HubStore:
    """The local Hub, reached as the environment says, with a cache of its own and no waiting."""
    cache = tmp_path / "hub-cache"
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("ECHOSTREAM_GITHUB_RAW", hub.url)
    monkeypatch.setenv("ECHOSTREAM_FAIRSEQ_FILES", hub.url)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    real_sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: real_sleep(min(seconds, 0.01)))
    return HubStore.from_environment()


@pytest.fixture
def model(release, monkeypatch) -> table.ReleasedModel:
    """The tiny release as an entry of the table."""
    entry = as_released(release)
    monkeypatch.setitem(table.KNOWN, entry.name, entry)
    return entry
