"""Fetching in a process of its own, which tells its time and its memory."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from echostream.hub.table import ReleasedModel
from tests.hub.server import HubServer

ROOT = Path(__file__).resolve().parents[2]
CHILD = r"""
import pickle, re, sys, time
model = pickle.load(sys.stdin.buffer)
from echostream.hub.fetch import FetchOptions, fetch_released
from echostream.hub.remote import require_hub
require_hub()
def peak():
    # Not getrusage's, which remembers the process that started this one.
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024
before, begun, computed = peak(), time.monotonic(), time.process_time()
fetch_released(model, FetchOptions(keep=True))
print(time.monotonic() - begun, time.process_time() - computed, before, peak())
"""


@dataclass(frozen=True)
class Measured:
    """
    Attributes:
        wall_s, computed_s: time of the fetch, on the clock and of the processor.
        idle_mib, peak_mib: resident memory before it, and the most of it.
    """

    wall_s: float
    computed_s: float
    idle_mib: float
    peak_mib: float


def fetch_measured(model: ReleasedModel, hub: HubServer, models: Path, cache: Path) -> Measured:
    """Fetch from a local server; originals stay in the Hub's cache in ``cache``."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=pickle.dumps(model),
        env={
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "ECHOSTREAM_GITHUB_RAW": hub.url,
            "ECHOSTREAM_FAIRSEQ_FILES": hub.url,
            "ECHOSTREAM_MODELS": str(models),
        },
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return Measured(*map(float, done.stdout.split()))
