"""Processes of their own."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from echostream.processes import fresh_processes


def what_it_has() -> tuple[int, int, bool]:
    return os.getpid(), threading.active_count(), "torch" in sys.modules


@pytest.mark.skipif(sys.platform != "linux", reason="fork servers are for Linux")
def test_torch_is_there_and_threads_are_not():
    stop = threading.Event()
    other = threading.Thread(target=stop.wait, daemon=True)
    other.start()
    with fresh_processes().Pool(1) as pool:
        process, threads, loaded = pool.apply(what_it_has)
    stop.set()
    other.join()
    assert process != os.getpid() and threads == 1 and loaded


def test_elsewhere_each_starts_anew(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert fresh_processes().get_start_method() == "spawn"
