"""Speech to train on, and clips that join it.

Two kinds of folders are read, again and again while others still fill them: of aligned speech with
``*.jsonl`` (``id``, ``text``, ``file``), whose translations stand in a table, and of plain sound
files, which have no text and serve distillation alone.

All speech lies in one tensor on the device that trains. What a clip holds is drawn in Python, and
its sound is made on the device, changed speeds included. So nothing waits for a loader.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from echostream.streaming import from_host
from echostream.whisper.plain_texts import plain_source

RATE = 16000
LONGEST_S = 12.0  # of one utterance
# Clips of a batch have one of these lengths at most, silence behind not counted: where there are
# few shapes, a product's code is compiled once for each.
LENGTHS_S = (5.0, 6.5, 8.0, 9.5, 11.0, 13.5)
FILLED = 0.85  # of a length, on average
SILENCES_S = (0.2, 0.5, 1.0)  # behind a clip
DRAWS = 20  # for an utterance that fits
HALF_TAPS = 8  # of the filter that changes speeds, on either side


@dataclass(frozen=True)
class Speech:
    """One utterance.

    Attributes:
        start, length: its samples in the pool's tensor.
        source, target: plain transcript and translation; None for audio alone.
        text: the transcript as it is written.
        weight: how often it is drawn, beside others.
    """

    start: int
    length: int
    source: str | None = None
    target: str | None = None
    text: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Clip:
    """Utterances one after another, as they are to sound.

    Attributes:
        length: samples, the silence behind included.
        parts: first and last sample of each utterance.
        speech: the utterances; one that is played faster fills fewer samples than it has.
    """

    length: int
    parts: tuple[tuple[int, int], ...]
    speech: tuple[Speech, ...]


@dataclass(frozen=True)
class Batch:
    """Clips, and what the longest of them may have: (B, size) samples are the same for all batches
    of a length."""

    clips: tuple[Clip, ...]
    size: int


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
        device: where the samples lie.

    Attributes:
        samples: (T,) int16 of all utterances, on the device.
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
        device: torch.device | str = "cpu",
    ) -> None:
        self.aligned, self.plain = aligned, plain
        self.translations, self.split, self.language = translations, split, language
        self.weights = dict(weights or {})
        self.texts: list[Speech] = []
        self.sounds: list[Speech] = []
        self.samples = torch.zeros(0, dtype=torch.int16, device=device)
        self._known: set[str] = set()
        self._end = 0

    def refresh(self) -> int:
        """Read what is new; how many utterances that were."""
        before = len(self._known)
        new = [*self._new_texts(), *self._new_sounds()]
        kept: list[Tensor] = []
        # Decoding does not hold Python's lock, so every core decodes.
        with ThreadPoolExecutor() as threads:
            heard = threads.map(read_speech, [path for path, _ in new])
            for (_, speech), samples in zip(new, heard, strict=True):
                pool, least = (self.sounds, 0.5) if speech.source is None else (self.texts, 0.0)
                if not least * RATE < len(samples) < LONGEST_S * RATE:
                    continue
                pool.append(replace(speech, start=self._end, length=len(samples)))
                self._end += len(samples)
                kept.append(torch.from_numpy(samples))
        if kept:
            self.samples = torch.cat([self.samples, torch.cat(kept).to(self.samples.device)])
        return len(self._known) - before

    def _new_texts(self) -> Iterator[tuple[Path, Speech]]:
        """Files of aligned speech that are not known yet, and what is said in them."""
        for folder in self.aligned:
            weight = self.weights.get(folder, 1.0)
            for table in sorted(folder.glob("*.jsonl")):
                for line in table.read_text(encoding="utf-8").splitlines():
                    try:
                        entry = json.loads(line)
                    except ValueError:  # a line that is being written
                        continue
                    name, text = entry["id"], entry["text"]
                    if name.startswith(self.split) and self._is_new(f"{folder}/{name}"):
                        source = plain_source(text, self.language)
                        target = self.translations.get(name)
                        yield folder / entry["file"], Speech(0, 0, source, target, text, weight)

    def _new_sounds(self) -> Iterator[tuple[Path, Speech]]:
        for folder in self.plain:
            for path in sorted(folder.glob("*.wav")):
                if self._is_new(str(path)):
                    yield path, Speech(0, 0)

    def _is_new(self, name: str) -> bool:
        """Whether it is heard of for the first time."""
        if name in self._known:
            return False
        self._known.add(name)
        return True

    @property
    def hours(self) -> tuple[float, float]:
        """With text, and without."""
        both = (self.texts, self.sounds)
        with_text, without = (sum(s.length for s in pool) / RATE / 3600 for pool in both)
        return with_text, without


def draw_batch(
    pool: SpeechPool,
    seconds: float,
    rng: random.Random,
    *,
    sounds: float = 0.3,
    speed: float = 0.0,
    step: int = 1,
) -> Batch:
    """Clips of similar length, as many of each length, that hold about so many seconds in all.

    Args:
        sounds: share of clips without text, if there are any.
        speed: each utterance is played up to this much faster or slower, pitch and all.
        step: sizes are multiples of so many samples.
    """
    only_sounds = bool(pool.sounds) and rng.random() < sounds
    source = pool.sounds if only_sounds else pool.texts
    # Added up anew for each batch, because the pool grows.
    shares = list(accumulate(one.weight for one in source))
    longest = rng.choice(LENGTHS_S)
    count = max(1, round(seconds / (FILLED * longest)))
    clips = tuple(_join(source, shares, longest, rng, speed) for _ in range(count))
    # Where nothing was short enough, a clip is longer than it should be.
    size = max(*(clip.length for clip in clips), int(RATE * (longest + max(SILENCES_S))))
    return Batch(clips, -(-size // step) * step)


def _join(
    source: list[Speech], shares: list[float], longest: float, rng: random.Random, speed: float
) -> Clip:
    """Utterances up to a length, at least one, with pauses between and silence behind."""
    parts: list[tuple[int, int]] = []
    chosen: list[Speech] = []
    position, most = 0, int(longest * RATE)
    while not chosen or position < most * 0.6:
        pause = int(RATE * (0.0 if rng.random() < 0.3 else rng.uniform(0, 0.6)))
        # The first one may be drawn again until it fits; the clip ends before another that does
        # not.
        for _ in range(1 if chosen else DRAWS):
            [one] = rng.choices(source, cum_weights=shares)
            length = round(one.length / rng.uniform(1.0 - speed, 1.0 + speed))
            if position + pause + length <= most:
                break
        if chosen and position + pause + length > most:
            break
        parts.append((position + pause, position + pause + length))
        position += pause + length
        chosen.append(one)
    return Clip(position + int(RATE * rng.choice(SILENCES_S)), tuple(parts), tuple(chosen))


def sound(samples: Tensor, batch: Batch) -> Tensor:
    """(B, size) float32 of a batch, made where the pool's samples are.

    Speeds change by a windowed sinc of 16 taps (Hann), cut off at the lower of both rates.
    Utterances at their own speed stay as they are.
    """
    rows, starts, ends, sources, lengths = zip(
        *(
            (row, start, end, one.start, one.length)
            for row, clip in enumerate(batch.clips)
            for (start, end), one in zip(clip.parts, clip.speech, strict=True)
        ),
        strict=True,
    )
    device = samples.device
    total = sum(ends) - sum(starts)
    table = from_host([rows, starts, ends, sources, lengths], device)
    counts = table[2] - table[1]
    # One entry for each sample that somebody speaks: of which utterance, and the how manieth.
    part = torch.repeat_interleave(counts, output_size=total)
    place = torch.arange(total, device=device) - (counts.cumsum(0) - counts)[part]
    ratio = table[4].double() / counts
    at = place * ratio[part]
    base = at.floor().long()
    rest = (at - base).float()
    cutoff = (1.0 / ratio).clamp(max=1.0).float()[part]
    last, source = table[4][part] - 1, table[3][part]
    spoken = torch.zeros(total, device=device)
    for tap in range(1 - HALF_TAPS, HALF_TAPS + 1):
        away = rest - tap
        window = 0.5 + 0.5 * torch.cos(math.pi * away / HALF_TAPS)
        weight = cutoff * torch.sinc(cutoff * away) * window
        index = base + tap
        heard = samples[source + index.clamp(min=0).minimum(last)].float()
        spoken += heard * weight * ((index >= 0) & (index <= last))
    out = torch.zeros(len(batch.clips) * batch.size, device=device)
    out[table[0][part] * batch.size + table[1][part] + place] = spoken / 32768.0
    return out.view(len(batch.clips), batch.size)
