"""Clients that misbehave hear what is wrong, and their neighbours lose nothing."""

import asyncio
import json
import socket
import struct
import threading
import time
import urllib.request

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from echostream import assets
from echostream.live.catalog import Catalog, served
from echostream.live.client import LiveClient
from echostream.live.security import Gate
from echostream.streamspeech.recompute import RecomputePipeline
from tests.live.conftest import read_clip, run, running

HEALTHY = [f"test_00{index:02d}1.flac" for index in range(4)]


async def healthy(address, name):
    samples, rate = read_clip(name)
    async with LiveClient(f"ws://{address}") as client:
        await client.start(rate)
        return await client.translate(samples, rate, speed=4)


async def error_of(client):
    await client.finish()
    return client.received.messages[-1], client.socket.close_code


async def binary_before_start(address):
    async with LiveClient(f"ws://{address}") as client:
        await client.send(np.zeros(100, np.float32))
        return await error_of(client)


def saying(text):
    async def fault(address):
        async with LiveClient(f"ws://{address}") as client:
            await client.socket.send(text)
            return await error_of(client)

    return fault


def starting(**options):
    async def fault(address):
        async with LiveClient(f"ws://{address}") as client:
            await client.start(**{"sample_rate": 16000, **options})
            return await error_of(client)

    return fault


def sending(*messages, **options):
    async def fault(address):
        async with LiveClient(f"ws://{address}") as client:
            await client.start(16000, **options)
            for message in messages:
                await client.socket.send(message)
            return await error_of(client)

    return fault


NAN = struct.pack("<3f", 0.1, float("nan"), 0.1)
FAULTS = {
    "binary before start": (binary_before_start, "not_started", "before start", 1008),
    "end before start": (saying('{"type": "end"}'), "not_started", "before start", 1008),
    "no JSON": (saying("hello"), "bad_message", "must be JSON", 1008),
    "deep JSON": (saying("[" * 4000), "bad_message", "must be JSON", 1008),
    "a list": (saying("[1]"), "bad_message", "JSON object", 1008),
    "a strange type": (saying('{"type": "\\ud800"}'), "bad_message", "start, resume", 1008),
    "long text": (saying("x" * 5000), "message_too_big", "4096", 1009),
    "no rate": (starting(sample_rate=None), "bad_message", "sample_rate must be", 1008),
    "rate 0": (starting(sample_rate=0), "bad_message", "from 8000 to 192000, got 0", 1008),
    "rate as text": (starting(sample_rate="16000"), "bad_message", 'got "16000"', 1008),
    "a huge rate": (starting(sample_rate=10**30), "bad_message", "sample_rate", 1008),
    "chunk of 1 ms": (starting(chunk_ms=1), "bad_message", "chunk_ms must be", 1008),
    "a strange task": (starting(task=["asr"]), "bad_message", "task must be", 1008),
    "a strange format": (starting(format="mp3"), "bad_message", "format must be", 1008),
    "a strange field": (starting(path="/etc/passwd"), "bad_message", 'field "path"', 1008),
    "a strange model": (starting(model="../x"), "unknown_model", "echo-mini, echo-mini-st", 1008),
    "NaN": (sending(NAN), "bad_audio", "sample 1 is nan", 1008),
    "NaN later": (sending(NAN[:4] * 9, NAN), "bad_audio", "sample 10 is nan", 1008),
    "infinity": (sending(struct.pack("<f", float("inf"))), "bad_audio", "sample 0 is inf", 1008),
    "garbage": (sending(bytes(range(256)) * 16), "bad_audio", "finite numbers", 1008),
    "half a sample": (sending(b"123"), "bad_audio", "whole f32le samples", 1008),
    "half an integer": (sending(b"1", format="s16le"), "bad_audio", "whole s16le", 1008),
    "10 MB": (sending(bytes(10 << 20)), "message_too_big", "1048576 bytes", 1009),
    "start again": (
        sending('{"type": "start", "sample_rate": 16000}'),
        "already_started",
        "has a session already",
        1008,
    ),
    # Ten seconds are to be translated: the session is not over when more samples come.
    "samples after end": (
        sending(bytes(4 * 160_000), '{"type": "end"}', NAN[:4] * 9),
        "ended",
        "after end",
        1008,
    ),
    "no such session": (
        saying('{"type": "resume", "session": "x"}'),
        "unknown_session",
        "30 s",
        1008,
    ),
}


