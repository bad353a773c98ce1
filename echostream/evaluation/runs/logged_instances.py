"""Finished utterances read back from ``instances.log``, of the type they had while they ran.

SimulEval's scorers ask what an instance *is* (speech or text, in or out) and read attributes that
only live instances have. Its own log reader returns one untyped class, so everything that depends
on speech output is then scored as text or fails. The classes here carry the logged values under
the live types; the scorers run on them unchanged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simuleval.evaluator.instance import SpeechToSpeechInstance, SpeechToTextInstance


def speech_layout(
    delays: list[float], durations: list[float]
) -> tuple[list[list[float]], list[float]]:
    """Lay written speech on the time axis as SimulEval plays it.

    A segment starts when it was written or when the one before it ends, whichever is later.

    Args:
        delays: time at which each segment was written, ms.
        durations: length of each segment, ms.

    Returns:
        ``[start, duration]`` of each segment, and the length of each silence between segments, ms.
    """
    intervals: list[list[float]] = []
    silences: list[float] = []
    if not delays:
        return intervals, silences
    previous_end = delays[0]
    for delay, duration in zip(delays, durations, strict=True):
        start = max(previous_end, delay)
        if start > previous_end:
            silences.append(start - previous_end)
        intervals.append([start, duration])
        previous_end = start + duration
    return intervals, silences


class _Logged:
    """What both kinds share; mixed in before the live class so that these properties win."""

    def __init__(self, info: dict[str, Any], latency_unit: str = "word") -> None:
        # The live constructors load the source audio; a logged instance needs none of it.
        self.info = info
        self.index = info["index"]
        self.reference = info.get("reference", "")
        self.latency_unit = latency_unit
        self.delays = info["delays"]
        self.elapsed = info.get("elapsed") or []
        self.metrics: dict[str, float] = {}
        self.finish_prediction = True
        self.target_spm_model = None

    @property
    def source_length(self) -> float:
        return self.info["source_length"]

    @property
    def source_info(self) -> Any:
        return self.info.get("source")

    @property
    def source_path(self) -> Path:
        """The sound file that was translated, with no name when the log does not say."""
        source = self.source_info
        if isinstance(source, (list, tuple)):
            source = source[0] if source else None
        return Path(source or "")


class LoggedSpeechToSpeech(_Logged, SpeechToSpeechInstance):
    """A speech-to-speech utterance from the log.

    ``folder`` is where ``wavs/`` is now; the path in the log goes stale when a run is moved.
    """

    def __init__(self, info: dict[str, Any], latency_unit: str, folder: Path | None = None) -> None:
        super().__init__(info, latency_unit)
        self.folder = folder
        self.durations = info["durations"]
        self.intervals, self.silences = speech_layout(self.delays, self.durations)
        self.prediction_list = list(self.durations)

    @property
    def wav_path(self) -> Path:
        logged = Path(self.info["prediction"])
        if self.folder is not None:
            return (self.folder / "wavs" / logged.name).absolute()
        return logged

    @property
    def prediction(self) -> Path:
        return self.wav_path


class LoggedSpeechToText(_Logged, SpeechToTextInstance):
    """A speech-to-text utterance from the log."""

    def __init__(self, info: dict[str, Any], latency_unit: str) -> None:
        super().__init__(info, latency_unit)
        self.prediction_list = info["prediction"].split()

    @property
    def prediction(self) -> str:
        return self.info["prediction"]


def is_speech_output(info: dict[str, Any]) -> bool:
    """Tell speech from text output by the log line; ``config.yaml`` cannot be trusted for it."""
    return "durations" in info


def read_log_lines(path: Path) -> list[dict[str, Any]]:
    """Read ``instances.log`` strictly.

    Raises:
        FileNotFoundError: there is no such log.
        ValueError: a line is not a JSON object, or an index occurs twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no SimulEval log: {path}")
    lines: list[dict[str, Any]] = []
    seen: set[int] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            info = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not a JSON object ({error.msg}); an interrupted run is "
                "repaired by running it again with --continue-unfinished"
            ) from error
        if not isinstance(info, dict) or "index" not in info:
            raise ValueError(f"{path}, line {number}: expected an object with 'index'")
        if info["index"] in seen:
            raise ValueError(f"{path}, line {number}: utterance {info['index']} is there twice")
        seen.add(info["index"])
        lines.append(info)
    return lines


def read_instances(
    path: Path, latency_unit: str = "word"
) -> list[LoggedSpeechToSpeech | LoggedSpeechToText]:
    """Read ``instances.log`` of a run with speech input, in the order of the log."""
    folder = path.parent
    return [
        LoggedSpeechToSpeech(info, latency_unit, folder)
        if is_speech_output(info)
        else LoggedSpeechToText(info, latency_unit)
        for info in read_log_lines(path)
    ]
