"""Shards: stretches of a cell's test set, each a SimulEval process in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from echostream.config import setting_flags
from echostream.evaluation.grid.definition import Cell, count_lines
from echostream.evaluation.grid.simuleval_main import PARENT_VARIABLE, lock, release

LOG_FILE = "instances.log"
OUTPUT_FILE = "simuleval.txt"


class CellError(RuntimeError):
    """A SimulEval process failed; the message ends with what it said last."""


@dataclass(frozen=True)
class Shard:
    """A stretch of a cell's test set; plain strings, because it travels to other machines."""

    name: str
    folder: str
    arguments: tuple[str, ...]
    start: int
    end: int
    trace: bool


def finished_lines(folder: Path) -> int:
    """Whole lines of a shard's log."""
    log = folder / LOG_FILE
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def shards_folder(cell: Cell) -> Path:
    """Where the shards of a cell are run; gone once they are merged."""
    return cell.folder / "shards"


def source_list(cell: Cell) -> Path:
    """The list with whole paths; SimulEval would look relative ones up from where it runs."""
    return cell.folder.parents[1] / "source.txt"


def shards(cell: Cell, batch: int = 1, threads: int | None = None) -> list[Shard]:
    """Cut a cell's test set, to be run ``batch`` utterances at a time, on so many threads."""
    total = count_lines(Path(cell.test_set.source))
    size = cell.test_set.shard_size or max(total, 1)
    arguments = [
        *(("--batch", str(batch)) if batch > 1 else ()),
        *("--agent", cell.system.agent),
        *("--source", str(source_list(cell)), "--target", cell.test_set.target),
        *("--source-segment-size", str(cell.chunk_ms), "--device", cell.grid.device),
        "--no-progress-bar",
        *(part for option in cell.system.files for part in (option.flag, option.path)),
        *cell.system.options,
        *setting_flags(cell.system.settings, f"systems: {cell.system.name}: settings"),
        *(("--threads", str(threads)) if threads is not None else ()),
    ]
    if cell.grid.computation_aware:
        arguments.append("--computation-aware")
    starts = range(0, total, size)
    return [
        Shard(
            name=cell.name if len(starts) == 1 else f"{cell.name} from {start}",
            folder=str(shards_folder(cell) / f"{start:06d}"),
            arguments=tuple(arguments),
            start=start,
            end=min(start + size, total),
            trace=cell.system.trace,
        )
        for start in starts
    ]


def _environment() -> dict[str, str]:
    """The child's environment: it must find this package, installed or not, and watch over us."""
    package_parent = str(Path(__file__).resolve().parents[3])
    paths = [package_parent, os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        PARENT_VARIABLE: str(os.getpid()),
    }


def run_simuleval(arguments: Sequence[str], output: Path, name: str) -> None:
    """Run SimulEval in a process of its own; what it prints goes to a file in ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    module = "echostream.evaluation.grid.simuleval_main"
    with (output / OUTPUT_FILE).open("ab") as file:
        process = subprocess.run(
            [sys.executable, "-m", module, *arguments, "--output", str(output)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(),
            check=False,
        )
    if process.returncode != 0:
        said = (output / OUTPUT_FILE).read_text(encoding="utf-8", errors="replace")
        raise CellError(
            f"{name}: SimulEval ended with {process.returncode}; the end of "
            f"{output / OUTPUT_FILE}:\n{said[-1500:]}"
        )


def run_shard(shard: Shard) -> str:
    """Run or continue one shard; return its name."""
    folder = Path(shard.folder)
    # A process of a run that was just killed may still be ending.
    release(lock(folder))
    done = finished_lines(folder)
    if done < shard.end - shard.start:
        arguments = [
            *shard.arguments,
            *("--start-index", str(shard.start), "--end-index", str(shard.end)),
            *("--continue-unfinished", "--no-scoring"),
        ]
        if shard.trace:
            # The agent starts its trace anew and counts from 0 whenever it is started.
            arguments += ["--trace", str(folder / f"trace.{shard.start + done:06d}.jsonl")]
        run_simuleval(arguments, folder, shard.name)
    done = finished_lines(folder)
    if done != shard.end - shard.start:
        raise CellError(
            f"{shard.name}: SimulEval ended without an error but wrote {done} of "
            f"{shard.end - shard.start} utterances to {folder / LOG_FILE}"
        )
    return shard.name
