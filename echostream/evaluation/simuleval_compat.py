"""Repairs to SimulEval so that it measures speech output as StreamSpeech's fork of it does.

Importing this module applies them, so an agent file gets them with
``import echostream.evaluation.simuleval_compat``; ``simuleval --user-dir
echostream/evaluation/simuleval_compat`` does the same where no agent is loaded (``--score-only``).
Written against ``simuleval==1.1.4`` from PyPI and git 536de82, which is also called 1.1.4, so each
patch asks what the installed code does, not what it is called, and stays away where that is right
already. A patch that has been applied answers "right", which makes a second import harmless.

Where StreamSpeech's fork does something odd that a table cannot do without (``metrics.tsv`` holds
the computation-aware values under the plain names), that is kept, and the unambiguous figures go
to ``utterances.tsv`` beside it.
"""

from __future__ import annotations

import argparse
import builtins
import json
import logging
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import pandas
import simuleval.utils.agent as agent_module
import yaml
from simuleval.data.segments import SpeechSegment, TextSegment
from simuleval.evaluator import evaluator as evaluator_module
from simuleval.evaluator.evaluator import SentenceLevelEvaluator
from simuleval.evaluator.instance import (
    LogInstance,
    SpeechOutputInstance,
    SpeechToSpeechInstance,
    TextOutputInstance,
)
from simuleval.evaluator.remote import RemoteEvaluator
from simuleval.evaluator.scorers.quality_scorer import QUALITY_SCORERS_DICT

from echostream.evaluation import quality
from echostream.evaluation.logged_instances import is_speech_output, read_instances

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patch:
    """One repair: ``is_needed`` looks at the installed SimulEval, ``apply`` changes it."""

    apply: Callable[[], None]
    is_needed: Callable[[], bool]

    @property
    def name(self) -> str:
        return self.apply.__name__.removeprefix("patch_")


def _unmarked(owner: Any, attribute: str) -> Callable[[], bool]:
    """For defects that cannot be provoked without running a system: needed until patched."""

    def is_needed() -> bool:
        target = owner.__dict__.get(attribute)
        target = getattr(target, "fget", None) or target
        return not getattr(target, "echostream_patch", False)

    return is_needed


def _mark(function: Callable) -> Callable:
    function.echostream_patch = True
    return function


class _Probe(SpeechToSpeechInstance):
    """A speech-to-speech instance without audio or files, to see what ``summarize`` reports."""

    wav_path = Path("probe.wav")
    source_length = 1000.0

    def __init__(self) -> None:
        self.index = 0
        self.reference = ""
        self.delays, self.durations, self.prediction_list, self.intervals = [], [], [], []
        self.elapsed = [1.0]
        self.target_sample_rate = -1
        self.dataloader = argparse.Namespace(get_source_audio_path=lambda index: "")


# --- the log ---------------------------------------------------------------------------------


def _drops_elapsed() -> bool:
    return _Probe().summarize()["elapsed"] != [1.0]


def patch_speech_elapsed() -> None:
    """Keep ``elapsed`` of speech output in the log: the ``_CA`` metrics are computed from it."""
    original = SpeechOutputInstance.summarize

    def summarize(self: SpeechOutputInstance) -> dict[str, Any]:
        return {**original(self), "elapsed": self.elapsed}

    SpeechOutputInstance.summarize = _mark(summarize)


def _has_odd_empty_length() -> bool:
    return str(_Probe().summarize()["prediction_length"]) != "0.0"


def patch_empty_prediction() -> None:
    """An utterance that said nothing has length 0.0 and no wav.

    SimulEval divides by a sample rate it never learnt (-1), and leaves the wav of an earlier run
    in the same folder, which is then recognised as this run's speech.
    """
    original = SpeechOutputInstance.summarize

    def summarize(self: SpeechOutputInstance) -> dict[str, Any]:
        summary = original(self)
        if not self.prediction_list:
            summary["prediction_length"] = 0.0
            self.wav_path.unlink(missing_ok=True)
        return summary

    SpeechOutputInstance.summarize = _mark(summarize)


def _loses_sentencepiece_spaces() -> bool:
    probe = TextOutputInstance.__new__(TextOutputInstance)
    probe.latency_unit, probe.prediction_list = "word", ["▁he", "llo", "▁you"]
    return TextOutputInstance.prediction.fget(probe).strip() != "hello you"


def patch_sentencepiece_text() -> None:
    """Join SentencePiece tokens into words, as the fork does for StreamSpeech's text agents.

    Stock SimulEval puts a space between the tokens and scores "▁he llo". Text without the
    SentencePiece mark is left to it.
    """
    original = TextOutputInstance.prediction.fget

    def prediction(self: TextOutputInstance) -> str:
        if self.latency_unit == "word" and any("▁" in token for token in self.prediction_list):
            return "".join(self.prediction_list).replace("▁", " ").strip()
        return original(self)

    TextOutputInstance.prediction = property(_mark(prediction))


