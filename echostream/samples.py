"""Samples in: reading, checking, stateful resampling, and cutting into filterbank windows.

Every stage computes from new samples only and equals processing the whole file. State is plain
data; the input state of a step is never changed. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from echostream.config import FrontendConfig
from echostream.files import atomic_path

# soxr's HQ filter reaches this many samples of the slower side of the conversion to either side;
# measured: beyond 82 the output differs by less than float32 rounding.
SOXR_REACH = 100
KALDI_SCALE = 2.0**15  # Kaldi computes on 16-bit integers
MIN_RATE, MAX_RATE = 4000, 384000


def read_audio(path: Path) -> tuple[np.ndarray, int]:
    """Read a sound file.

    Returns:
        float32 samples, (T,) or (T, channels), and the sample rate.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable sound file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such sound file: {path}")
    try:
        return soundfile.read(path, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: not a readable sound file: {error}") from error


@contextmanager
def sound_file(path: Path | None, rate: int) -> Iterator[Callable[[np.ndarray], object]]:
    """Yields what takes (T,) samples and writes a 16-bit WAV, which is in place when all of them
    are; without a path nothing is written."""
    if path is None:
        yield lambda samples: None
        return
    with (
        atomic_path(path) as temporary,
        soundfile.SoundFile(temporary, "w", rate, 1, subtype="PCM_16", format="WAV") as file,
    ):
        yield file.write


def check_samples(samples: object, position: int = 0) -> np.ndarray:
    """Turn one push of audio into clean mono float32.

    Integer PCM is scaled to [-1, 1], channels are averaged, values beyond full scale are kept
    (a float file may well exceed it; the filterbank copes).

    Args:
        samples: (T,) or (T, channels), float or integer.
        position: samples seen before, for the error message.

    Raises:
        ValueError: wrong shape, or a value that is not finite, with its position.
    """
    array = np.asarray(samples)
    if not array.size:
        array = array.astype(np.float32)
    elif array.dtype.kind == "i" and array.dtype.itemsize <= 4:
        array = array / np.float32(-float(np.iinfo(array.dtype).min))
    elif array.dtype.kind != "f":
        # A list of Python integers has no sample format, so its scale is unknown.
        raise ValueError(f"audio must be float or int8, int16 or int32, got {array.dtype}")
    if array.ndim == 2:
        if array.shape[1] > 64 or array.shape[1] == 0:
            raise ValueError(
                f"audio must be (samples,) or (samples, channels), got shape {array.shape}"
            )
        array = array.mean(axis=1)
    if array.ndim != 1:
        raise ValueError(
            f"audio must be (samples,) or (samples, channels), got shape {array.shape}"
        )
    array = array.astype(np.float32, copy=False)
    finite = np.isfinite(array)
    if not finite.all():
        index = int(np.argmin(finite))
        raise ValueError(
            f"audio sample {position + index} is {array[index]}; samples must be finite"
        )
    return array


def check_same_rate(before: int | None, now: int) -> None:
    """Raise ``ValueError`` if a stream's sample rate changes; ``before`` is None (or 0) at its
    start."""
    if before and before != now:
        raise ValueError(f"sample rate changed within a stream: {before} Hz before, {now} Hz now")


@dataclass(frozen=True)
class ResamplerState:
    """The recent input that the filter still needs.

    Attributes:
        recent: (T,) input samples from ``start`` on.
        start: index of the first of them, a multiple of the conversion's period.
        written: output samples handed out.
    """

    recent: np.ndarray
    start: int = 0
    written: int = 0


class Resampler:
    """Streaming sample-rate conversion, equal to soxr (quality HQ) on the whole signal.

    soxr's own streaming object buffers blocks of up to 110 ms and cannot be copied. The filter is
    linear, periodic in time and reaches a bounded distance, so each step converts a window of
    recent input instead and keeps the part that neither edge touches: latency is the filter's
    reach (6 ms), and the state is an array.

    Args:
        source_rate, target_rate: in Hz.
    """

    def __init__(self, source_rate: int, target_rate: int) -> None:
        for rate in (source_rate, target_rate):
            if not MIN_RATE <= rate <= MAX_RATE:
                raise ValueError(
                    f"sample rate must lie between {MIN_RATE} and {MAX_RATE} Hz, got {rate}"
                )
        self.source_rate, self.target_rate = source_rate, target_rate
        divisor = math.gcd(source_rate, target_rate)
        self.source_period = source_rate // divisor
        self.target_period = target_rate // divisor
        self.reach = math.ceil(SOXR_REACH * max(1.0, source_rate / target_rate))

    def init_state(self) -> ResamplerState:
        return ResamplerState(np.zeros(0, dtype=np.float32))

    def step(
        self, samples: np.ndarray, state: ResamplerState, *, final: bool = False
    ) -> tuple[np.ndarray, ResamplerState]:
        """Convert new samples; ``final`` flushes the filter's reach."""
        if self.source_rate == self.target_rate:
            return samples, state
        recent = np.concatenate([state.recent, samples])
        if not len(recent):
            return recent, state
        first = state.start // self.source_period * self.target_period
        if not final:
            settled = state.start + len(recent) - self.reach
            ready = max(settled, 0) * self.target_rate // self.source_rate
            if ready <= state.written:
                return recent[:0], ResamplerState(recent, state.start, state.written)
        converted = soxr.resample(recent, self.source_rate, self.target_rate, quality="HQ")
        end = first + len(converted) if final else ready
        out = converted[state.written - first : end - first]
        written = state.written + len(out)
        # The next window starts one reach before the next output, on a period boundary.
        needed = written * self.source_rate // self.target_rate - self.reach
        start = max(state.start, needed // self.source_period * self.source_period)
        return out, ResamplerState(recent[start - state.start :], start, written)


@dataclass(frozen=True)
class FrontendState:
    """Streaming state of :class:`Frontend`.

    Attributes:
        sample_rate: of the input so far; None before the first samples.
        received: input samples seen.
        resampler: filter state.
        pending: (T,) samples at the model's rate that start the next window.
        frames: filterbank frames handed out.
        peak: the largest value so far, for a filterbank that scales by it.
    """

    sample_rate: int | None
    received: int
    resampler: ResamplerState | None
    pending: np.ndarray
    frames: int
    peak: float = 0.0


class WindowedFrontend:
    """Samples at any rate to normalised filterbank frames; subclasses compute the frames.

    Args:
        config: window, shift and bins.
    """

    def __init__(self, config: FrontendConfig) -> None:
        self.config = config

    def features(self, waveform: np.ndarray) -> Any:
        """(T,) samples at the model's rate to (frames, bins) of all whole windows in them."""
        raise NotImplementedError

    def init_state(self) -> FrontendState:
        return FrontendState(None, 0, None, np.zeros(0, dtype=np.float32), 0)

    def step(
        self, samples: object, sample_rate: int, state: FrontendState, *, final: bool = False
    ) -> tuple[Any, FrontendState]:
        """Compute the frames that new samples complete.

        Args:
            samples: (T,) or (T, channels).
            sample_rate: in Hz; must not change within a stream.

        Returns:
            (1, frames, bins) and the new state.
        """
        new = check_samples(samples, state.received)
        check_same_rate(state.sample_rate, sample_rate)
        resampler = Resampler(sample_rate, self.config.sample_rate)
        resampler_state = state.resampler or resampler.init_state()
        converted, resampler_state = resampler.step(new, resampler_state, final=final)
        pending = np.concatenate([state.pending, converted])
        features = self.features(pending)
        rest = pending[features.shape[0] * self.config.shift_samples :]
        following = FrontendState(
            sample_rate,
            state.received + len(new),
            resampler_state,
            rest,
            state.frames + features.shape[0],
        )
        return features[None], following
