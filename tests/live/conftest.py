"""A real server on a free port, with the shipped systems."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

import uvicorn

from echostream import assets
from echostream.checkpoint import System, load_model_dir
from echostream.config import EndpointConfig
from echostream.live.catalog import Catalog, recomputing, served
from echostream.live.limits import Limits
from echostream.live.protocol import encode_speech
from echostream.live.security import Gate
from echostream.live.server import bind, create_app, uvicorn_settings
from echostream.translator.pipeline import Pipeline

AUDIO = Path(__file__).resolve().parents[2] / "data/echo_mini/test_audio"
CHUNK_MS = 320


def read_clip(name: str) -> tuple[np.ndarray, int]:
    return soundfile.read(AUDIO / name, dtype="float32")


@pytest.fixture(scope="session")
def shipped():
    """The shipped system."""
    return load_model_dir(assets.model_dir("echostream"))


@pytest.fixture(scope="session")
def catalog(shipped) -> Catalog:
    folder = assets.model_dir("streamspeech")
    baseline = served(folder, load_model_dir(folder))
    return Catalog(
        [served(assets.model_dir("echostream"), shipped), baseline, recomputing(baseline)]
    )


@pytest.fixture(scope="session")
def talking(shipped) -> System:
    """The shipped system, which takes pauses for ends of sentences."""
    endpoint = EndpointConfig(method="pause", endpoint_ms=320)
    return replace(shipped, config=replace(shipped.config, endpoint=endpoint))


@contextlib.contextmanager
def running(
    catalog: Catalog, *, gate: Gate | None = None, send_buffer: int | None = None, **limits
):
    """A server in a thread; yields its ``host:port``.

    Args:
        send_buffer: bytes that the kernel keeps for a client that does not read.
    """
    app = create_app(catalog, gate=gate, limits=replace(Limits(), **limits))
    listener = bind("127.0.0.1", 0)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = uvicorn.Server(uvicorn.Config(app, **uvicorn_settings("127.0.0.1", 0)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield "{}:{}".format(*listener.getsockname())
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="session")
def address(catalog):
    """A server with default limits that the tests share."""
    with running(catalog, max_sessions=64) as place:
        yield place


@pytest.fixture(scope="session")
def expected(shipped):
    """What the pipeline gives for a clip on its own: transcript, translation, samples."""
    cache = {}

    def translate(samples: np.ndarray, rate: int, chunk_ms: int = CHUNK_MS, task: str = "s2st"):
        key = (samples.tobytes(), rate, chunk_ms, task)
        if key not in cache:
            pipeline = Pipeline(shipped, chunk_ms=chunk_ms, task=task)
            outputs, _ = pipeline.step(samples, rate, pipeline.init_state(), final=True)
            cache[key] = (
                " ".join(word for output in outputs for word in output.transcript),
                " ".join(word for output in outputs for word in output.translation),
                b"".join(encode_speech(output.waveform) for output in outputs),
            )
        return cache[key]

    return translate


def run(coroutine):
    """Run one asynchronous test, never longer than a minute."""
    return asyncio.run(asyncio.wait_for(coroutine, 60))