def _repair_torn_log(path: Path) -> None:
    """Cut a log that ends in half a line back to its last whole one."""
    content = path.read_bytes()
    kept = content[: content.rfind(b"\n") + 1]
    if len(kept) < len(content):
        logger.warning("%s ends in an unfinished line; that utterance is run again", path)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(kept)
        os.replace(temporary, path)


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

    evaluator_module.open = _mark(open_by_line)
    SentenceLevelEvaluator.__init__ = __init__


# --- the evaluator ---------------------------------------------------------------------------


def _plain_metrics_are_computation_aware() -> bool:
    options = argparse.Namespace(
        score_only=True,
        no_use_ref_len=False,
        computation_aware=True,
        latency_metrics=["AL"],
        quality_metrics=[],
    )
    # from_args ends in cls(...), so a function in place of the class shows what it would build.
    built = SentenceLevelEvaluator.from_args.__func__(lambda *parts: parts, options)
    return built[2]["AL"].computation_aware


def patch_plain_metrics() -> None:
    """Under ``--computation-aware`` the plain metrics must stay plain; 1.1.4 makes both alike."""
    original = SentenceLevelEvaluator.from_args.__func__

    def from_args(cls: type, args: argparse.Namespace) -> Any:
        def build(
            dataloader: Any, quality_scorers: dict, latency_scorers: dict, args: argparse.Namespace
        ) -> Any:
            for name in args.latency_metrics:
                latency_scorers[name].computation_aware = False
            return cls(dataloader, quality_scorers, latency_scorers, args)

        return original(build, args)

    SentenceLevelEvaluator.from_args = classmethod(_mark(from_args))


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
            path = self.output / "config.yaml"
            temporary = path.with_name(path.name + ".tmp")
            types = {"source_type": source_type, "target_type": self.target_type}
            temporary.write_text(yaml.safe_dump(types), encoding="utf-8")
            os.replace(temporary, path)

    SentenceLevelEvaluator.__init__ = _mark(__init__)


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

    SentenceLevelEvaluator.build_instances_from_dataloader = _mark(build_instances_from_dataloader)


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

    SentenceLevelEvaluator.build_instances_from_log = _mark(build_instances_from_log)


# --- agents in another process ---------------------------------------------------------------


def _segments_cannot_travel() -> bool:
    return TextSegment().tgt_lang is not None


def patch_segment_language() -> None:
    """Give segments no language by default; 1.1.4 gives them a typing object.

    A remote agent answers in JSON, which has no such thing, so it could not answer at all.
    """
    for segment in (TextSegment, SpeechSegment):
        defaults = segment.__init__.__defaults__ or ()
        segment.__init__.__defaults__ = tuple(
            None if get_origin(value) is not None else value for value in defaults
        )
        segment.tgt_lang = None


def _remote_evaluator_is_stale() -> bool:
    names = RemoteEvaluator.remote_eval.__code__.co_names
    return "instance_iterator" in names and not hasattr(SentenceLevelEvaluator, "instance_iterator")


def patch_remote_iterator() -> None:
    """Let ``--remote-eval`` find the utterances; 1.1.4 asks for them under their former name."""
    SentenceLevelEvaluator.instance_iterator = property(lambda self: self.iterator)


# --- the scores ------------------------------------------------------------------------------


def _score(name: str, scorer: Callable, instances: dict[int, Any]) -> float:
    try:
        return scorer(instances)
    except statistics.StatisticsError:  # the mean over no utterance at all
        logger.warning("%s: no utterance has what it is computed from; reported as nan", name)
        return float("nan")


def patch_unscorable_latency() -> None:
    """Report nan, not a crash after hours of inference, when no utterance can be scored."""

    def latency(self: SentenceLevelEvaluator) -> dict[str, float]:
        return {
            name: _score(name, scorer, self.instances)
            for name, scorer in self.latency_scorers.items()
        }

    SentenceLevelEvaluator.latency = property(_mark(latency))


