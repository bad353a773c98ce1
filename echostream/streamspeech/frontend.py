"""The filterbank of StreamSpeech's agents, as published and incrementally.

At every policy call the original cuts the source so far to whole frames (10 ms each behind
15 ms of hold-back, at the source's rate), resamples what is left as a signal of its own and
computes the filterbank of all of it. The cut is a hard edge for the resampler, so the last frame
comes out a little different from what it is once more source has come.
"""

from __future__ import annotations

import math

import numpy as np
import soxr
import torch
from torch import Tensor

from echostream.audio import CMVN, Frontend, fbank
from echostream.config import FrontendConfig
from echostream.models.encoder import StreamFeatures
from echostream.samples import FrontendState, Resampler, ResamplerState


def whole_frames(received: int, sample_rate: int, config: FrontendConfig) -> tuple[int, int]:
    """How many frames the original makes of ``received`` samples, and of how many of them."""
    shift = sample_rate * config.shift_ms / 1000
    overlap = sample_rate * (config.window_ms - config.shift_ms) / 1000
    frames = math.floor((received - overlap) / int(shift))
    return (frames, int(frames * shift + overlap)) if frames > 0 else (0, 0)


def whole_features(
    samples: np.ndarray, sample_rate: int, config: FrontendConfig, cmvn: CMVN
) -> Tensor:
    """(T,) all source to normalised (frames, bins), computed from scratch."""
    frames, used = whole_frames(len(samples), sample_rate, config)
    if not frames:
        return torch.zeros(0, config.num_mel_bins)
    waveform = samples[:used]
    if sample_rate != config.sample_rate:
        waveform = soxr.resample(waveform, sample_rate, config.sample_rate, quality="HQ")
    return cmvn(fbank(torch.from_numpy(waveform), config))


class StreamSpeechFrontend(Frontend):
    """Computes new frames only, and yet what :func:`whole_features` would give.

    Frames that the resampler's look-ahead keeps open are handed out as provisional, computed as
    if the source ended where the original cuts it. At the end of the source they stay that way,
    as in the original. Where a chunk ends well behind the cut, the last frame is settled here and
    still has its edge there.

    That difference is below 0.01 for source rates of at least 16 kHz that are multiples of 100 Hz,
    whose 10 ms are whole samples. Below 16 kHz the mel bins above half the source's rate hold
    next to nothing, and its logarithm shows the edge: these bins differ by 1 or more, mostly in
    the last frame. At other rates the original rounds the samples of a frame down, counts more
    frames than there are and computes fewer. Both modes still run to the end.
    """

    def step(
        self, samples: object, sample_rate: int, state: FrontendState, *, final: bool = False
    ) -> tuple[StreamFeatures, FrontendState]:
        """New samples to new frames, (1, frames, bins) final and provisional."""
        features, following = super().step(samples, sample_rate, state)
        return StreamFeatures(features, self._edge(following)[None]), following

    def _edge(self, state: FrontendState) -> Tensor:
        """(P, bins) frames that the original has and the stream does not have yet."""
        nothing = torch.zeros(0, self.config.num_mel_bins)
        if state.sample_rate is None or state.resampler is None:
            return nothing
        frames, used = whole_frames(state.received, state.sample_rate, self.config)
        missing = frames - state.frames
        if missing <= 0:
            return nothing
        resampler = Resampler(state.sample_rate, self.config.sample_rate)
        recent, start = state.resampler.recent, state.resampler.start
        cut = ResamplerState(recent[: used - start], start, state.resampler.written)
        rest, _ = resampler.step(recent[:0], cut, final=True)
        waveform = np.concatenate([state.pending, rest])
        return self.cmvn(fbank(torch.from_numpy(waveform), self.config))[:missing]
