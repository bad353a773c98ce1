"""Silence in the speech of a run.

Between the first and the last sound of an utterance as it is played, wherever the silence comes
from: waiting for more to say, or pauses that the voice itself makes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soundfile

from echostream.evaluation.runs.logged_instances import LoggedSpeechToSpeech
from echostream.evaluation.runs.metric import Column, Metric
from echostream.evaluation.runs.run_folder import RunFolder

FRAME_MS = 10
BELOW_LOUDEST_DB = 40.0  # frames so far below the loudest one are silent
SHORTEST_MS = 100.0  # shorter silences belong to speech: closures of plosives
NAN = float("nan")


@dataclass(frozen=True)
class SpeechSilence:
    """Silences of one utterance, in ms.

    Attributes:
        between: from its first to its last sound; 0 without any sound.
        silences: lengths of those of at least ``SHORTEST_MS`` in between, in order.
    """

    between: float
    silences: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.silences)

    @property
    def longest(self) -> float:
        return max(self.silences, default=0.0)


def find_silences(samples: np.ndarray, sample_rate: int) -> SpeechSilence:
    """Measure mono speech.

    Args:
        samples: (T,) float.
        sample_rate: Hz.
    """
    hop = max(round(sample_rate * FRAME_MS / 1000), 1)
    missing = -len(samples) % hop
    frames = np.pad(samples.astype(np.float64), (0, missing)).reshape(-1, hop)
    energy = np.square(frames).mean(axis=1)
    loudest = energy.max(initial=0.0)
    if loudest <= 0:
        return SpeechSilence(0.0, ())
    sounding = np.flatnonzero(energy > loudest * 10 ** (-BELOW_LOUDEST_DB / 10))
    frame_ms = 1000 * hop / sample_rate
    gaps = (np.diff(sounding) - 1) * frame_ms
    long = gaps[gaps >= SHORTEST_MS - 1e-6]
    between = (sounding[-1] - sounding[0] + 1) * frame_ms
    return SpeechSilence(float(between), tuple(map(float, long)))


def summarize(utterances: Sequence[SpeechSilence]) -> dict[str, float]:
    """``SilenceRatio``: silence over speech, of all utterances together. ``LongestPause``: ms, mean
    over utterances; ``LongestPauseMax``: of all. nan where nothing sounds."""
    sounding = [item for item in utterances if item.between]
    if not sounding:
        return {"SilenceRatio": NAN, "LongestPause": NAN, "LongestPauseMax": NAN}
    longest = [item.longest for item in sounding]
    return {
        "SilenceRatio": sum(item.total for item in sounding)
        / sum(item.between for item in sounding),
        "LongestPause": statistics.fmean(longest),
        "LongestPauseMax": max(longest),
    }


def silence_scores(run: RunFolder) -> dict[str, float]:
    """:func:`summarize` of the wavs of a run; nan where one that should be there is not, empty
    without speech."""
    if not run.is_speech:
        return {}
    measured = []
    for item in run.utterances:
        if not isinstance(item, LoggedSpeechToSpeech) or not item.delays:
            continue
        if not item.wav_path.is_file():
            return summarize([])
        samples, rate = soundfile.read(item.wav_path, dtype="float32", always_2d=True)
        measured.append(find_silences(samples.mean(axis=1), rate))
    return summarize(measured)


SILENCE = Metric(
    silence_scores,
    (Column("SilenceRatio", "Silence ratio", 3), Column("LongestPause", "Longest pause")),
)
