"""Evaluation grids: systems x chunk sizes x test sets, from one YAML file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from echostream.config import from_dict, load_yaml, read_settings, settings_of
from echostream.config.loading import MAY_BE_MISSING
from echostream.evaluation.result_digest import digest
from echostream.hub.names import find_model, how_to_fetch, is_model_name

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class FileOption:
    """An option of the agent whose value is a path relative to the grid file, or a model's name."""

    flag: str
    path: str


@dataclass(frozen=True)
class SystemSpec:
    """One line of the curves.

    ``options`` go to the agent as they are; ``settings`` are those of EchoStream's agents, by the
    names of their flags (``stride_n: 2``) or with their section (``policy.stride_n: 2``);
    ``trace`` asks for its ``--trace`` file.
    """

    name: str
    agent: str
    files: tuple[FileOption, ...]
    options: tuple[str, ...]
    trace: bool
    settings: dict = field(default_factory=dict, metadata=MAY_BE_MISSING)

    def __post_init__(self) -> None:
        _require(
            bool(_NAME.fullmatch(self.name)),
            f"systems: name must be letters, digits, '.', '_' or '-', got {self.name!r}",
        )
        self.settings_by_key()

    def settings_by_key(self) -> dict[str, Any]:
        """``settings`` by key, ``policy.stride_n``."""
        return read_settings(self.settings, f"systems: {self.name}: settings")


@dataclass(frozen=True)
class Longform:
    """What makes a test set one of talks.

    Attributes:
        sentences: ``sentences.tsv`` of the talks, relative to the grid file.
        alone: the test set with the same sentences one a file; null for none.
    """

    sentences: str
    alone: str | None


@dataclass(frozen=True)
class TestSet:
    """Sources and references, one per line.

    ``shard_size`` splits the set into pieces of that many utterances that run independently.
    A set with ``longform`` is scored sentence by sentence, as ``echostream talks`` does.
    """

    __test__ = False  # not a test, whatever its name makes pytest think

    name: str
    source: str
    target: str
    shard_size: int | None
    longform: Longform | None = field(default=None, metadata=MAY_BE_MISSING)

    def __post_init__(self) -> None:
        _require(
            bool(_NAME.fullmatch(self.name)),
            f"test_sets: name must be letters, digits, '.', '_' or '-', got {self.name!r}",
        )
        _require(
            self.shard_size is None or self.shard_size > 0,
            f"test_sets: shard_size must be positive or null, got {self.shard_size}",
        )


@dataclass(frozen=True)
class Grid:
    """Everything ``echostream evaluate`` needs to know."""

    output: str
    systems: tuple[SystemSpec, ...]
    chunk_ms: tuple[int, ...]
    test_sets: tuple[TestSet, ...]
    quality_metrics: tuple[str, ...]
    latency_metrics: tuple[str, ...]
    computation_aware: bool
    target_speech_lang: str
    asr_model: str
    device: str

    def __post_init__(self) -> None:
        for key in ("systems", "chunk_ms", "test_sets", "quality_metrics", "latency_metrics"):
            _require(bool(getattr(self, key)), f"{key} must not be empty")
        for key in ("systems", "test_sets"):
            names = [item.name for item in getattr(self, key)]
            _require(len(set(names)) == len(names), f"{key}: names must differ, got {names}")
        _require(
            all(chunk > 0 for chunk in self.chunk_ms)
            and len(set(self.chunk_ms)) == len(self.chunk_ms),
            f"chunk_ms must be positive and differ, got {list(self.chunk_ms)}",
        )
        talks = {item.name for item in self.test_sets if item.longform}
        for item in self.test_sets:
            alone = item.longform and item.longform.alone
            _require(
                alone is None or alone in talks - {item.name},
                f"test_sets: {item.name}: alone must name another test set with longform, "
                f"got {alone!r}",
            )
        _require(
            not talks or all(system.trace for system in self.systems),
            "systems: talks are scored from traces; trace must be true for all",
        )


@dataclass(frozen=True)
class Cell:
    """One system at one chunk size on one test set."""

    system: SystemSpec
    chunk_ms: int
    test_set: TestSet
    grid: Grid
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.test_set.name}/{self.system.name}/chunk_{self.chunk_ms}"

    def settings(self) -> dict[str, object]:
        """What ``cell.json`` says; ``fingerprint`` changes with anything that changes results."""
        system = asdict(self.system)
        system["settings"] = self.system.settings_by_key()
        if not system["settings"]:
            del system["settings"]  # results of before there were settings hold
        content = {
            "system": system,
            "files": digest(files=[Path(option.path) for option in self.system.files]),
            "chunk_ms": self.chunk_ms,
            "source": Path(self.test_set.source).read_text(encoding="utf-8"),
            "target": Path(self.test_set.target).read_text(encoding="utf-8"),
            "metrics": [self.grid.quality_metrics, self.grid.latency_metrics],
            "scoring": [
                self.grid.computation_aware,
                self.grid.target_speech_lang,
                self.grid.asr_model,
            ],
        }
        longform = self.longform()
        if longform is not None:
            content["longform"] = [self.sentences().read_text(encoding="utf-8"), longform]
        return {
            "system": self.system.name,
            "chunk_ms": self.chunk_ms,
            "test_set": self.test_set.name,
            "fingerprint": digest(json.dumps(content, sort_keys=True)),
            **({} if longform is None else {"longform": longform}),
        }

    def sentences(self) -> Path:
        """``sentences.tsv`` of a test set of talks."""
        assert self.test_set.longform is not None, "only a test set of talks has sentences"
        return Path(self.test_set.longform.sentences)

    def longform(self) -> dict[str, str | None] | None:
        """What scoring talks has to know: the recogniser, and the cell of the same sentences one a
        file, as seen from this cell's folder; None where the test set has no talks."""
        if self.test_set.longform is None:
            return None
        alone = self.test_set.longform.alone
        recognized = "ASR_BLEU" in self.grid.quality_metrics
        return {
            "asr_model": self.grid.asr_model if recognized else None,
            "alone": alone and f"../../../{alone}/{self.system.name}/chunk_{self.chunk_ms}",
        }