@pytest.fixture(scope="module")
def crowded(catalog):
    """A server where all faults happen at once, among four healthy sessions."""
    with running(catalog, max_sessions=64) as address:

        async def scenario():
            neighbours = asyncio.gather(*(healthy(address, name) for name in HEALTHY))
            await asyncio.sleep(0.2)
            said = await asyncio.gather(*(fault(address) for fault, *_ in FAULTS.values()))
            return dict(zip(FAULTS, said, strict=True)), await neighbours

        yield run(scenario())


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_said(crowded, name):
    (message, close_code), (_, code, words, expected_close) = crowded[0][name], FAULTS[name]
    assert message["type"] == "error", message
    assert message["code"] == code and words in message["message"], message
    assert close_code == expected_close


def check_healthy(heard, expected):
    for name, result in zip(HEALTHY, heard, strict=True):
        transcript, translation, speech = expected(*read_clip(name))
        assert result.messages[-1]["type"] == "done", result.messages[-1]
        assert result.words("transcript") == transcript
        assert result.words("translation") == translation
        # Computed together with others, samples may differ by 1e-4 of full scale.
        difference = result.waveform.astype(int) - np.frombuffer(speech, "<i2")
        assert np.abs(difference).max() <= 4


def test_neighbours_of_faults_lose_nothing(crowded, expected):
    check_healthy(crowded[1], expected)


def test_messages_beyond_the_hard_bound_are_cut_off(address):
    async def scenario():
        async with LiveClient(f"ws://{address}") as client:
            await client.start(16000)
            with pytest.raises(ConnectionClosed):
                await client.socket.send(bytes(17 << 20))
                await client.socket.recv()
            return client.socket.close_code

    assert run(scenario()) == 1009


