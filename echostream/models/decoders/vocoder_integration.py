"""Streaming synthesis: new units in, new samples out.

The samples of a write are the tail of what synthesising all units so far would give, but only the
new units and the left context that can still be heard in them are computed. Bounded state: the
last units, as many as the network's receptive field covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echostream.models.decoders.vocoder import CodeHiFiGANVocoder


@dataclass(frozen=True)
class VocoderState:
    """The most recent units, oldest first."""

    units: tuple[int, ...] = ()


class StreamingVocoder:
    """Incremental front of a :class:`CodeHiFiGANVocoder`.

    Args:
        vocoder: holds the weights.
        dur_prediction: predict how many frames each unit lasts; otherwise one each.
    """

    def __init__(self, vocoder: CodeHiFiGANVocoder, *, dur_prediction: bool = True) -> None:
        if dur_prediction and vocoder.generator.dur_predictor is None:
            raise ValueError("this vocoder has no duration predictor")
        self.vocoder = vocoder
        self.dur_prediction = dur_prediction
        generator = vocoder.generator
        self.context_frames = generator.left_context_frames()
        # A unit lasts at least one frame, so this many units cover the frames; their own durations
        # depend on a few more.
        self.context_units = self.context_frames + generator.duration_radius_units()

    def init_state(self) -> VocoderState:
        return VocoderState()

    def step(
        self, units: Sequence[int], state: VocoderState
    ) -> tuple[Tensor, Tensor, VocoderState]:
        """Synthesise new units.

        Returns:
            (samples,) waveform of the new units, (N,) their frames, and the new state.
        """
        vocoder, generator = self.vocoder, self.vocoder.generator
        vocoder.check_units(units)
        weight = generator.dict.weight
        if not units:
            return weight.new_zeros(0), torch.zeros(0, dtype=torch.long), state
        everything = (*state.units, *units)
        code = torch.tensor([everything], device=weight.device)
        durations = generator.durations(code) if self.dur_prediction else torch.ones_like(code)
        new = durations[0, len(state.units) :]
        new_frames = int(new.sum())
        frames = generator.embed(code, durations)[..., -(new_frames + self.context_frames) :]
        waveform = generator.synthesize(frames).flatten()
        samples = waveform[-new_frames * vocoder.config.unit_samples :]
        return samples, new, VocoderState(everything[-self.context_units :])