def load_grid(path: Path, output: Path | None = None) -> Grid:
    """Read a grid file; its paths are relative to it.

    Args:
        path: the YAML file.
        output: where results go instead of the file's ``output``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown or missing key, wrong type, or a value that breaks a rule.
    """
    grid = from_dict(Grid, load_yaml(path), str(path))
    base = path.resolve().parent

    def resolve(value: str) -> str:
        return str((base / value).resolve())

    def find(value: str) -> str:
        # A file goes first, and a model that is not here yet keeps its name, for `check_files`.
        if is_model_name(value) and not (base / value).exists():
            return str(find_model(value) or value)
        return resolve(value)

    systems = tuple(
        replace(
            system,
            agent=resolve(system.agent),
            files=tuple(replace(option, path=find(option.path)) for option in system.files),
        )
        for system in grid.systems
    )
    test_sets = tuple(
        replace(
            test_set,
            source=resolve(test_set.source),
            target=resolve(test_set.target),
            longform=test_set.longform
            and replace(test_set.longform, sentences=resolve(test_set.longform.sentences)),
        )
        for test_set in grid.test_sets
    )
    kind, _, model = grid.asr_model.partition(":")
    # A fairseq checkpoint is always a file; hf and whisper also take names of published models.
    if kind == "wav2vec2" or model.startswith("."):
        grid = replace(grid, asr_model=f"{kind}:{resolve(model)}")
    folder = str(output.resolve()) if output is not None else resolve(grid.output)
    return replace(grid, output=folder, systems=systems, test_sets=test_sets)


def change_settings(grid: Grid, settings: Mapping[str, Any]) -> Grid:
    """All systems of a grid under other settings, as ``config.given_settings`` returns them."""
    written = {one.key: one.text(settings[one.key]) for one in settings_of() if one.key in settings}
    systems = tuple(
        replace(system, settings={**system.settings, **written}) for system in grid.systems
    )
    return replace(grid, systems=systems)


def source_paths(test_set: TestSet) -> list[str]:
    """The sources of a test set.

    Relative lines are relative to the list, or to a folder above it: lists are also written
    relative to the root of a checkout.
    """
    listing = Path(test_set.source)
    lines = listing.read_text(encoding="utf-8").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    paths = []
    for line in map(str.strip, lines):
        places = [folder / line for folder in listing.parents]
        paths.append(str(next((path for path in places if path.is_file()), places[0])))
    return paths


def check_files(grid: Grid) -> None:
    """Make sure that what the grid names is there, before hours of work on the rest of it.

    Raises:
        FileNotFoundError: an agent, one of its files, a list or a source is missing.
        ValueError: source and target lists are of different length.
    """
    for system in grid.systems:
        if not Path(system.agent).is_file():
            raise FileNotFoundError(f"system {system.name}: no agent file {system.agent}")
        for option in system.files:
            if is_model_name(option.path) and not Path(option.path).exists():
                raise FileNotFoundError(
                    f"system {system.name}: {option.flag} names {option.path}, which is not on "
                    f"this machine: {how_to_fetch(option.path)}"
                )
            if not Path(option.path).exists():
                raise FileNotFoundError(
                    f"system {system.name}: {option.flag} names {option.path}, which is not there"
                )
    for test_set in grid.test_sets:
        for kind in ("source", "target"):
            if not Path(getattr(test_set, kind)).is_file():
                raise FileNotFoundError(
                    f"test set {test_set.name}: no {kind} list {getattr(test_set, kind)}"
                )
        if test_set.longform and not Path(test_set.longform.sentences).is_file():
            raise FileNotFoundError(
                f"test set {test_set.name}: no list of sentences {test_set.longform.sentences}"
            )
        counts = [count_lines(Path(name)) for name in (test_set.source, test_set.target)]
        if counts[0] != counts[1]:
            raise ValueError(
                f"test set {test_set.name}: {counts[0]} sources but {counts[1]} references"
            )
        for number, source in enumerate(source_paths(test_set), 1):
            if not Path(source).is_file():
                raise FileNotFoundError(
                    f"test set {test_set.name}: {test_set.source}, line {number} names {source}, "
                    "which is not there"
                )


def count_lines(path: Path) -> int:
    """Lines as SimulEval's data loader counts them."""
    with path.open(encoding="utf-8") as file:
        return sum(1 for _ in file)


def cells(grid: Grid) -> Iterator[Cell]:
    """Every cell, test set by test set, system by system."""
    for test_set in grid.test_sets:
        for system in grid.systems:
            for chunk_ms in grid.chunk_ms:
                folder = Path(grid.output) / test_set.name / system.name / f"chunk_{chunk_ms}"
                yield Cell(system, chunk_ms, test_set, grid, folder)