def _write_table(table: pandas.DataFrame, path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    table.to_csv(temporary, sep="\t", index=False)
    os.replace(temporary, path)


def utterance_table(evaluator: SentenceLevelEvaluator) -> pandas.DataFrame:
    """Every latency metric of every utterance under its own name, ATD and ``_CA`` included."""
    rows = []
    level = logging.getLogger("simuleval.latency_scorer").level
    logging.getLogger("simuleval.latency_scorer").setLevel(logging.ERROR)
    try:
        for instance in evaluator.instances.values():
            kept = dict(instance.metrics)
            row = {"index": instance.index}
            for name, scorer in evaluator.latency_scorers.items():
                try:
                    row[name] = scorer({0: instance})
                except statistics.StatisticsError:
                    row[name] = float("nan")
            instance.metrics = kept
            rows.append(row)
    finally:
        logging.getLogger("simuleval.latency_scorer").setLevel(level)
    return pandas.DataFrame(rows).round(3)


def patch_utterance_table() -> None:
    """Add ``utterances.tsv``; in ``metrics.tsv`` each ``_CA`` value overwrites its plain one."""
    original = SentenceLevelEvaluator.dump_metrics

    def dump_metrics(self: SentenceLevelEvaluator) -> None:
        original(self)
        if self.output and isinstance(self.instances, dict):
            untyped = any(isinstance(item, LogInstance) for item in self.instances.values())
            if not untyped:
                _write_table(utterance_table(self), self.output / "utterances.tsv")

    SentenceLevelEvaluator.dump_metrics = _mark(dump_metrics)


def patch_score_only_files() -> None:
    """Let ``--score-only`` leave its scores in the folder; SimulEval only prints them."""
    original = SentenceLevelEvaluator.results.fget

    def results(self: SentenceLevelEvaluator) -> pandas.DataFrame:
        table = original(self)
        if self.score_only and self.output:
            _write_table(table, self.output / "scores.tsv")
            self.dump_metrics()
        return table

    SentenceLevelEvaluator.results = property(_mark(results))


def _lacks_our_scorers() -> bool:
    return any(
        QUALITY_SCORERS_DICT.get(name) is not scorer for name, scorer in quality.SCORERS.items()
    )


def patch_quality_metrics() -> None:
    """Put ASR_BLEU, ASR_BLEU_NOSIL, WER and CHRF where ``--quality-metrics`` looks."""
    QUALITY_SCORERS_DICT.update(quality.SCORERS)


def patch_asr_columns() -> None:
    """Give ASR_BLEU its companions: the figure without silence, and the recogniser's name."""
    original = SentenceLevelEvaluator.from_args.__func__

    def from_args(cls: type, args: argparse.Namespace) -> Any:
        def build(
            dataloader: Any, quality_scorers: dict, latency_scorers: dict, args: argparse.Namespace
        ) -> Any:
            scorers = quality.with_companions(quality_scorers, args)
            return cls(dataloader, scorers, latency_scorers, args)

        return original(build, args)

    from_args.echostream_asr_columns = True
    SentenceLevelEvaluator.from_args = classmethod(from_args)


def _lacks_asr_columns() -> bool:
    return not hasattr(SentenceLevelEvaluator.from_args.__func__, "echostream_asr_columns")


def patch_asr_options() -> None:
    """Make ``--asr-model`` and ``--asr-device`` options of the command.

    SimulEval collects the scorers' options before it loads the agent, hence before this module,
    but the agent's own after: the hook is the call that follows the agent's. A system folder
    (``--system-dir``) has no such call, and there the options are taken off the command line.
    """
    original = agent_module.add_command_helper_arg

    def add_command_helper_arg(parser: argparse.ArgumentParser) -> None:
        quality.add_asr_args(parser)
        original(parser)

    agent_module.add_command_helper_arg = _mark(add_command_helper_arg)
    if any(argument.partition("=")[0] == "--system-dir" for argument in sys.argv):
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        quality.add_asr_args(parser)
        options, sys.argv[1:] = parser.parse_known_args(sys.argv[1:])
        quality.set_default_asr_options(options)


PATCHES = (
    Patch(patch_speech_elapsed, _drops_elapsed),
    Patch(patch_empty_prediction, _has_odd_empty_length),
    Patch(patch_sentencepiece_text, _loses_sentencepiece_spaces),
    Patch(patch_resumable_log, _unmarked(evaluator_module, "open")),
    Patch(patch_plain_metrics, _plain_metrics_are_computation_aware),
    Patch(patch_config_types, _unmarked(SentenceLevelEvaluator, "__init__")),
    Patch(patch_lazy_sources, _unmarked(SentenceLevelEvaluator, "build_instances_from_dataloader")),
    Patch(patch_typed_log, _unmarked(SentenceLevelEvaluator, "build_instances_from_log")),
    Patch(patch_segment_language, _segments_cannot_travel),
    Patch(patch_remote_iterator, _remote_evaluator_is_stale),
    Patch(patch_unscorable_latency, _unmarked(SentenceLevelEvaluator, "latency")),
    Patch(patch_utterance_table, _unmarked(SentenceLevelEvaluator, "dump_metrics")),
    Patch(patch_score_only_files, _unmarked(SentenceLevelEvaluator, "results")),
    Patch(patch_quality_metrics, _lacks_our_scorers),
    Patch(patch_asr_columns, _lacks_asr_columns),
    Patch(patch_asr_options, _unmarked(agent_module, "add_command_helper_arg")),
)


def apply_patches() -> list[str]:
    """Apply every patch that the installed SimulEval needs; return their names."""
    applied = []
    for patch in PATCHES:
        if patch.is_needed():
            patch.apply()
            applied.append(patch.name)
    if applied:
        logger.debug("SimulEval patched: %s", ", ".join(applied))
    return applied


APPLIED = apply_patches()
