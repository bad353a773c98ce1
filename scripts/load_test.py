#!/usr/bin/env python3
"""N live speakers on one server: who still hears in time?

    echostream serve --max-sessions 32 &
    python scripts/load_test.py --sessions 1 4 8 12 16

Every speaker plays a sound file over and over as if live, begun at a time of its own. Prints
percentiles of the lag, as the clients hear it: from sending the last sample of a chunk to the
server's word that the chunk is translated. Behind the first chunks, which warm up.
"""

import argparse
import asyncio
import sys
from pathlib import Path

import numpy as np

from echostream.audio import read_audio
from echostream.live.client import LiveClient

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ROOT / "data/echo_mini/test_audio"
WARM_UP_CHUNKS = 3
BLOCK_MS = 40


async def speak(url, token, samples, rate, seconds, chunk_ms, delay):
    """One live client; returns its lags in ms, or raises what the server said."""
    await asyncio.sleep(delay)
    loop = asyncio.get_running_loop()
    source = np.tile(samples, int(seconds * rate / len(samples)) + 1)[: int(seconds * rate)]
    lags, block = [], rate * BLOCK_MS // 1000
    async with LiveClient(url, token=token) as client:
        ready = await client.start(rate, chunk_ms=chunk_ms)
        if ready["type"] != "ready":
            raise RuntimeError(ready["message"])
        begun = loop.time()

        async def listen():
            async for message in client.messages():
                if message["type"] == "error":
                    raise RuntimeError(message["message"])
                if message["type"] == "status" and "lag_ms" in message:
                    # Sent at the end of the block that completes the chunk.
                    spoken = -(-message["source_ms"] // BLOCK_MS) * BLOCK_MS
                    lags.append(1000 * (loop.time() - begun) - spoken)

        listener = asyncio.create_task(listen())
        for start in range(0, len(source), block):
            await asyncio.sleep(max(begun + (start + block) / rate - loop.time(), 0))
            await client.send(source[start : start + block])
        await client.end()
        await listener
    return lags[WARM_UP_CHUNKS:-1]


async def measure(args, count):
    clips = sorted(CLIPS.glob("*.flac"))
    spread = np.random.default_rng(0).uniform(0, args.chunk_ms / 1000, count)
    tasks = []
    for index in range(count):
        samples, rate = read_audio(clips[index % len(clips)])
        tasks.append(
            speak(args.url, args.token, samples, rate, args.seconds, args.chunk_ms, spread[index])
        )
    lags = np.concatenate(await asyncio.gather(*tasks))
    p50, p95, p99 = np.percentile(lags, [50, 95, 99])
    print(
        f"{count:8d} {len(lags):8d} {p50:8.0f} {p95:8.0f} {p99:8.0f} {lags.max():8.0f}", flush=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="ws://127.0.0.1:8000")
    parser.add_argument("--token")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4, 8, 12])
    parser.add_argument("--seconds", type=float, default=20.0, help="each speaks (default 20)")
    parser.add_argument("--chunk-ms", type=int, default=320)
    args = parser.parse_args()
    print("sessions   chunks      p50      p95      p99      max   (lag in ms)")
    try:
        for count in args.sessions:
            asyncio.run(measure(args, count))
    except (OSError, RuntimeError) as error:
        print(f"load_test: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