def raw(address, *frames):
    """A client below the level of libraries, with a receive buffer of a few packets."""
    host, port = address.split(":")
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    link.connect((host, int(port)))
    link.sendall(
        f"GET /v1/stream HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    assert b" 101 " in link.recv(4096)
    for opcode, data in frames:
        link.sendall(struct.pack(">BBQ", 0x80 | opcode, 0x80 | 127, len(data)) + bytes(4) + data)
    return link


def test_neighbours_of_a_flood_a_deaf_and_a_vanished_client(catalog, expected):
    samples, rate = read_clip("test_00041.flac")
    minute = np.tile(samples, 30)

    async def flood(address):
        async with LiveClient(f"ws://{address}") as client:
            await client.start(rate, task="s2tt")
            return await client.translate(minute, rate, speed=0, block_ms=1000)

    def deaf(address):
        """Sends source that makes more speech than its socket takes, and reads none."""
        start = (1, b'{"type": "start", "sample_rate": 16000}')
        return raw(address, start, *[(2, samples.tobytes())] * 4)

    def vanishing(address):
        link = raw(address, (1, b'{"type": "start", "sample_rate": 16000}'), (2, bytes(9000)))
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        link.close()  # a reset, no goodbye

    bounds = {"unsent_bytes": 20000, "resume_s": 0.5}
    with running(catalog, send_buffer=4096, **bounds) as address:

        async def scenario():
            neighbours = asyncio.gather(*(healthy(address, name) for name in HEALTHY))
            flooding = asyncio.create_task(flood(address))
            link = await asyncio.to_thread(deaf, address)
            for _ in range(5):
                await asyncio.to_thread(vanishing, address)
            heard = await neighbours
            flooded = await flooding
            link.close()
            return heard, flooded

        heard, flooded = run(scenario())
    check_healthy(heard, expected)
    throttled = [m["throttled"] for m in flooded.of_type("status") if "throttled" in m]
    assert throttled[:2] == [True, False], "a client that sends too fast is told to wait"
    assert flooded.messages[-1]["received"] == len(minute)
    assert flooded.words("translation") == expected(minute, rate, 320, "s2tt")[1]


def test_newcomer_beyond_the_limit_is_refused(catalog):
    with running(catalog, max_sessions=2) as address:

        async def scenario():
            async with LiveClient(f"ws://{address}") as one, LiveClient(f"ws://{address}") as two:
                assert (await one.start(16000))["type"] == "ready"
                assert (await two.start(16000))["type"] == "ready"
                async with LiveClient(f"ws://{address}") as three:
                    refusal = await three.start(16000)
                    await three.finish()
                assert refusal["code"] == "busy" and "2 sessions" in refusal["message"]
                assert three.socket.close_code == 1013
                await two.end()
                await two.finish()
                async with LiveClient(f"ws://{address}") as four:
                    assert (await four.start(16000))["type"] == "ready"

        run(scenario())


def test_time_limits_are_said(catalog):
    with running(catalog, start_s=0.2, idle_s=0.2, session_s=1.0) as address:

        async def scenario():
            async with LiveClient(f"ws://{address}") as client:
                slow, _ = await error_of(client)
            idle, _ = await sending()(address)
            long, _ = await sending(bytes(16000 * 4), bytes(40))(address)
            return slow["code"], idle["code"], long["code"]

        assert run(scenario()) == ("start_timeout", "idle", "too_long")


def test_deaf_client_is_given_up(talking):
    """Its stream pauses at the bound, and after the time limit its place is free again."""
    samples, _ = read_clip("test_00041.flac")
    bounds = {"stall_s": 0.5, "unsent_bytes": 1000, "resume_s": 0.2, "max_sessions": 1}
    catalog = Catalog([served(assets.model_dir("echostream"), talking)])
    with running(catalog, send_buffer=4096, **bounds) as address:

        def sessions():
            with urllib.request.urlopen(f"http://{address}/healthz", timeout=60) as response:
                return json.load(response)["sessions"]

        start = (1, b'{"type": "start", "sample_rate": 16000}')
        link = raw(address, start, *[(2, samples.tobytes()), (2, bytes(64000))] * 6)
        for wanted in (1, 0):
            for _ in range(600):
                if sessions() == wanted:
                    break
                time.sleep(0.1)
            assert sessions() == wanted
        link.close()


def test_token(catalog):
    with running(catalog, gate=Gate(token="sesame")) as address:

        async def scenario():
            said = []
            for token, fields in (
                (None, {}),
                ("wrong", {}),
                (None, {"token": "wrong"}),
                ("sesame", {}),
                (None, {"token": "sesame"}),
            ):
                async with LiveClient(f"ws://{address}", token=token) as client:
                    message = await client.start(16000, **fields)
                    said.append(message.get("code", message["type"]))
            return said

        assert run(scenario()) == ["unauthorized"] * 3 + ["ready"] * 2


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://{address}", True),
        ("https://elsewhere.example", True),
        ("http://evil.example", False),
        ("http://127.0.0.1:1", False),
        ("null", False),
        ("http://[", False),
    ],
)
def test_origin(catalog, origin, allowed):
    gate = Gate(origins=("https://elsewhere.example",))
    with running(catalog, gate=gate) as address:
        origin = origin and origin.format(address=address)

        async def scenario():
            async with LiveClient(f"ws://{address}", origin=origin) as client:
                return (await client.start(16000))["type"]

        if allowed:
            assert run(scenario()) == "ready"
        else:
            with pytest.raises(InvalidStatus, match="403"):
                run(scenario())


def test_other_host_names_are_refused(address):
    """A foreign page may have its own name point to this machine."""
    port = address.split(":")[1]

    async def scenario(host):
        async with connect(f"ws://{host}:{port}/v1/stream", host="127.0.0.1") as link:
            await link.send(json.dumps({"type": "start", "sample_rate": 16000}))
            return json.loads(await link.recv())["type"]

    assert run(scenario("localhost")) == "ready"
    with pytest.raises(InvalidStatus, match="403"):
        run(scenario("evil.example"))


def test_a_recomputing_neighbour_keeps_nobody_waiting(catalog, expected, monkeypatch):
    """Its chunk lasts until the others are done; they share no thread with it."""
    others_done = threading.Event()
    decide = RecomputePipeline.decide

    def slow_decide(self, *given, **options):
        assert others_done.wait(50)
        return decide(self, *given, **options)

    monkeypatch.setattr(RecomputePipeline, "decide", slow_decide)
    samples, rate = read_clip("test_00041.flac")
    with running(catalog) as address:

        async def scenario():
            async with LiveClient(f"ws://{address}") as slow:
                await slow.start(rate, model="echo-mini-streamspeech:recompute")
                waiting = asyncio.create_task(slow.translate(samples, rate, speed=0))
                heard = await healthy(address, "test_00041.flac")
                assert not waiting.done()
                others_done.set()
                return heard, await waiting

        heard, slow = run(scenario())
    assert heard.words("translation") == expected(samples, rate)[1]
    assert slow.messages[-1]["type"] == "done" and slow.words("translation")
