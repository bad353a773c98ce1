"""Quality and latency of several runs side by side."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from echostream.evaluation.recognizers.recognizer import full_spec
from echostream.evaluation.runs import yaal
from echostream.evaluation.runs.run_folder import RunFolder, read_transcript_report
from echostream.evaluation.runs.run_metrics import METRICS
from echostream.evaluation.significance import Significance, paired_bootstrap

logger = logging.getLogger(__name__)


PLOTTED_QUALITY = ("ASR_BLEU", "BLEU", "ASR_BLEU_NOSIL")


@dataclass(frozen=True)
class Rescoring:
    """Which recogniser to run over speech output; None reads what the folders hold."""

    asr_model: str | None = None
    asr_device: str = "auto"
    language: str = "en"


@dataclass
class ComparedRun:
    """A run with everything the table shows of it.

    ``recognizer`` is the short name for tables, ``recognizer_spec`` has the whole path.
    """

    run: RunFolder
    quality: dict[str, float] = field(default_factory=dict)
    latency: dict[str, float] = field(default_factory=dict)
    recognizer: str = ""
    recognizer_spec: str = ""
    notes: list[str] = field(default_factory=list)
    plotted: str | None = None

    @property
    def main_quality(self) -> tuple[str, float]:
        """The figure that curves plot: ``plotted``, else the customary one."""
        for name in (self.plotted,) if self.plotted else PLOTTED_QUALITY:
            if name in self.quality:
                return name, self.quality[name]
        return "", float("nan")


def _transcribe(run: RunFolder, rescoring: Rescoring) -> None:
    from echostream.evaluation.runs.transcripts import SpeechLayoutError, transcribe_run

    for without_silence in (False, True):
        try:
            # All that the folder holds: its transcripts are about the whole run.
            transcribe_run(
                run.logged,
                run.path,
                spec=rescoring.asr_model or "",
                device=rescoring.asr_device,
                language=rescoring.language,
                without_silence=without_silence,
            )
        except SpeechLayoutError as error:
            logger.error("ASR_BLEU_NOSIL is not computed: %s", error)


def _read_recognizer(run: RunFolder, without_silence: bool = False) -> tuple[str, str]:
    """Name and specification of the recogniser; the name stands in where no path was noted."""
    report = read_transcript_report(run.path, without_silence)
    name = str(report.get("recognizer") or run.reported.get("ASR_MODEL") or "unknown")
    return name, report.get("spec", name)


def _is_transcribed(run: RunFolder, spec: str) -> bool:
    """Whether the folder holds both kinds of transcripts, made by this very recogniser."""
    return all(
        _read_recognizer(run, without_silence)[1] == full_spec(spec)
        and run.hypotheses(without_silence) is not None
        for without_silence in (False, True)
    )


def _notes(result: ComparedRun) -> list[str]:
    """What a reader must know before comparing this line with another."""
    notes = []
    run, latency = result.run, result.latency
    words = sum(len(item.reference.split()) for item in run.utterances)
    pieces = sum(len(item.delays) for item in run.utterances)
    silent = [item.index for item in run.utterances if not item.delays]
    if silent:
        notes.append(
            f"{len(silent)} of {len(run.utterances)} utterances have no output; latency leaves "
            "them out, quality counts them as empty"
        )
    if run.is_speech and words and pieces / words > 1.0:
        notes.append(
            f"{pieces / words:.1f} segments per reference word: AL is pulled down; "
            "read ATD and StartOffset"
        )
    if latency.get("AL", 0.0) < 0:
        notes.append("negative AL: it spaces segments by reference words; read ATD")
    if any(value == 1.0 for name, value in latency.items() if name.startswith("Degenerate")):
        notes.append("likely a degenerate policy (|EFSW - SWF| > 20 points)")
    if run.is_speech and run.is_reduced and "ASR_BLEU" not in result.quality:
        notes.append(
            "no transcripts, and scores.tsv is about more utterances; ASR-BLEU needs --asr-model"
        )
    if not run.has_elapsed:
        notes.append(
            "the log has no elapsed times; "
            + (
                "scores.tsv is about more utterances, so there are no _CA figures"
                if run.is_reduced
                else "_CA figures are those of scores.tsv"
            )
        )
    return notes


def compare_runs(
    runs: Sequence[RunFolder],
    rescoring: Rescoring | None = None,
    *,
    segmentation: Path | None = None,
    segment_references: Path | None = None,
) -> list[ComparedRun]:
    """Score every run; with ``rescoring.asr_model`` speech is recognised anew.

    Raises:
        ValueError: runs were recognised by different recognisers, which cannot be compared.
    """
    rescoring = rescoring or Rescoring()
    results = []
    for run in runs:
        if run.is_speech and rescoring.asr_model and not _is_transcribed(run, rescoring.asr_model):
            _transcribe(run, rescoring)
        result = ComparedRun(run)
        for metric in METRICS:
            figures = result.quality if metric.is_quality else result.latency
            figures.update(metric.compute(run))
        if segmentation is not None and segment_references is not None:
            result.latency.update(yaal.long_yaal_scores(run, segmentation, segment_references))
        if "ASR_BLEU" in result.quality:
            result.recognizer, result.recognizer_spec = _read_recognizer(run)
        result.notes = _notes(result)
        results.append(result)
    if not yaal.is_available():
        logger.warning(
            "omnisteval is not installed, so there is no YAAL and no degenerate-policy test"
        )
    specs = {result.recognizer_spec for result in results if result.recognizer_spec}
    if len(specs) > 1:
        raise ValueError(
            f"the runs were recognised by {', '.join(sorted(specs))}, whose ASR-BLEU cannot be "
            "compared; score them alike with --asr-model"
        )
    return results


def compare_paired(results: Sequence[ComparedRun], samples: int = 1000) -> list[Significance]:
    """Paired bootstrap of every run with text against the first of them."""
    usable = [
        (result.run, texts) for result in results if (texts := result.run.hypotheses()) is not None
    ]
    if len(usable) < 2:
        return []
    first = usable[0][0]
    return paired_bootstrap(
        [(run.name, texts) for run, texts in usable],
        [item.reference for item in first.utterances],
        "ASR_BLEU" if first.is_speech else "BLEU",
        samples,
    )
