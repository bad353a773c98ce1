"""Speech of a run as somebody hears it who listens while it is played: words and their times.

The wav of a run holds what is played from the first segment on, with silence where the output
waited. Recognisers are made for utterances, so it is cut where there is silence for a while, and
what is recognised in each stretch is put back on the time axis of the source, which the log knows.
Words that were recognised are kept beside the run, by what they were recognised from, so that an
interrupted recognition goes on where it was and another table costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from echostream.evaluation.longform.alignment import TimedWord
from echostream.evaluation.recognizers.recognizer import full_spec, load_recognizer, resample
from echostream.evaluation.recognizers.words import RecognizedWord
from echostream.evaluation.runs.logged_instances import LoggedSpeechToSpeech, speech_layout
from echostream.evaluation.runs.run_folder import RunFolder
from echostream.evaluation.runs.run_latency import overlapped_emissions
from echostream.processes import fresh_processes

logger = logging.getLogger(__name__)

WORDS_FILE = "asr_words.jsonl"
PAUSE_MS = 800.0  # so long a silence separates stretches: longer than those inside sentences
LONGEST_MS = 20000.0  # of a stretch; what goes on longer is cut at its best pause
MARGIN_MS = 200.0  # of silence that stays around a stretch
QUIET_DB = -40.0  # below the loudest window of the file
_WINDOW_MS = 10


@dataclass(frozen=True)
class Recognition:
    """How speech is recognised.

    Attributes:
        spec: the recogniser, as ``--asr-model`` names it.
        device: where it runs.
        language: of the speech.
        jobs: processes.
    """

    spec: str
    device: str = "auto"
    language: str = "en"
    jobs: int = 1


@dataclass(frozen=True)
class Stretch:
    """Samples ``start`` to ``stop`` of the sound file ``path``."""

    path: str
    start: int
    stop: int

    def read(self) -> tuple[np.ndarray, int]:
        """(T,) mono samples and their rate, Hz."""
        samples, rate = soundfile.read(
            self.path, start=self.start, stop=self.stop, dtype="float32", always_2d=True
        )
        return samples.mean(axis=1), rate


@dataclass(frozen=True)
class Playback:
    """Where the pieces of an utterance's speech lie in its wav and in time.

    Attributes:
        samples: (N,) first sample of each piece.
        start_ms: (N,) when it begins to be played, on the clock of the source.
        elapsed_ms: (N,) the same with computation included; None where the log lost it.
        sample_rate: of the wav, Hz.
    """

    samples: np.ndarray
    start_ms: np.ndarray
    elapsed_ms: np.ndarray | None
    sample_rate: int

    @classmethod
    def of(cls, item: LoggedSpeechToSpeech, sample_rate: int) -> Playback:
        """Lay out an utterance as SimulEval does."""
        intervals, _ = speech_layout(item.delays, item.durations)
        samples, position, end = [], 0, item.delays[0]
        for start, duration in intervals:
            position += int(sample_rate * (start - end) / 1000)
            samples.append(position)
            position += round(duration * sample_rate / 1000)
            end = start + duration
        elapsed = None
        if len(item.elapsed) == len(item.delays):
            out = overlapped_emissions(item.delays, item.elapsed)
            elapsed = np.array(speech_layout(out, item.durations)[0])[:, 0]
        return cls(np.array(samples), np.array(intervals)[:, 0], elapsed, sample_rate)

    def times(self, sample: float) -> tuple[float, float | None]:
        """When a sample is played, in ms, without and with computation."""
        piece = max(int(np.searchsorted(self.samples, sample, side="right")) - 1, 0)
        inside = 1000 * (sample - self.samples[piece]) / self.sample_rate
        aware = None if self.elapsed_ms is None else _within(self.elapsed_ms, piece, inside)
        return _within(self.start_ms, piece, inside), aware


def _within(starts: np.ndarray, piece: int, inside_ms: float) -> float:
    """``inside_ms`` after a piece began, but not after the next one did."""
    time = float(starts[piece]) + inside_ms
    return min(time, float(starts[piece + 1])) if piece + 1 < len(starts) else time


def find_stretches(samples: np.ndarray, sample_rate: int) -> list[tuple[int, int]]:
    """Cut (T,) speech at its pauses.

    Returns:
        First sample and the one behind the last of every stretch, in order, none overlapping.
    """
    window = sample_rate * _WINDOW_MS // 1000
    power = np.square(samples[: len(samples) // window * window].reshape(-1, window)).mean(axis=1)
    loud = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (QUIET_DB / 10))
    if not len(loud):
        return []
    breaks = np.flatnonzero(np.diff(loud) - 1 >= PAUSE_MS / _WINDOW_MS)
    first, last = loud[[0, *(breaks + 1)]], loud[[*breaks, -1]] + 1
    parts = [
        part
        for start, stop in zip(first, last, strict=True)
        for part in _shorten(int(start), int(stop), power, loud)
    ]
    edges = [0, *((a[1] + b[0]) // 2 for a, b in zip(parts, parts[1:], strict=False)), len(power)]
    margin = int(MARGIN_MS) // _WINDOW_MS
    return [
        (max(start - margin, low) * window, min(stop + margin, high) * window)
        for (start, stop), low, high in zip(parts, edges, edges[1:], strict=False)
    ]


def _shorten(
    start: int, stop: int, power: np.ndarray, loud: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Windows ``start`` to ``stop`` in parts that are not too long, cut at the longest pause of the
    middle, or where it is quietest."""
    if stop - start <= LONGEST_MS / _WINDOW_MS:
        yield start, stop
        return
    low, high = start + (stop - start) // 4, stop - (stop - start) // 4
    inside = loud[(loud >= low) & (loud < high)]
    gaps = np.diff(inside)
    if len(gaps) and gaps.max() > 1:
        longest = int(gaps.argmax())
        before, behind = int(inside[longest]) + 1, int(inside[longest + 1])
    else:
        before = behind = low + int(power[low:high].argmin())
    yield from _shorten(start, before, power, loud)
    yield from _shorten(behind, stop, power, loud)


