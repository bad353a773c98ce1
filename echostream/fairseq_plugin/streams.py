"""Streams of several sentences, joined from utterances on the fly.

A translator of streams must learn what a data set of utterances does not hold: where a sentence
ends, what a pause is, and that noise says nothing. Every epoch deals the utterances anew into
streams: some of one sentence, some of many; one speaker or several; pauses of random length that
carry on the recordings' own background, digital silence or other noise; a noise floor running
through; stretches of sound that nobody spoke.

The texts of the CTC heads get an end-of-sentence symbol behind each sentence. The text decoder and
the unit decoder keep one row per sentence, since they live sentence by sentence.

Shapes: B streams, N sentences, T filterbank frames, F mel bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from echostream.config import FrontendConfig
from echostream.fairseq_plugin.data_config import ASR_TASK, ST_TASK
from echostream.fairseq_plugin.dataset import EchoStreamDataset, Utterance, pad_rows
from echostream.fairseq_plugin.losses import ctc_frames_needed
from echostream.fairseq_plugin.nonspeech import DB, FLOOR, NonspeechPool, mix, speech_span
from echostream.fairseq_plugin.sentences import SUBSAMPLING
from echostream.fairseq_plugin.source_features import load_features, spec_augment
from echostream.text import Vocabulary

SHORT_PAUSE = 0.4  # share of pauses that are hardly any
SHORT_PAUSE_MS = 200
NO_PAUSE = 0.3  # share of joins where one sentence's speech touches the next one's
KEEP_SPEAKER = 0.5  # share of utterances that are joined with others of their speaker
STRETCH = 0.15  # share of pauses that hold a sound without speech
STRETCH_MS = (1000, 6000)
STRETCH_DB = (-45.0, -8.0)
NOISE_FLOOR = 0.6  # share of streams with a noise floor running through
NOISE_FLOOR_DB = (-75.0, -42.0)
EDGE_FRAMES = 3  # kept around an utterance's speech where another one follows or precedes
TIGHT = 0.4  # share of streams that begin right with speech, but for their first pause
# Frames of its first speech that a tight stream may lack: a boundary that was noticed late.
LATE_START_FRAMES = 12
ONSET = 0.4  # share of streams that break off as another sentence begins
ONSET_MS = 400


@dataclass(frozen=True)
class StreamOptions:
    """How utterances become streams.

    Attributes:
        sentences: most of them in one stream.
        frames: filterbank frames of the longest stream, unless one sentence alone is longer.
        pause_ms: longest pause between the speech of two utterances.
        single_share: share of streams that hold one sentence.
    """

    sentences: int
    frames: int = 2400
    pause_ms: int = 2000
    single_share: float = 0.3

    def __post_init__(self) -> None:
        if self.sentences < 1 or self.frames < 1 or self.pause_ms < 0:
            raise ValueError(
                "streams need at least one sentence and one frame, and no negative pauses; got "
                f"{self.sentences} sentences, {self.frames} frames, {self.pause_ms} ms"
            )
        if not 0 <= self.single_share <= 1:
            raise ValueError(
                f"the share of single sentences must be between 0 and 1, got {self.single_share}"
            )


@dataclass(frozen=True)
class StreamPlan:
    """One stream of an epoch, before anything is loaded.

    Attributes:
        seed: of everything drawn for it.
        rows: utterances in order.
        pauses: frames before each utterance and behind the last one.
        stretches: of these frames, how many hold a sound, in the middle of each pause.
        onset: an utterance whose beginning ends the stream, and how many frames of it; or None.
        frames: of the whole stream at most; the utterances' own edges are cut where they meet.
    """

    seed: tuple[int, ...]
    rows: tuple[int, ...]
    pauses: tuple[int, ...]
    stretches: tuple[int, ...]
    onset: tuple[int, int] | None
    frames: int


def plan_epoch(
    frames: np.ndarray,
    speakers: list[str],
    options: StreamOptions,
    shift_ms: float,
    seed: tuple[int, ...],
) -> list[StreamPlan]:
    """Deal every utterance to one stream.

    Args:
        frames: of each utterance.
        speakers: of each utterance; empty names are nobody's.
        shift_ms: duration of a frame.
        seed: all that the plan depends on.
    """
    rng = np.random.default_rng(seed)
    plans: list[StreamPlan] = []
    rows: list[int] = []
    wanted, total = 0, 0

    def close() -> None:
        if rows:
            plans.append(_draw_pauses(rows, frames, options, shift_ms, (*seed, len(plans))))

    for row, same in _deal(speakers, rng):
        longer = total + frames[row]
        if not rows or len(rows) >= wanted or longer > options.frames or not same:
            close()
            rows, total = [], 0
            single = options.sentences == 1 or rng.random() < options.single_share
            wanted = 1 if single else int(rng.integers(2, options.sentences + 1))
        rows.append(row)
        total += int(frames[row]) + int(0.5 * options.pause_ms / shift_ms)
    close()
    return plans


def _deal(speakers: list[str], rng: np.random.Generator) -> Iterator[tuple[int, bool]]:
    """All utterances in random order, and whether each may follow the one before: one part by
    speaker, the other mixed."""
    order = rng.permutation(len(speakers))
    kept = rng.random(len(speakers)) < KEEP_SPEAKER
    named = [row for row in order if kept[row] and speakers[row]]
    mixed = [row for row in order if not (kept[row] and speakers[row])]
    by_speaker = sorted(named, key=lambda row: speakers[row])  # stable: random within a speaker
    for part, apart in ((by_speaker, True), (mixed, False)):
        for index, row in enumerate(part):
            changed = apart and index and speakers[row] != speakers[part[index - 1]]
            yield int(row), bool(index) and not changed


def _draw_pauses(
    rows: list[int],
    frames: np.ndarray,
    options: StreamOptions,
    shift_ms: float,
    seed: tuple[int, ...],
) -> StreamPlan:
    rng = np.random.default_rng(seed)
    pauses, stretches = [], []
    for gap in range(len(rows) + 1):
        longest = SHORT_PAUSE_MS if rng.random() < SHORT_PAUSE else options.pause_ms
        pause = int(rng.uniform(0, min(longest, options.pause_ms)) / shift_ms)
        stretch = 0
        if options.pause_ms and rng.random() < STRETCH:
            stretch = int(rng.uniform(*STRETCH_MS) / shift_ms)
        if rng.random() < NO_PAUSE and 0 < gap < len(rows):
            pause = stretch = 0
        pauses.append(pause + stretch)
        stretches.append(stretch)
    onset = None
    if rng.random() < ONSET:
        onset = (int(rng.integers(len(frames))), int(rng.uniform(0, ONSET_MS) / shift_ms))
        if rng.random() < NO_PAUSE:
            pauses[-1] = stretches[-1] = 0
    total = int(sum(frames[row] for row in rows)) + sum(pauses)
    if onset is not None:
        total += EDGE_FRAMES + onset[1]
    return StreamPlan(seed, tuple(rows), tuple(pauses), tuple(stretches), onset, total)


def _edge(pause: int) -> int:
    """Frames kept on either side of a join: recordings that touch keep nothing but speech."""
    return EDGE_FRAMES if pause else 0


@dataclass(frozen=True)
class Stream:
    """One item.

    Attributes:
        features: (T, F) float32, normalised.
        sentences: what is said, in order; their features stay empty.
        spans: first frame of each sentence's speech and the one behind its last.
        clean: (T, F) before noise, level and masks, not normalised; None unless it is kept.
    """

    index: int
    features: torch.Tensor
    sentences: tuple[Utterance, ...]
    spans: tuple[tuple[int, int], ...]
    clean: torch.Tensor | None = None


class StreamDataset(EchoStreamDataset):
    """A split, dealt into streams; see the module. Built by :meth:`load` of its parent, then
    given its options by :meth:`join`."""

    ends_sentences = True
    options: StreamOptions
    pool: NonspeechPool

    def join(self, options: StreamOptions, frontend: FrontendConfig) -> StreamDataset:
        """Set how streams are made. Splits that are not for training keep one dealing."""
        self.options, self.shift_ms = options, frontend.shift_ms
        self.pool = NonspeechPool.synthesize(frontend, self.seed)
        self.row_frames = self.frames
        self.set_epoch(1)
        return self

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        drawn = epoch if self.shuffle else 0
        self.plans = plan_epoch(
            self.row_frames,
            [row.speaker for row in self.rows],
            self.options,
            self.shift_ms,
            (self.seed, drawn),
        )
        self.frames = np.array([plan.frames for plan in self.plans], dtype=np.int64)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return not self.shuffle  # every epoch has other streams

    def __len__(self) -> int:
        return len(self.plans)

    def size(self, index: int) -> tuple[int, int]:
        units = max(len(self.rows[row].units) for row in self.plans[index].rows)
        return int(self.frames[index]), units

    def where(self, index: int) -> str:
        rows = self.plans[index].rows
        lines = ", ".join(str(self.rows[row].line) for row in rows)
        return f"{self.manifest}, line{'s' if len(rows) > 1 else ''} {lines}"

    def _load(self, row: int) -> np.ndarray:
        entry = self.rows[row]
        where = f"{self.manifest}, line {entry.line}"
        return load_features(entry.features, frames=entry.frames, bins=self.data.bins, where=where)

    def _least_frames(self, row: int) -> int:
        """Filterbank frames without which the CTC heads could not say the row's texts and ends."""
        identifier = self.rows[row].id
        texts = (self.text(task, identifier) for task in (ASR_TASK, ST_TASK))
        return SUBSAMPLING * (max(ctc_frames_needed(text) for text in texts) + 2)

    # An item is a stream here, where it is an utterance in the base.
    def __getitem__(self, index: int) -> Stream:  # type: ignore[override]
        plan = self.plans[index]
        rng = np.random.default_rng((*plan.seed, 1))
        pieces = [self._load(row) for row in plan.rows]
        spans: list[tuple[int, int]] = []
        pieces_at: list[tuple[int, int]] = []
        background = rng.choice(["own", "silence", "noise"], p=[0.6, 0.2, 0.2])
        noise_db = rng.uniform(*NOISE_FLOOR_DB)
        tight = rng.random() < TIGHT  # as behind a boundary that another sentence precedes
        parts: list[np.ndarray] = []
        position = 0
        for gap, (pause, stretch) in enumerate(zip(plan.pauses, plan.stretches, strict=True)):
            before = pieces[gap - 1] if gap else None
            after = pieces[gap] if gap < len(pieces) else None
            if background == "own":
                filled = self.pool.extend(before, after, pause, rng)
            elif background == "noise":
                filled = self.pool.draw(pause, noise_db, rng, ("white", "coloured", "hum"))
            else:
                filled = np.full((pause, self.data.bins), FLOOR, dtype=np.float32)
            if stretch:
                first = (pause - stretch) // 2
                sound = self.pool.draw(stretch, rng.uniform(*STRETCH_DB), rng)
                filled[first : first + stretch] = mix(filled[first : first + stretch], sound)
            parts.append(filled)
            position += pause
            if after is not None:
                first, last = speech_span(after)
                # Recordings begin and end in silence, sentences of one speech need not.
                start = max(first - _edge(plan.pauses[gap]), 0) if gap else 0
                if tight and not gap:
                    start = max(first + int(rng.integers(-EDGE_FRAMES, LATE_START_FRAMES)), 0)
                goes_on = gap + 1 < len(pieces) or plan.onset is not None
                stop = last + _edge(plan.pauses[gap + 1]) if goes_on else len(after)
                if stop - start < self._least_frames(plan.rows[gap]):
                    # Where speech was not found as it should, nothing is cut.
                    start, stop, first, last = 0, len(after), 0, len(after)
                spans.append((position + max(first - start, 0), position + last - start))
                parts.append(after[start:stop])
                pieces_at.append((position, position + len(parts[-1])))
                position += len(parts[-1])
        if plan.onset is not None:
            row, length = plan.onset
            beginning = self._load(row)
            first = speech_span(beginning)[0]
            edge = _edge(plan.pauses[-1])
            parts.append(beginning[max(first - edge, 0) : first + length])
        features = np.concatenate(parts)
        clean = torch.from_numpy(features) if self.keep_clean else None
        if rng.random() < NOISE_FLOOR:
            floor = self.pool.draw(
                len(features), rng.uniform(*NOISE_FLOOR_DB), rng, ("white", "coloured", "hum")
            )
            features = mix(features, floor)
        # Recordings differ in level; streams as a whole do too.
        features = np.maximum(features + np.float32(rng.uniform(-6.0, 2.0) * DB), FLOOR)
        if self.normalise:
            features = (features - self.mean) / self.std
        if self.specaugment is not None:
            for start, stop in pieces_at:
                features[start:stop] = spec_augment(features[start:stop], self.specaugment, rng)
        return Stream(
            int(index),
            torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)),
            tuple(self.targets(row) for row in plan.rows),
            tuple(spans),
            clean,
        )

    def collater(self, samples: list[Stream]) -> dict[str, Any]:  # type: ignore[override]
        """Batch of streams: as for utterances, but text decoder and units have a row per sentence,
        and ``net_input["sentences"]`` (N, 3) tells where each one is: stream, first frame of its
        speech, the frame behind its last."""
        if not samples:
            return {}
        batch = super().collater([sentence for sample in samples for sentence in sample.sentences])
        eos = torch.tensor([Vocabulary.eos])
        pad = Vocabulary.pad
        for task in (ASR_TASK, ST_TASK):
            # A stream whose words are not all known teaches its CTC heads nothing.
            joined = [
                torch.cat([torch.cat([s.texts[task], eos]) for s in sample.sentences])
                if all(len(s.texts[task]) for s in sample.sentences)
                else eos[:0]
                for sample in samples
            ]
            batch["texts"][task] = {
                "target": pad_rows(joined, pad),
                "target_lengths": torch.tensor([len(row) for row in joined]),
            }
        features = [sample.features for sample in samples]
        batch["id"] = torch.tensor([sample.index for sample in samples])
        clean = [sample.clean for sample in samples if sample.clean is not None]
        if clean:
            batch["clean"] = pad_rows(clean, 0)
        batch["net_input"] |= {
            "src_tokens": pad_rows(features, 0),
            "src_lengths": torch.tensor([len(row) for row in features]),
            "sentences": torch.tensor(
                [(row, *span) for row, s in enumerate(samples) for span in s.spans]
            ),
        }
        return batch
