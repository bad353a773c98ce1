"""Transcripts of the speech a run wrote, with and without the silence SimulEval inserted."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from echostream.evaluation.recognizers.recognizer import (
    Recognizer,
    full_spec,
    load_recognizer,
    resample,
)
from echostream.evaluation.runs.logged_instances import LoggedSpeechToSpeech
from echostream.evaluation.runs.run_folder import transcript_path
from echostream.files import write_atomically

logger = logging.getLogger(__name__)


class SpeechLayoutError(ValueError):
    """A wav is not what its log line says SimulEval wrote."""


@dataclass(frozen=True)
class RunTranscripts:
    """Transcripts of one run, one per utterance in the order given.

    ``missing`` and ``empty`` list the utterances without a wav and those whose wav holds no
    sound; both have an empty transcript. ``unrecognized`` had sound that yielded no word.
    """

    recognizer: str
    without_silence: bool
    texts: list[str]
    missing: list[int]
    empty: list[int]
    unrecognized: list[int]


def remove_inserted_silence(
    samples: np.ndarray, sample_rate: int, delays: Sequence[float], durations: Sequence[float]
) -> np.ndarray:
    """Cut out exactly the silence that SimulEval put where the output waited.

    SimulEval writes each gap as ``int(sample_rate * gap_ms / 1000)`` zeros, so the log line gives
    the position of every inserted sample; pauses that the system itself spoke stay.

    Args:
        samples: the wav (T).
        sample_rate: its rate, Hz.
        delays: when each segment was written, ms.
        durations: length of each segment, ms.

    Raises:
        SpeechLayoutError: the wav is not as long as the log says.
    """
    kept: list[np.ndarray] = []
    position = 0
    previous_end = delays[0] if delays else 0.0
    for delay, duration in zip(delays, durations, strict=True):
        start = max(previous_end, delay)
        position += int(sample_rate * (start - previous_end) / 1000)
        length = round(duration * sample_rate / 1000)
        kept.append(samples[position : position + length])
        position += length
        previous_end = start + duration
    if position != len(samples):
        raise SpeechLayoutError(
            f"the log describes {position} samples at {sample_rate} Hz, the wav has {len(samples)}"
        )
    return np.concatenate(kept) if kept else samples[:0]


def _read_mono(path: Path) -> tuple[np.ndarray, int]:
    samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.mean(axis=1), sample_rate


def _transcribe(
    instance: LoggedSpeechToSpeech, recognizer: Recognizer, without_silence: bool
) -> str | None:
    """The transcript, or None when the wav holds no sound; raises if there is no wav."""
    samples, sample_rate = _read_mono(instance.wav_path)
    if without_silence:
        try:
            samples = remove_inserted_silence(
                samples, sample_rate, instance.delays, instance.durations
            )
        except SpeechLayoutError as error:
            raise SpeechLayoutError(f"{instance.wav_path}: {error}") from error
    # Digital silence is no speech; recognisers are apt to hear words in it.
    if not samples.any():
        return None
    samples = resample(samples, sample_rate, recognizer.sample_rate)
    return recognizer.transcribe(samples).strip().lower()


def transcribe_run(
    instances: Sequence[LoggedSpeechToSpeech],
    folder: Path,
    *,
    spec: str,
    device: str = "auto",
    language: str = "en",
    without_silence: bool = False,
) -> RunTranscripts:
    """Transcribe every utterance of a run and keep the transcripts beside its wavs.

    Args:
        instances: the run's utterances.
        folder: the run's output folder.
        spec: the recogniser, as ``--asr-model`` names it.
        device: where it runs.
        language: target language.
        without_silence: cut the inserted silence out first.

    Raises:
        SpeechLayoutError: with ``without_silence``, a wav that does not match its log line.
    """
    recognizer = load_recognizer(spec, device=device, language=language)
    texts: list[str] = []
    missing: list[int] = []
    empty: list[int] = []
    unrecognized: list[int] = []
    for instance in tqdm(instances, desc=f"recognising ({recognizer.name})", disable=None):
        if not instance.wav_path.is_file():
            missing.append(instance.index)
            texts.append("")
            continue
        text = _transcribe(instance, recognizer, without_silence)
        if text is None:
            empty.append(instance.index)
        elif not text:
            unrecognized.append(instance.index)
        texts.append(text or "")
    result = RunTranscripts(recognizer.name, without_silence, texts, missing, empty, unrecognized)
    _report_empty(result)
    path = transcript_path(folder, without_silence)
    write_atomically(path, "".join(text + "\n" for text in texts))
    report = {key: value for key, value in asdict(result).items() if key != "texts"}
    report["spec"] = full_spec(spec)
    report["indices"] = [instance.index for instance in instances]
    write_atomically(path.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    return result


def _report_empty(result: RunTranscripts) -> None:
    total = len(result.texts)
    for label, indices in (
        ("have no wav", result.missing),
        ("have a wav without sound", result.empty),
        ("have sound in which no word was recognised", result.unrecognized),
    ):
        if indices:
            shown = ", ".join(map(str, indices[:10])) + (", ..." if len(indices) > 10 else "")
            logger.warning(
                "%d of %d utterances %s and count as empty hypotheses: %s",
                len(indices),
                total,
                label,
                shown,
            )
