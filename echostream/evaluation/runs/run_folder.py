"""A SimulEval output folder, ours or anybody's, as one object."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echostream.evaluation.runs.logged_instances import (
    LoggedSpeechToSpeech,
    LoggedSpeechToText,
    read_instances,
)

logger = logging.getLogger(__name__)

CELL_FILE = "cell.json"
TRACE_FILE = "trace.jsonl"
_CHUNK_IN_NAME = re.compile(r"chunk(?:[-_ ]?(?:size|ms))?[-_= ]?(\d+)", re.IGNORECASE)

Utterance = LoggedSpeechToSpeech | LoggedSpeechToText


@dataclass
class RunFolder:
    """One system at one setting on one test set.

    Attributes:
        path: the folder.
        system: name of the line in tables and curves.
        chunk_ms: source segment, None when unknown.
        utterances: those that are compared, in the order of their index.
        reported: the numbers in the folder's own ``scores.tsv``, about all that it logged.
        test_set: its name, empty when unknown.
        logged: every utterance of the log, whatever is left out of ``utterances`` later.
    """

    path: Path
    system: str
    chunk_ms: int | None
    utterances: list[Utterance]
    reported: dict[str, float | str] = field(default_factory=dict)
    test_set: str = ""
    logged: list[Utterance] = field(init=False)

    def __post_init__(self) -> None:
        self.logged = list(self.utterances)

    @property
    def is_reduced(self) -> bool:
        """Whether utterances were left out, so that ``reported`` is about other ones."""
        return len(self.utterances) < len(self.logged)

    @property
    def is_speech(self) -> bool:
        return bool(self.utterances) and isinstance(self.utterances[0], LoggedSpeechToSpeech)

    @property
    def has_elapsed(self) -> bool:
        """Whether computation-aware figures can be computed (StreamSpeech's logs drop elapsed)."""
        spoken = [item for item in self.utterances if item.delays]
        return bool(spoken) and all(len(item.elapsed) == len(item.delays) for item in spoken)

    @property
    def name(self) -> str:
        """System and chunk, for messages and legends."""
        return self.system if self.chunk_ms is None else f"{self.system} {self.chunk_ms} ms"

    def hypotheses(self, without_silence: bool = False) -> list[str] | None:
        """The text of each utterance: what was written, or its transcript if there is one."""
        if not self.is_speech:
            return [str(item.prediction) for item in self.utterances]
        return read_transcripts(self, without_silence)

    def trace(self) -> dict[int, list[dict[str, Any]]]:
        """Lines of the agent's ``--trace`` by utterance; empty without a trace."""
        path = self.path / TRACE_FILE
        lines: dict[int, list[dict[str, Any]]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").split("\n"):
                if line.strip():
                    entry = json.loads(line)
                    lines.setdefault(entry["index"], []).append(entry)
        return lines

    def written_texts(self) -> list[str] | None:
        """The translation that each utterance's speech was made from, as the trace has it; None
        without a trace of all of them."""
        trace = self.trace()
        if any(item.index not in trace for item in self.utterances):
            return None
        return [whole_text(trace[item.index], "translation") for item in self.utterances]


def whole_text(lines: Sequence[dict[str, Any]], key: str) -> str:
    """All that a trace says of ``key``: its lines grow sentence by sentence."""
    last = {line.get("sentence", 0): line.get(key) or "" for line in lines}
    return " ".join(filter(None, last.values()))


def transcript_path(folder: Path, without_silence: bool) -> Path:
    """Where the transcripts of a run lie: beside its ``wavs/``."""
    name = "asr_transcripts.nosil.txt" if without_silence else "asr_transcripts.txt"
    return folder / name


def read_transcript_report(folder: Path, without_silence: bool = False) -> dict[str, Any]:
    """What is noted beside the transcripts: recogniser, indices and so on; empty without it."""
    path = transcript_path(folder, without_silence).with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_transcripts(run: RunFolder, without_silence: bool) -> list[str] | None:
    """Transcripts that lie in the folder, None when there are none for these utterances.

    Their lines are those of ``indices`` in the report beside them, else of the whole log.
    """
    path = transcript_path(run.path, without_silence)
    if not path.is_file():
        return None
    texts = path.read_text(encoding="utf-8").split("\n")
    if texts and not texts[-1]:
        texts.pop()
    indices = read_transcript_report(run.path, without_silence).get("indices")
    if indices is None:
        indices = [item.index for item in run.logged]
    if len(texts) != len(indices):
        logger.warning(
            "%s has %d lines for %d utterances and is not used", path, len(texts), len(indices)
        )
        return None
    by_index = dict(zip(indices, texts, strict=True))
    absent = [item.index for item in run.utterances if item.index not in by_index]
    if absent:
        logger.warning(
            "%s lacks %d of %d utterances, the first is %d, and is not used",
            path,
            len(absent),
            len(run.utterances),
            absent[0],
        )
        return None
    return [by_index[item.index] for item in run.utterances]


def _read_scores(path: Path) -> dict[str, float | str]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    scores: dict[str, float | str] = {}
    for key, value in (rows[0] if rows else {}).items():
        try:
            scores[key] = float(value)
        except (TypeError, ValueError):
            scores[key] = value or ""
    return scores


def chunk_from_name(path: Path) -> int | None:
    """The chunk size in the folder's name or its parent's (``chunk_320``, ``chunk_size=320``)."""
    for name in (path.name, path.parent.name):
        match = _CHUNK_IN_NAME.search(name)
        if match:
            return int(match[1])
    return None


def _system_from_name(path: Path) -> str:
    if _CHUNK_IN_NAME.search(path.name):
        rest = _CHUNK_IN_NAME.sub("", path.name).strip("-_. ")
        return rest or path.parent.name
    return path.name


def load_run(argument: str | Path) -> RunFolder:
    """Read ``DIR`` or ``NAME=DIR``.

    The folder names its system and chunk in ``cell.json`` where the grid runner made it; otherwise
    both are read off the folder's name.

    Raises:
        FileNotFoundError: no such folder, or no ``instances.log`` in it.
        ValueError: the log is damaged or empty.
    """
    name, path = "", Path(argument)
    if not path.exists() and "=" in str(argument):
        name, _, rest = str(argument).partition("=")
        path = Path(rest)
    if not path.is_dir():
        raise FileNotFoundError(f"no such output folder: {path}")
    utterances = sorted(read_instances(path / "instances.log"), key=lambda item: item.index)
    if not utterances:
        raise ValueError(f"{path / 'instances.log'} holds no utterance")
    if len({type(item) for item in utterances}) > 1:
        raise ValueError(f"{path / 'instances.log'} mixes speech and text output")
    cell_path = path / CELL_FILE
    cell = json.loads(cell_path.read_text(encoding="utf-8")) if cell_path.is_file() else {}
    resolved = path.resolve()
    return RunFolder(
        path=path,
        system=name or cell.get("system") or _system_from_name(resolved),
        chunk_ms=cell.get("chunk_ms") or chunk_from_name(resolved),
        utterances=utterances,
        reported=_read_scores(path / "scores.tsv"),
        test_set=cell.get("test_set", ""),
    )


def check_same_utterances(runs: Sequence[RunFolder]) -> None:
    """Make sure that all runs are about the same sentences.

    Raises:
        ValueError: an utterance is missing somewhere, or has another reference or source length.
    """
    first = runs[0]
    expected = {item.index: item for item in first.utterances}
    for run in runs[1:]:
        found = {item.index: item for item in run.utterances}
        if found.keys() != expected.keys():
            missing = sorted(expected.keys() ^ found.keys())
            raise ValueError(
                f"{run.path} and {first.path} do not cover the same utterances: {len(found)} and "
                f"{len(expected)}, the first that only one has is {missing[0]}"
            )
        for index, item in found.items():
            other = expected[index]
            if item.reference != other.reference:
                raise ValueError(
                    f"{run.path} and {first.path}: utterance {index} has another reference, "
                    f"{item.reference!r} and {other.reference!r}"
                )
            if abs(item.source_length - other.source_length) > 1.0:
                raise ValueError(
                    f"{run.path} and {first.path}: utterance {index} has another source length, "
                    f"{item.source_length:g} and {other.source_length:g} ms"
                )


def keep_common(runs: Sequence[RunFolder]) -> None:
    """Reduce every run to the utterances that all of them have."""
    common = set.intersection(*({item.index for item in run.utterances} for run in runs))
    if not common:
        raise ValueError("the runs have no utterance in common")
    for run in runs:
        dropped = len(run.utterances) - len(common)
        if dropped:
            logger.warning("%s: %d utterances that others lack are left out", run.path, dropped)
        run.utterances = [item for item in run.utterances if item.index in common]


def keep_listed(runs: Sequence[RunFolder], source_list: Path) -> None:
    """Reduce every run to the utterances whose sources a SimulEval source list names.

    Raises:
        FileNotFoundError: no such list.
        ValueError: the list names a file twice, or one that a run has not translated.
    """
    lines = source_list.read_text(encoding="utf-8").splitlines()
    names = [Path(line.strip()).name for line in lines if line.strip()]
    listed = set(names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        reason = f"names {twice[0]!r} twice" if twice else "names no file"
        raise ValueError(f"{source_list} {reason}")
    for run in runs:
        kept = [item for item in run.utterances if item.source_path.name in listed]
        found = [item.source_path.name for item in kept]
        absent = sorted(listed - set(found))
        if absent:
            raise ValueError(f"{run.path} has no utterance from {absent[0]} of {source_list}")
        if len(kept) > len(listed):
            name = next(name for name in found if found.count(name) > 1)
            raise ValueError(f"{run.path} has several utterances from files called {name}")
        run.utterances = kept
