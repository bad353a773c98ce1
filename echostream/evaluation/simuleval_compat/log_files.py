"""The files of a run while it runs and when it is read back: log, types, sources."""

from __future__ import annotations

import builtins
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from simuleval.evaluator import evaluator as evaluator_module
from simuleval.evaluator.evaluator import SentenceLevelEvaluator

from echostream.evaluation.runs.logged_instances import is_speech_output, read_instances
from echostream.evaluation.simuleval_compat.patch import Patch, mark, unmarked
from echostream.files import atomic_path, write_atomically

logger = logging.getLogger(__name__)


def _repair_torn_log(path: Path) -> None:
    """Cut a log that ends in half a line back to its last whole one."""
    content = path.read_bytes()
    kept = content[: content.rfind(b"\n") + 1]
    if len(kept) < len(content):
        logger.warning("%s ends in an unfinished line; that utterance is run again", path)
        with atomic_path(path) as temporary:
            temporary.write_bytes(kept)


def patch_resumable_log() -> None:
    """Write the log line by line and survive a line cut short.

    SimulEval keeps one buffered file open for the whole run, so killing it loses finished
    utterances and leaves half a line that ``--continue-unfinished`` cannot read.
    """

    def open_by_line(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "a" and not args and "buffering" not in kwargs:
            kwargs["buffering"] = 1
        return builtins.open(file, mode, *args, **kwargs)

    original = SentenceLevelEvaluator.__init__

    def __init__(self: SentenceLevelEvaluator, *args: Any, **kwargs: Any) -> None:
        options = kwargs.get("args") or args[3]
        log = Path(options.output) / "instances.log" if options.output else None
        if log and log.exists() and options.continue_unfinished and not options.score_only:
            _repair_torn_log(log)
        original(self, *args, **kwargs)

    evaluator_module.open = mark(open_by_line)
    SentenceLevelEvaluator.__init__ = __init__


def _logged_types(evaluator: SentenceLevelEvaluator) -> tuple[str, str]:
    """Source and target type, the target from the log when nothing but the log is there."""
    target_type = evaluator.target_type
    log = evaluator.output / "instances.log"
    if evaluator.score_only and log.is_file():
        with builtins.open(log, encoding="utf-8") as file:
            first = file.readline()
        if first.strip():
            target_type = "speech" if is_speech_output(json.loads(first)) else "text"
    return evaluator.source_type, target_type


def patch_config_types() -> None:
    """Write the target type to ``config.yaml``; 1.1.4 writes the source type twice."""
    original = SentenceLevelEvaluator.__init__

    def __init__(self: SentenceLevelEvaluator, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.output is not None:
            source_type, self.target_type = _logged_types(self)
            types = {"source_type": source_type, "target_type": self.target_type}
            write_atomically(self.output / "config.yaml", yaml.safe_dump(types))

    SentenceLevelEvaluator.__init__ = mark(__init__)


class LazyInstances(Mapping):
    """Utterances built when their turn comes and let go after it."""

    def __init__(self, indices: list[int], build: Callable[[int], Any]) -> None:
        self._indices = indices
        self._build = build

    def __getitem__(self, index: int) -> Any:
        return self._build(index)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


def patch_lazy_sources() -> None:
    """Read each source when its turn comes.

    SimulEval holds the whole test set in memory as Python floats: some 100 GB for the Fr-En test
    set of CVSS-C at 48 kHz.
    """
    original = SentenceLevelEvaluator.build_instances_from_dataloader

    def build_instances_from_dataloader(self: SentenceLevelEvaluator) -> None:
        iterable = isinstance(self.dataloader, evaluator_module.IterableDataloader)
        # Without a log, and by the remote evaluator, the live instances are what is scored.
        if self.output is None or iterable or self.args.remote_eval:
            original(self)
            return

        def build(index: int) -> Any:
            instance = self.instance_class(index, self.dataloader, self.args)
            instance.set_target_spm_model(self.target_spm_model)
            return instance

        self.instances = LazyInstances(list(self.get_indices()), build)

    SentenceLevelEvaluator.build_instances_from_dataloader = mark(build_instances_from_dataloader)


def patch_typed_log() -> None:
    """Score what the log says as the type it has.

    SimulEval reads the log back as one untyped class: ATD then takes speech for text, RTF ignores
    playback and Discontinuity* fail. It also counts from ``--start-index``, or from where a run
    was resumed, so that position 0, which the scorers look at, may not exist.
    """
    original = SentenceLevelEvaluator.build_instances_from_log

    def build_instances_from_log(self: SentenceLevelEvaluator) -> None:
        if self.output is None or self.source_type == "text":
            original(self)
            return
        instances = read_instances(self.output / "instances.log", self.args.eval_latency_unit)
        for instance in instances:
            instance.set_target_spm_model(self.target_spm_model)
        self.instances = dict(enumerate(sorted(instances, key=lambda item: item.index)))

    SentenceLevelEvaluator.build_instances_from_log = mark(build_instances_from_log)


PATCHES = (
    Patch(patch_resumable_log, unmarked(evaluator_module, "open")),
    Patch(patch_config_types, unmarked(SentenceLevelEvaluator, "__init__")),
    Patch(patch_lazy_sources, unmarked(SentenceLevelEvaluator, "build_instances_from_dataloader")),
    Patch(patch_typed_log, unmarked(SentenceLevelEvaluator, "build_instances_from_log")),
)
