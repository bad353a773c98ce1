#!/usr/bin/env python3
"""N live speakers on one server: who still gets the translation in time?

    python scripts/load_test.py --serve --sessions 1 4 8 12 16
    python scripts/load_test.py --serve --max-batch 1 --sessions 12
    python scripts/load_test.py --url ws://127.0.0.1:8000 --sessions 4      a server that runs

Every speaker plays a sound file over and over as if live, begun at a time of its own. Prints, as
the clients see it: percentiles of the lag, from sending the last sample of a chunk to the server's
word that the chunk is translated (behind the first chunks, which warm up); the 95th percentile of
how long after its source a speaker's first translated word came; the server's resident memory at
the end; and what one more session took of it.
"""

import argparse
import asyncio
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np

from echostream.live.client import LiveClient
from echostream.samples import read_audio

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ROOT / "data/echo_mini/test_audio"
WARM_UP_CHUNKS = 3
BLOCK_MS = 40
MEMORY = "process_resident_memory_bytes "


def start_server(options):
    """A server on a free port; returns its process and address."""
    command = [sys.executable, "-m", "echostream.cli", "serve", "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in server.stdout:
        for word in line.split():
            if word.startswith("http://"):
                return server, f"ws://{word.removeprefix('http://').rstrip('/')}"
    raise RuntimeError("the server did not start")


async def first_session(url, token):
    async with LiveClient(url, token=token) as client:
        return await client.start(16000)


def memory_mb(url, token):
    """Resident memory of the server."""
    request = urllib.request.Request(f"http{url.removeprefix('ws')}/metrics")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(MEMORY)) / 2**20


async def speak(args, samples, rate, delay):
    """One live client; returns its lags and how late its first word was, in ms, or raises what the
    server said."""
    await asyncio.sleep(delay)
    loop = asyncio.get_running_loop()
    source = np.tile(samples, int(args.seconds * rate / len(samples)) + 1)
    source = source[: int(args.seconds * rate)]
    lags, first, block = [], [], rate * BLOCK_MS // 1000
    async with LiveClient(args.url, token=args.token) as client:
        ready = await client.start(rate, chunk_ms=args.chunk_ms, model=args.model)
        if ready["type"] != "ready":
            raise RuntimeError(ready["message"])
        begun = loop.time()

        def late(message):
            # Source is sent at the end of the block that completes it.
            sent = -(-message["source_ms"] // BLOCK_MS) * BLOCK_MS
            return 1000 * (loop.time() - begun) - sent

        async def listen():
            async for message in client.messages():
                if message["type"] == "error":
                    raise RuntimeError(message["message"])
                if message["type"] == "status" and "lag_ms" in message:
                    lags.append(late(message))
                if message["type"] == "translation" and message["text"] and not first:
                    first.append(late(message))

        listener = asyncio.create_task(listen())
        for start in range(0, len(source), block):
            await asyncio.sleep(max(begun + (start + block) / rate - loop.time(), 0))
            await client.send(source[start : start + block])
        memory = await asyncio.to_thread(memory_mb, args.url, args.token)
        await client.end()
        await listener
    return lags[WARM_UP_CHUNKS:-1], first, memory


async def measure(args, count):
    """Prints a row; returns the server's memory."""
    clips = sorted(CLIPS.glob("*.flac"))
    spread = np.random.default_rng(0).uniform(0, args.chunk_ms / 1000, count)
    speakers = []
    for index in range(count):
        samples, rate = read_audio(clips[index % len(clips)])
        speakers.append(speak(args, samples, rate, spread[index]))
    lags, firsts, memories = zip(*await asyncio.gather(*speakers), strict=True)
    lags, firsts = np.concatenate(lags), np.concatenate(firsts)
    p50, p95, p99 = np.percentile(lags, [50, 95, 99])
    first = np.percentile(firsts, 95) if len(firsts) else np.nan
    print(
        f"{count:8d} {len(lags):8d} {p50:8.0f} {p95:8.0f} {p99:8.0f} {lags.max():8.0f} "
        f"{first:12.0f} {max(memories):8.0f}",
        flush=True,
    )
    return max(memories)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="ws://127.0.0.1:8000")
    parser.add_argument("--token")
    parser.add_argument("--serve", action="store_true", help="start a server of its own")
    parser.add_argument("--max-batch", type=int, help="of the server with --serve")
    parser.add_argument("--workers", type=int, help="of the server with --serve")
    parser.add_argument("--model", help="of the server's (default: its first)")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4, 8, 12])
    parser.add_argument("--seconds", type=float, default=20.0, help="each speaks (default 20)")
    parser.add_argument("--chunk-ms", type=int, default=320)
    args = parser.parse_args()
    server = None
    try:
        if args.serve:
            begun = time.monotonic()
            most = str(max(args.sessions) + 1)
            options = ["--max-sessions", most]
            for name in ("max_batch", "workers"):
                value = getattr(args, name)
                options += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
            server, args.url = start_server(options)
            asyncio.run(first_session(args.url, args.token))
            print(f"from the command to a session's ready: {time.monotonic() - begun:.1f} s")
        print(
            "sessions   chunks      p50      p95      p99      max   first word   memory   "
            "(lag in ms, memory in MiB)"
        )
        memories = [asyncio.run(measure(args, count)) for count in args.sessions]
    except (OSError, RuntimeError) as error:
        print(f"load_test: {error}", file=sys.stderr)
        return 1
    finally:
        if server is not None:
            server.terminate()
            server.wait()
    more = max(args.sessions) - min(args.sessions)
    if more:
        each = (max(memories) - memories[args.sessions.index(min(args.sessions))]) / more
        print(f"memory for one more session: {each:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
