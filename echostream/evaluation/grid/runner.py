"""Running a grid: shards in processes of their own, merged exactly and scored once.

A cell is cut into shards of its test set (one, when the set is not to be sharded). Each shard is
a SimulEval run in its own folder that continues where it stopped. When all are there, their logs
and wavs are put together in the cell's folder and scored by SimulEval as one run. A finished cell
carries ``finished`` in ``cell.json`` and is not run again.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from tqdm import tqdm

from echostream.evaluation.grid.definition import (
    Cell,
    Grid,
    cells,
    check_files,
    source_paths,
)
from echostream.evaluation.grid.shards import (
    LOG_FILE,
    Shard,
    finished_lines,
    run_shard,
    run_simuleval,
    shards,
    shards_folder,
    source_list,
)
from echostream.evaluation.longform.folders import SENTENCES_FILE
from echostream.evaluation.runs.run_folder import CELL_FILE, TRACE_FILE
from echostream.evaluation.text_scores import TEXT_SCORES
from echostream.files import write_atomically

logger = logging.getLogger(__name__)

# BLEU is SimulEval's own.
_TAKES_RECOGNIZER = {"ASR_BLEU", "ASR_BLEU_NOSIL"} | {one.name for one in TEXT_SCORES} - {"BLEU"}


def _merge_logs(cell: Cell, parts: Sequence[Shard]) -> None:
    lines = []
    wavs = cell.folder / "wavs"
    for shard in parts:
        folder = Path(shard.folder)
        for line in (folder / LOG_FILE).read_text(encoding="utf-8").split("\n"):
            if not line:
                continue
            entry = json.loads(line)
            if "durations" in entry:
                wav = folder / "wavs" / Path(entry["prediction"]).name
                wavs.mkdir(parents=True, exist_ok=True)
                target = wavs / wav.name
                target.unlink(missing_ok=True)
                if wav.is_file():
                    shutil.copyfile(wav, target)
                entry["prediction"] = target.absolute().as_posix()
            lines.append((entry["index"], json.dumps(entry)))
    write_atomically(cell.folder / LOG_FILE, "".join(f"{line}\n" for _, line in sorted(lines)))
    shutil.copyfile(Path(parts[0].folder) / "config.yaml", cell.folder / "config.yaml")


def _merge_traces(cell: Cell, parts: Sequence[Shard]) -> None:
    """Put the traces together under the test set's own indices; a later attempt wins."""
    lines: dict[int, list[str]] = {}
    for shard in parts:
        for path in sorted(Path(shard.folder).glob("trace.*.jsonl")):
            first = int(path.name.split(".")[1])
            attempt: dict[int, list[str]] = {}
            for line in path.read_text(encoding="utf-8").split("\n"):
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the end of an attempt that was killed
                entry["index"] += first
                attempt.setdefault(entry["index"], []).append(json.dumps(entry))
            lines.update(attempt)
    if lines:
        text = "".join(f"{line}\n" for index in sorted(lines) for line in lines[index])
        write_atomically(cell.folder / TRACE_FILE, text)


def _write_cell(cell: Cell, finished: bool) -> None:
    content = {**cell.settings(), "finished": finished}
    write_atomically(cell.folder / CELL_FILE, json.dumps(content, indent=1) + "\n")


def is_finished(cell: Cell) -> bool:
    """Whether the cell is complete.

    Raises:
        ValueError: its folder holds results of other settings.
    """
    path = cell.folder / CELL_FILE
    if not path.is_file():
        return False
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("fingerprint") != cell.settings()["fingerprint"]:
        raise ValueError(
            f"{cell.folder} holds results made with other settings, test sets or metrics; "
            "remove it or choose another --output"
        )
    return bool(content.get("finished"))


