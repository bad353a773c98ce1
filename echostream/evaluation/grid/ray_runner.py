"""The shards of a grid on a Ray cluster."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from echostream.evaluation.grid.shards import Shard, run_shard

logger = logging.getLogger(__name__)

_LOCAL = re.compile(r"local(?::(\d+))?")


def _connect(ray: Any, address: str) -> None:
    # Workers must find this package whether or not it is installed on their machine.
    runtime = {"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}}
    options = {"runtime_env": runtime, "log_to_driver": False}
    local = _LOCAL.fullmatch(address)
    if local:
        ray.init(num_cpus=int(local[1] or 2), include_dashboard=False, **options)
    else:
        ray.init(address=address, **options)


def run_on_ray(parts: Sequence[Shard], address: str, on_done: Callable[[str], None]) -> None:
    """Run every shard as a Ray task of one CPU (one GPU where the grid asks for cuda).

    Args:
        parts: the shards.
        address: of the cluster, ``auto``, or ``local:N`` for N workers on this machine.
        on_done: called here with the name of each finished shard.

    Raises:
        ImportError: Ray is not installed.
        CellError: a SimulEval process failed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("--ray needs the package ray: pip install 'echostream[ray]'") from error
    from ray.exceptions import RayTaskError

    _connect(ray, address)
    try:
        task = ray.remote(run_shard)
        waiting = []
        for shard in parts:
            device = shard.arguments[shard.arguments.index("--device") + 1]
            gpus = 1 if device.startswith(("cuda", "gpu")) else 0
            waiting.append(task.options(num_cpus=1, num_gpus=gpus).remote(shard))
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            try:
                on_done(ray.get(done[0]))
            except RayTaskError as error:
                raise error.cause from error
    finally:
        ray.shutdown()
