"""Processes that share nothing with the one that starts them."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.context import BaseContext

# What most of them need, and what takes longest to load.
PRELOADED = ["torch"]


def fresh_processes() -> BaseContext:
    """How to start processes that inherit no locks of threads that they do not have, as forked ones
    would. On Linux they come from a fork server, which loads torch once for all of them; elsewhere
    each starts anew."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context
