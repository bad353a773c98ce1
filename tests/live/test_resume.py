"""A dropped connection is taken up again without losing audio or words."""

import asyncio

import numpy as np
import pytest

from echostream.live.client import LiveClient
from echostream.live.messages import ProtocolError
from echostream.live.outbox import Outbox
from tests.live.conftest import read_clip, run, running


async def speak(client, samples, rate, upto):
    """Send in blocks, from what the server has to ``upto``, listening meanwhile."""
    position = client.position
    while position < upto:
        block = samples[position : min(position + rate // 10, upto)]
        await client.send(block)
        position += len(block)
        await asyncio.sleep(0.01)


def drop(client):
    """Break the connection off without a goodbye."""
    client.socket.transport.abort()


@pytest.mark.parametrize("takeover", [False, True])
def test_resumed_session_equals_an_unbroken_one(address, expected, takeover):
    samples, rate = read_clip("test_00001.flac")

    async def scenario():
        client = LiveClient(f"ws://{address}")
        await client.open()
        ready = await client.start(rate)
        client.position, abandoned = 0, []
        for share in (0.3, 0.5, 0.8):
            listener = asyncio.create_task(client.finish())
            await speak(client, samples, rate, int(share * len(samples)))
            if takeover:  # the client has given a connection up that the server still holds
                listener.cancel()
                abandoned.append(client.socket)
            else:
                drop(client)
            await asyncio.gather(listener, return_exceptions=True)
            await client.open()
            again = await client.resume()
            assert again["type"] == "ready" and again["resumed"], again
            assert again["session"] == ready["session"]
            client.position = again["received"]
        listener = asyncio.create_task(client.finish())
        await speak(client, samples, rate, len(samples))
        await client.end()
        heard = await listener
        for link in abandoned:
            await link.close()
        return heard

    heard = run(scenario())
    numbers = [message["seq"] for message in heard.messages if "seq" in message]
    assert numbers == list(range(len(numbers)))
    transcript, translation, speech = expected(samples, rate)
    assert heard.words("transcript") == transcript and heard.words("translation") == translation
    assert bytes(heard.speech) == speech
    assert heard.messages[-1]["received"] == len(samples)


def test_what_was_missed_after_the_end_is_replayed(address, expected):
    samples, rate = read_clip("test_00041.flac")

    async def scenario():
        client = LiveClient(f"ws://{address}")
        await client.open()
        await client.start(rate)
        await client.send(samples)
        await client.end()
        await asyncio.sleep(0.1)
        drop(client)
        await asyncio.sleep(1.0)  # the session is over by now
        await client.open()
        await client.resume()
        return await client.finish()

    heard = run(scenario())
    assert heard.words("translation") == expected(samples, rate)[1]
    assert bytes(heard.speech) == expected(samples, rate)[2]
    assert heard.messages[-1]["type"] == "done"


def test_a_dropped_session_is_forgotten_in_time(catalog):
    with running(catalog, resume_s=0.2) as address:

        async def scenario():
            client = LiveClient(f"ws://{address}")
            await client.open()
            await client.start(16000)
            drop(client)
            await asyncio.sleep(2.0)
            await client.open()
            return await client.resume()

        assert run(scenario())["code"] == "unknown_session"


def test_a_closed_session_is_forgotten_at_once(address):
    async def scenario():
        client = LiveClient(f"ws://{address}")
        async with client:
            await client.start(16000)
        await client.open()
        return await client.resume()

    assert run(scenario())["code"] == "unknown_session"


def test_outbox_replays_what_it_keeps():
    outbox = Outbox(keep_bytes=100)
    for index in range(20):
        outbox.post({"n": index}, bytes(10))
    taken = [outbox.take() for _ in range(10)]
    assert [message.seq for message in taken] == list(range(10))
    outbox.rewind(7)
    assert [outbox.take().seq for _ in range(4)] == [8, 9, 10, 11]
    for last_seq in (-1, 3, 12):
        with pytest.raises(ProtocolError, match="are kept"):
            outbox.rewind(last_seq)
    while outbox.take():
        pass
    assert outbox.unsent_bytes == 0


def test_outbox_counts_bytes():
    outbox = Outbox(keep_bytes=1 << 20)
    generator = np.random.default_rng(0)
    for _ in range(200):
        if generator.random() < 0.5:
            outbox.post({"x": 1}, bytes(int(generator.integers(50))))
        else:
            outbox.take()
        waiting = sum(message.size for message in outbox._unsent)
        assert outbox.unsent_bytes == waiting
    outbox.rewind(-1)
    assert outbox.unsent_bytes == sum(message.size for message in outbox._unsent)
    assert outbox.take().seq == 0
