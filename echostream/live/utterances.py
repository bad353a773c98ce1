"""A talk cut into utterances by a voice activity detector, for models that know no ends.

Such models were trained on utterances. Where the source pauses, the utterance is given to the model
as a whole one, with an end, and the next one begins afresh; what lies between is left out. Pauses
in the speech itself are a far better sign of an end than times without a token
(docs/notebook/sentence-ends.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from echostream.live.speech_gate import DETECTOR_RATE, WINDOW_SAMPLES, Detector
from echostream.samples import Resampler, ResamplerState, check_same_rate
from echostream.session import Session
from echostream.translator.pipeline import Pipeline
from echostream.translator.stream import Decision

END_WINDOWS = 9  # 288 ms without speech end an utterance
PRE_ROLL = 8  # windows before speech that belong to it: its onset is noticed late
LONGEST_WINDOWS = 625  # 20 s; beyond, the first window without speech ends an utterance
CUT_WINDOWS = 940  # 30 s; here it ends in any case


@dataclass(frozen=True)
class Piece:
    """Consecutive samples of an utterance.

    Attributes:
        start: place of the first in the source.
        samples: (T,) float32.
        opens, ends: the utterance begins and ends with them.
    """

    start: int
    samples: np.ndarray
    opens: bool
    ends: bool


@dataclass(frozen=True)
class CutterState:
    """What the cutter remembers of a stream.

    Attributes:
        rate: of the source, in Hz; None before the first samples.
        waiting: (T,) source samples from ``place`` on, of windows not judged yet and, between
            utterances, of the last few judged.
        place: of the first of them in the source.
        window: the next one to be judged.
        resampler, detector: states of these.
        unheard: samples at the detector's rate that do not fill a window yet.
        speaking: an utterance is under way.
        quiet, length: windows since its last speech, and all of it.
    """

    rate: int | None = None
    waiting: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    place: int = 0
    window: int = 0
    resampler: ResamplerState | None = None
    detector: Any = None
    unheard: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    speaking: bool = False
    quiet: int = 0
    length: int = 0


class UtteranceCutter:
    """Finds utterances; any number of streams share it.

    Args:
        detector: tells speech.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._resampler = lru_cache(maxsize=8)(lambda rate: Resampler(rate, DETECTOR_RATE))

    def init_state(self) -> CutterState:
        return CutterState(detector=self.detector.init_state())

    def step(
        self, samples: np.ndarray, rate: int, state: CutterState, *, final: bool = False
    ) -> tuple[list[Piece], CutterState]:
        """Take in (T,) source samples; the utterances they belong to, as far as it is decided."""
        check_same_rate(state.rate, rate)
        resampler = self._resampler(rate)
        before = state.resampler or resampler.init_state()
        heard, following = resampler.step(np.asarray(samples, np.float32), before, final=final)
        unheard = np.concatenate([state.unheard, heard])
        if final and len(unheard) % WINDOW_SAMPLES:
            unheard = np.pad(unheard, (0, -len(unheard) % WINDOW_SAMPLES))
        whole = len(unheard) // WINDOW_SAMPLES * WINDOW_SAMPLES
        state = replace(
            state,
            rate=rate,
            waiting=np.concatenate([state.waiting, samples]).astype(np.float32),
            resampler=following,
            unheard=unheard[whole:],
        )
        pieces: list[Piece] = []
        for begin in range(0, whole, WINDOW_SAMPLES):
            window = unheard[begin : begin + WINDOW_SAMPLES]
            speech, detector = self.detector.step(window, state.detector)
            piece, state = self._judge(speech, replace(state, detector=detector))
            pieces += piece
        if final and state.speaking:
            pieces.append(Piece(state.place, state.waiting, False, True))
            place = state.place + len(state.waiting)
            state = replace(state, waiting=state.waiting[:0], place=place, speaking=False)
        return list(_joined(pieces)), state

    def _judge(self, speech: bool, state: CutterState) -> tuple[list[Piece], CutterState]:
        """The next window is speech or not."""
        assert state.rate is not None
        rate = state.rate
        window, end = state.window, _edge(state.window + 1, rate)
        state = replace(state, window=window + 1)
        opens = speech and not state.speaking
        if not (speech or state.speaking):
            return [], _drop(state, _edge(window + 1 - PRE_ROLL, rate))
        if opens:
            state = _drop(state, _edge(window - PRE_ROLL, rate))
            state = replace(state, speaking=True, quiet=0, length=0)
        quiet, length = (0 if speech else state.quiet + 1), state.length + 1
        ends = (
            quiet >= END_WINDOWS
            or (quiet > 0 and length >= LONGEST_WINDOWS)
            or length >= CUT_WINDOWS
        )
        piece = Piece(state.place, state.waiting[: end - state.place], opens, ends)
        state = replace(_drop(state, end), quiet=quiet, length=length, speaking=not ends)
        return [piece], state


def _edge(window: int, rate: int) -> int:
    """Source samples up to the beginning of a window."""
    return max(-(-window * WINDOW_SAMPLES * rate // DETECTOR_RATE), 0)


def _drop(state: CutterState, place: int) -> CutterState:
    """Forget what waits before a place."""
    count = min(max(place - state.place, 0), len(state.waiting))
    return replace(state, waiting=state.waiting[count:], place=state.place + count)


def _joined(pieces: list[Piece]) -> Iterator[Piece]:
    """The same, with what belongs to one utterance in one piece."""
    held: list[Piece] = []
    for piece in pieces:
        held.append(piece)
        if piece.ends:
            yield _join(held)
            held = []
    if held:
        yield _join(held)


def _join(pieces: list[Piece]) -> Piece:
    samples = np.concatenate([piece.samples for piece in pieces])
    return Piece(pieces[0].start, samples, pieces[0].opens, pieces[-1].ends)


class SpokenSession:
    """A stream of utterances through a model that reads one at a time; like a
    :class:`~echostream.session.Session`, its decisions are in the source's time.

    Args:
        pipeline: shared with other streams; takes a stream for one sentence.
        cutter: shared with other streams.
        keep_tokens: see :class:`~echostream.session.Session`.
    """

    def __init__(
        self, pipeline: Pipeline, cutter: UtteranceCutter, *, keep_tokens: bool = True
    ) -> None:
        self.pipeline, self.cutter, self.keep_tokens = pipeline, cutter, keep_tokens
        self._state = cutter.init_state()
        self._session: Session | None = None
        self._begun_ms, self._before = 0.0, 0

    def push(self, samples: np.ndarray, sample_rate: int, *, final: bool = False) -> list[Decision]:
        """Push (T,) samples; returns the decisions."""
        decisions: list[Decision] = []
        pieces, self._state = self.cutter.step(samples, sample_rate, self._state, final=final)
        for piece in pieces:
            if piece.opens or self._session is None:
                self._session = Session(self.pipeline, keep_tokens=self.keep_tokens)
                self._begun_ms = 1000 * piece.start / sample_rate
            for output in self._session.push(piece.samples, sample_rate, final=piece.ends):
                last = output.final and final and piece is pieces[-1]
                decisions.append(
                    replace(
                        output,
                        source_ms=self._begun_ms + output.source_ms,
                        sentence=self._before + output.sentence,
                        final=last,
                    )
                )
            if piece.ends:
                self._before += len(self._session.sentences)
                self._session = None
        return decisions
