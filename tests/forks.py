"""Console commands in processes of their own, without loading torch for each of them.

A fork server loads once what the commands share. Each run is forked from it, sees the modules as
they were loaded, and parses the command line that the command itself would parse.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from echostream.processes import PRELOADED, fresh_processes

# There is one server for all, the package's processes too. A module that is not installed is left
# out.
PRELOADED += ["fairseq.trainer", "simuleval.cli"]


def _run(
    entry: str, arguments: list[str], folder: str, environment: dict[str, str], log: str
) -> None:
    """What a forked process does."""
    written = os.open(log, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(written, stream)
    os.chdir(folder)
    os.environ.update(environment)
    # What was loaded has set up logging for itself; the command does it anew.
    logging.root.handlers.clear()
    sys.argv = [entry, *arguments]
    module, _, function = entry.partition(":")
    getattr(importlib.import_module(module), function)()


class Forked:
    """A command that has been started.

    Args:
        entry: its function, ``module:function``.
        arguments: of its command line.
        folder: the directory that it runs in.
        environment: variables, beside those of this process.
    """

    def __init__(
        self,
        entry: str,
        arguments: Sequence[object],
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        descriptor, self.log = tempfile.mkstemp(suffix=".log")
        os.close(descriptor)
        told = (entry, list(map(str, arguments)), str(folder), dict(environment or {}), self.log)
        self.process = fresh_processes().Process(target=_run, args=told)
        self.process.start()

    def finish(self, timeout_s: float = 900, *, fails: bool = False) -> str:
        """Wait for its end, which must be a good one unless it ``fails``; returns what it
        printed."""
        self.process.join(timeout_s)
        self.stop()
        output = Path(self.log).read_text()
        os.unlink(self.log)
        assert (self.process.exitcode != 0) == fails, output[-4000:]
        return output

    def stop(self) -> None:
        """End it if it still runs."""
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