def _key(stretch: Stretch, recognition: Recognition) -> str:
    """Names what a stretch is recognised from and by."""
    samples, rate = stretch.read()
    about = f"{full_spec(recognition.spec)} {recognition.language} {rate}"
    return hashlib.sha1(about.encode() + samples.tobytes()).hexdigest()


def _recognize(stretch: Stretch, recognition: Recognition) -> list[RecognizedWord]:
    recognizer = load_recognizer(
        recognition.spec, device=recognition.device, language=recognition.language
    )
    samples, rate = stretch.read()
    return recognizer.transcribe_words(resample(samples, rate, recognizer.sample_rate))


def _recognize_all(
    stretches: Sequence[Stretch], recognition: Recognition
) -> Iterator[list[RecognizedWord]]:
    work = partial(_recognize, recognition=recognition)
    if recognition.jobs == 1 or len(stretches) < 2:
        yield from map(work, stretches)
        return
    with ProcessPoolExecutor(recognition.jobs, mp_context=fresh_processes()) as pool:
        yield from pool.map(work, stretches)


def _read_known(path: Path) -> dict[str, list[RecognizedWord]]:
    known = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the end of a recognition that was killed
            known[entry["key"]] = [RecognizedWord(*word) for word in entry["words"]]
    return known


def recognize_speech(run: RunFolder, recognition: Recognition) -> dict[int, list[TimedWord]]:
    """Recognise the speech of a run.

    Returns:
        Words by index of the utterance, in order; a word's time is when it has been played to its
        end. Utterances without speech have none.

    Raises:
        ValueError: the run wrote text, or a wav is missing.
    """
    if not run.is_speech:
        raise ValueError(f"{run.path} holds no speech that could be recognised")
    stretches: dict[int, list[Stretch]] = {}
    playbacks: dict[int, Playback] = {}
    for item in run.utterances:
        stretches[item.index] = []
        if not item.delays:
            continue
        if not item.wav_path.is_file():
            raise ValueError(f"{run.path}: utterance {item.index} spoke, but {item.wav_path} is "
                             "missing")  # fmt: skip
        samples, rate = soundfile.read(item.wav_path, dtype="float32", always_2d=True)
        playbacks[item.index] = Playback.of(item, rate)
        stretches[item.index] = [
            Stretch(str(item.wav_path), *part) for part in find_stretches(samples.mean(1), rate)
        ]
    path = run.path / WORDS_FILE
    known = _read_known(path)
    keys = {part: _key(part, recognition) for parts in stretches.values() for part in parts}
    unknown = [part for part, key in keys.items() if key not in known]
    bar = tqdm(
        _recognize_all(unknown, recognition),
        total=len(unknown),
        desc=f"recognising {run.name}",
        disable=None if unknown else True,
    )
    for part, words in zip(unknown, bar, strict=True):
        known[keys[part]] = words
        listed = [[word.text, word.start_ms, word.end_ms] for word in words]
        # What a killed recognition left behind stays a line by itself.
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"key": keys[part], "words": listed}))
    return {
        index: [
            TimedWord(
                word.text.lower(),
                *playbacks[index].times(
                    part.start + word.end_ms * playbacks[index].sample_rate / 1000
                ),
            )
            for part in parts
            for word in known[keys[part]]
        ]
        for index, parts in stretches.items()
    }