def finish_cell(cell: Cell) -> None:
    """Merge the shards of a cell, score it and mark it finished."""
    parts = shards(cell)
    _merge_logs(cell, parts)
    _merge_traces(cell, parts)
    if cell.test_set.longform is None:
        _score(cell)
    else:
        # A talk as one document says little; talks are scored together, sentence by sentence.
        shutil.copyfile(cell.sentences(), cell.folder / SENTENCES_FILE)
    _write_cell(cell, finished=True)
    shutil.rmtree(shards_folder(cell))


def _score(cell: Cell) -> None:
    arguments = [
        "--score-only",
        *("--quality-metrics", *cell.grid.quality_metrics),
        *("--latency-metrics", *cell.grid.latency_metrics),
    ]
    if cell.grid.computation_aware:
        arguments.append("--computation-aware")
    if _TAKES_RECOGNIZER.intersection(cell.grid.quality_metrics):
        arguments += ["--asr-model", cell.grid.asr_model]
        arguments += ["--target-speech-lang", cell.grid.target_speech_lang]
    run_simuleval(arguments, cell.folder, cell.name)


def _run_locally(parts: Sequence[Shard], jobs: int, on_done: Callable[[str], None]) -> None:
    def work(shard: Shard) -> None:
        # Whoever runs the last shard of a cell scores it too: recognising speech takes longer
        # than translating it.
        on_done(run_shard(shard))

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        waiting = {pool.submit(work, shard) for shard in parts}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Progress:
    """A bar over utterances, read off the logs while other processes write them."""

    def __init__(self, parts: Sequence[Shard]) -> None:
        self._folders = [Path(shard.folder) for shard in parts]
        self._total = sum(shard.end - shard.start for shard in parts)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        with tqdm(total=self._total, desc="utterances", unit="utt", disable=None) as bar:
            while not self._stop.wait(0.5):
                self._show(bar)
            self._show(bar)

    def _show(self, bar: tqdm) -> None:
        bar.n = sum(finished_lines(folder) for folder in self._folders)
        bar.refresh()

    def __enter__(self) -> _Progress:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def run_grid(
    grid: Grid,
    *,
    jobs: int = 1,
    batch: int = 1,
    threads: int | None = None,
) -> list[Cell]:
    """Run what is missing of a grid and return all its cells, finished.

    Args:
        grid: the grid.
        jobs: SimulEval processes at a time on this machine.
        batch: utterances that each process has under way.
        threads: of each of EchoStream's agents; None: what suits its model.

    Raises:
        CellError: a SimulEval process failed.
        ValueError: computation-aware figures are asked of batches.
    """
    if batch > 1 and grid.computation_aware:
        raise ValueError(
            "computation-aware figures need utterances one at a time: set computation_aware to "
            f"false in the grid file, or drop --batch {batch}"
        )
    check_files(grid)
    every = list(cells(grid))
    open_cells = []
    for cell in every:
        if not is_finished(cell):
            open_cells.append(cell)
        elif shards_folder(cell).exists():
            # A run was killed after it marked the cell and before it removed what it merged.
            shutil.rmtree(shards_folder(cell))
    logger.info("%d of %d cells are to be run", len(open_cells), len(every))
    remaining: dict[str, int] = {}
    owner: dict[str, Cell] = {}
    parts: list[Shard] = []
    for cell in open_cells:
        write_atomically(
            source_list(cell), "".join(f"{path}\n" for path in source_paths(cell.test_set))
        )
        _write_cell(cell, finished=False)
        pieces = shards(cell, batch, threads)
        remaining[cell.name] = len(pieces)
        owner.update({shard.name: cell for shard in pieces})
        parts += pieces

    counting = threading.Lock()

    def on_done(shard_name: str) -> None:
        cell = owner[shard_name]
        with counting:
            remaining[cell.name] -= 1
            complete = remaining[cell.name] == 0
        if complete:
            began = time.monotonic()
            finish_cell(cell)
            logger.info("%s: finished, scored in %.1f s", cell.name, time.monotonic() - began)

    if parts:
        with _Progress(parts):
            _run_locally(parts, jobs, on_done)
    return every
