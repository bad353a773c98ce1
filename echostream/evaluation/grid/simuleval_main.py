"""SimulEval's command with the repairs in place from the start, and safe to run unattended.

``python -m echostream.evaluation.grid.simuleval_main`` takes the arguments of ``simuleval``, and
before them ``--batch N``: utterances at a time. Because the repairs come first, every metric of
ours is known, also where no agent is loaded.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO

from echostream.threads import wait_passively

logger = logging.getLogger(__name__)

PARENT_VARIABLE = "ECHOSTREAM_EVALUATE_PARENT"


def _stop_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone, so that no two ever write one log."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def lock(folder: Path) -> IO[str] | None:
    """Hold an output folder, waiting for whoever holds it; None where files have no locks."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "run.lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def release(held: IO[str] | None) -> None:
    """Let the folder go."""
    if held is not None:
        held.close()


def main() -> None:
    """Run SimulEval on ``sys.argv``."""
    wait_passively()
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        _stop_with_parent(int(parent))
    held = None
    if "--output" in sys.argv:
        held = lock(Path(sys.argv[sys.argv.index("--output") + 1]))
    batch = 1
    if sys.argv[1:2] == ["--batch"]:
        batch = int(sys.argv[2])
        del sys.argv[1:3]
    from simuleval.cli import main as simuleval_main

    from echostream.evaluation import simuleval_compat

    simuleval_compat.apply()
    if batch > 1:
        from echostream.evaluation.grid.batched_run import use_batches

        use_batches(batch)

    simuleval_main()
    release(held)


if __name__ == "__main__":
    main()
