"""A gate before a model that knows no ends of sentences: what is not speech becomes quiet.

Such models were trained on single utterances. They find a pause where no token comes for a while,
and noise makes them emit tokens. The gate listens with a voice activity detector, window by window,
and turns down what is no speech, so that a pause is one. It lets through what comes shortly before
and after speech, and delays the source by :data:`LOOK_AHEAD` windows for that.

The detector is Silero's, a network of 2 MB that its wheel brings along. It takes its state as an
argument, so any number of streams share it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from echostream.samples import Resampler, ResamplerState, check_same_rate

DETECTOR_RATE = 16_000
WINDOW_SAMPLES = 512  # 32 ms, what Silero's network takes
LOOK_AHEAD = 3  # windows before speech that stay: its onset is noticed late
HANG_OVER = 8  # windows after speech that stay: its end fades
QUIET_GAIN = 10 ** (-40 / 20)
CHOICES = ("auto", "on", "off")
_SILERO_CONTEXT = 64  # samples of the window before that its network sees again
_SILERO_THRESHOLD = 0.5


class Detector(Protocol):
    """Says of windows in a row whether they are speech; its state is its own affair."""

    def init_state(self) -> Any: ...

    def step(self, window: np.ndarray, state: Any) -> tuple[bool, Any]:
        """(WINDOW_SAMPLES,) float32 at DETECTOR_RATE to whether it is speech."""


@dataclass(frozen=True)
class SileroState:
    """
    Attributes:
        memory: (2, 1, 128) of the network.
        context: (64,) last samples of the window before.
    """

    memory: np.ndarray
    context: np.ndarray


class SileroDetector:
    """Silero's voice activity detector; any number of streams share it.

    Args:
        path: its network in ONNX.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._rate = np.array(DETECTOR_RATE, dtype=np.int64)

    def init_state(self) -> SileroState:
        return SileroState(
            np.zeros((2, 1, 128), dtype=np.float32), np.zeros(_SILERO_CONTEXT, dtype=np.float32)
        )

    def step(self, window: np.ndarray, state: SileroState) -> tuple[bool, SileroState]:
        heard = np.concatenate([state.context, window]).astype(np.float32)
        probability, memory = self._session.run(
            None, {"input": heard[None], "state": state.memory, "sr": self._rate}
        )
        following = SileroState(memory, heard[-_SILERO_CONTEXT:])
        return bool(probability[0, 0] >= _SILERO_THRESHOLD), following


@dataclass(frozen=True)
class GateState:
    """What the gate remembers of a stream.

    Attributes:
        rate: of the source, in Hz; None before the first samples.
        waiting: (T,) source samples from window ``window`` on.
        window: the next one to be let through.
        resampler, detector: states of these.
        unheard: samples at the detector's rate that do not fill a window yet.
        speech: whether the windows from ``first`` on are speech.
        first: index of the first of them.
        gain: at the end of what was let through.
    """

    rate: int | None = None
    waiting: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    window: int = 0
    resampler: ResamplerState | None = None
    detector: Any = None
    unheard: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    speech: tuple[bool, ...] = ()
    first: int = 0
    gain: float = 1.0


