"""Speech to train on, and clips that join it.

Two kinds of folders are read, again and again while others still fill them: of aligned speech with
``*.jsonl`` (``id``, ``text``, ``file``), whose translations stand in a table, and of plain sound
files, which have no text and serve distillation alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import soundfile
import soxr

from echostream.whisper.plain_texts import plain_source

RATE = 16000
LONGEST_S = 12.0  # of one utterance
# Clips of a batch are about as long as one of these: where there are few shapes, a product's code
# is compiled once for each.
LENGTHS_S = (3.5, 5.0, 6.5, 8.0, 9.5, 11.0)
FILLED = 0.85  # of a length, on average


@dataclass(frozen=True)
class Speech:
    """One utterance.

    Attributes:
        samples: (T,) int16 at 16 kHz.
        source, target: plain transcript and translation; None for audio alone.
        text: the transcript as it is written.
        weight: how often it is drawn, beside others.
    """

    samples: np.ndarray
    source: str | None = None
    target: str | None = None
    text: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Clip:
    """Utterances one after another.

    Attributes:
        samples: (T,) float32.
        parts: first and last sample of each utterance.
        speech: the utterances.
    """

    samples: np.ndarray
    parts: tuple[tuple[int, int], ...]
    speech: tuple[Speech, ...]


def read_speech(path: Path) -> np.ndarray:
    """A sound file as (T,) int16 at 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32")
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if rate != RATE:
        samples = soxr.resample(samples, rate, RATE)
    return (np.clip(samples, -1, 1) * 32767).astype(np.int16)


class SpeechPool:
    """The speech of several folders, read as far as it is there.

    Args:
        aligned: folders with ``*.jsonl``; utterances whose id begins with ``split``.
        plain: folders of sound files.
        translations: by id.
        split: which ids are taken.
        language: of the speech, in which numbers are spelled.
        weights: by folder with ``*.jsonl``, how often its speech is drawn beside that of a folder
            that is not named.
    """

    def __init__(
        self,
        aligned: list[Path],
        plain: list[Path],
        translations: Mapping[str, str],
        split: str = "train_",
        *,
        language: str = "es",
        weights: Mapping[Path, float] | None = None,
    ) -> None:
        self.aligned, self.plain = aligned, plain
        self.translations, self.split, self.language = translations, split, language
        self.weights = dict(weights or {})
        self.texts: list[Speech] = []
        self.sounds: list[Speech] = []
        self._known: set[str] = set()

    def refresh(self) -> int:
        """Read what is new; how many utterances that were."""
        before = len(self._known)
        for folder in self.aligned:
            for table in sorted(folder.glob("*.jsonl")):
                for line in table.read_text(encoding="utf-8").splitlines():
                    self._add_aligned(folder, line)
        for folder in self.plain:
            for path in sorted(folder.glob("*.wav")):
                if str(path) not in self._known:
                    self._known.add(str(path))
                    samples = read_speech(path)
                    if 0.5 * RATE < len(samples) < LONGEST_S * RATE:
                        self.sounds.append(Speech(samples))
        return len(self._known) - before

    def _add_aligned(self, folder: Path, line: str) -> None:
        try:
            entry = json.loads(line)
        except ValueError:  # a line that is being written
            return
        name = f"{folder}/{entry['id']}"
        if name in self._known or not entry["id"].startswith(self.split):
            return
        self._known.add(name)
        samples = read_speech(folder / entry["file"])
        if len(samples) < LONGEST_S * RATE:
            target = self.translations.get(entry["id"])
            source = plain_source(entry["text"], self.language)
            weight = self.weights.get(folder, 1.0)
            self.texts.append(Speech(samples, source, target, entry["text"], weight))

    @property
    def hours(self) -> tuple[float, float]:
        """With text, and without."""
        both = (self.texts, self.sounds)
        with_text, without = (sum(len(s.samples) for s in pool) / RATE / 3600 for pool in both)
        return with_text, without


def draw_batch(
    pool: SpeechPool,
    seconds: float,
    rng: random.Random,
    *,
    sounds: float = 0.3,
    speed: float = 0.0,
) -> list[Clip]:
    """Clips of similar length, as many of each length, that hold about so many seconds in all.

    Args:
        sounds: share of clips without text, if there are any.
        speed: each utterance is played up to this much faster or slower, pitch and all.
    """
    only_sounds = bool(pool.sounds) and rng.random() < sounds
    source = pool.sounds if only_sounds else pool.texts
    # Added up anew for each batch, because the pool grows.
    shares = list(accumulate(one.weight for one in source))
    longest = rng.choice(LENGTHS_S)
    count = max(1, round(seconds / (FILLED * longest)))
    return [_join(source, shares, longest, rng, speed) for _ in range(count)]


def _join(
    source: list[Speech], shares: list[float], longest: float, rng: random.Random, speed: float
) -> Clip:
    """Utterances up to a length, at least one, with pauses between and silence behind."""
    parts: list[tuple[int, int]] = []
    pieces: list[np.ndarray] = []
    chosen: list[Speech] = []
    position = 0
    while not chosen or position < longest * RATE * 0.6:
        [one] = rng.choices(source, cum_weights=shares)
        if speed:
            factor = rng.uniform(1.0 - speed, 1.0 + speed)
            one = replace(one, samples=soxr.resample(one.samples, RATE * factor, RATE, "MQ"))
        if chosen and position + len(one.samples) > longest * RATE:
            break
        pause = np.zeros(int(RATE * (0.0 if rng.random() < 0.3 else rng.uniform(0, 0.6))), "int16")
        pieces += [pause, one.samples]
        position += len(pause)
        parts.append((position, position + len(one.samples)))
        position += len(one.samples)
        chosen.append(one)
    pieces.append(np.zeros(int(RATE * rng.choice([0.2, 0.5, 1.0])), "int16"))
    samples = np.concatenate(pieces).astype(np.float32) / 32768.0
    return Clip(samples, tuple(parts), tuple(chosen))