class SpeechGate:
    """Turns down what is no speech; any number of streams share it.

    Args:
        detector: tells speech.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._resampler = lru_cache(maxsize=8)(lambda rate: Resampler(rate, DETECTOR_RATE))

    def init_state(self) -> GateState:
        return GateState(detector=self.detector.init_state())

    def step(
        self, samples: np.ndarray, rate: int, state: GateState, *, final: bool = False
    ) -> tuple[np.ndarray, GateState]:
        """Take in (T,) source samples and let through what is decided.

        Returns:
            (T',) samples: all of them come out in the end, none twice, however they were cut.
        """
        check_same_rate(state.rate, rate)
        resampler = self._resampler(rate)
        before = state.resampler or resampler.init_state()
        heard, following = resampler.step(np.asarray(samples, np.float32), before, final=final)
        state = replace(
            state,
            rate=rate,
            waiting=np.concatenate([state.waiting, samples]).astype(np.float32),
            resampler=following,
        )
        state = self._detect(heard, state, final)
        return self._let_through(state, final)

    def _detect(self, heard: np.ndarray, state: GateState, final: bool) -> GateState:
        unheard = np.concatenate([state.unheard, heard])
        if final and len(unheard) % WINDOW_SAMPLES:
            unheard = np.pad(unheard, (0, -len(unheard) % WINDOW_SAMPLES))
        speech, detector = list(state.speech), state.detector
        whole = len(unheard) // WINDOW_SAMPLES * WINDOW_SAMPLES
        for begin in range(0, whole, WINDOW_SAMPLES):
            found, detector = self.detector.step(unheard[begin : begin + WINDOW_SAMPLES], detector)
            speech.append(found)
        return replace(state, speech=tuple(speech), detector=detector, unheard=unheard[whole:])

    def _let_through(self, state: GateState, final: bool) -> tuple[np.ndarray, GateState]:
        assert state.rate is not None
        heard = state.first + len(state.speech)
        pieces, gain, window, waiting = [], state.gain, state.window, state.waiting
        while window + LOOK_AHEAD < heard or (final and window < heard):
            count = self._edge(window + 1, state.rate) - self._edge(window, state.rate)
            piece, waiting = waiting[:count], waiting[count:]
            near = range(window - HANG_OVER, window + LOOK_AHEAD + 1)
            speech = any(
                state.speech[number - state.first]
                for number in near
                if state.first <= number < heard
            )
            wanted = 1.0 if speech else QUIET_GAIN
            # A ramp over the window: no click.
            ramp = np.linspace(gain, wanted, count + 1, dtype=np.float32)[1 : len(piece) + 1]
            pieces.append(piece * ramp)
            gain, window = wanted, window + 1
        if final:
            pieces.append(waiting * np.float32(gain))
            waiting = waiting[:0]
        first = max(window - HANG_OVER, 0)
        following = replace(
            state,
            waiting=waiting,
            window=window,
            gain=gain,
            speech=state.speech[first - state.first :],
            first=first,
        )
        return np.concatenate([*pieces, waiting[:0]]), following

    @staticmethod
    def _edge(window: int, rate: int) -> int:
        """Source samples up to the beginning of a window."""
        return -(-window * WINDOW_SAMPLES * rate // DETECTOR_RATE)


def silero_path() -> Path | None:
    """Silero's network as its wheel brings it, or None where it or onnxruntime is missing."""
    found = importlib.util.find_spec("silero_vad")
    if found is None or importlib.util.find_spec("onnxruntime") is None:
        return None
    for folder in found.submodule_search_locations or ():
        path = Path(folder) / "data" / "silero_vad.onnx"
        if path.is_file():
            return path
    return None


def open_gate(choice: str) -> SpeechGate | None:
    """The gate that ``--vad`` asks for; ``auto``: one if the detector is installed.

    Raises:
        ValueError: no such choice, or the detector is not installed.
    """
    if choice not in CHOICES:
        raise ValueError(f"--vad must be one of {', '.join(CHOICES)}, got {choice!r}")
    path = None if choice == "off" else silero_path()
    if path is not None:
        return SpeechGate(SileroDetector(path))
    if choice == "on":
        raise ValueError("silero-vad is not installed; pip install 'echostream[vad]'")
    return None


class GatedStream:
    """One stream's way through a gate, or past it.

    Args:
        gate: shared with other streams; None: everything passes as it is.
    """

    def __init__(self, gate: SpeechGate | None) -> None:
        self.gate = gate
        self.state = None if gate is None else gate.init_state()

    def push(self, samples: np.ndarray, rate: int, *, final: bool = False) -> np.ndarray:
        """(T,) samples to (T',) samples that are ready for the model."""
        if self.gate is None or self.state is None:
            return samples
        out, self.state = self.gate.step(samples, rate, self.state, final=final)
        return out
