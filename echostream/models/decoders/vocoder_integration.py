"""Streaming synthesis: new units in, new samples out.

The samples of a write are the tail of what synthesising all units so far would give, but only
what is new or still changes is computed: every convolution keeps its own left context (see
:mod:`echostream.models.decoders.streaming_generator`), and the last units, whose predicted
durations depend on what follows them, are laid out once more. The state is of constant size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from echostream.models.decoders.pace import approach, check_speed, paced
from echostream.models.decoders.streaming_generator import Growth, streaming_generator
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder


@dataclass(frozen=True)
class VocoderState:
    """What the next write depends on.

    Attributes:
        caches: (1, kept, C) left context per convolution that needs any.
        units: the most recent units, oldest first: those whose durations may still change, and
            those that these durations depend on.
        settled_frames: unit frames that no later unit can change.
        speeds: of the units whose durations may still change.
        owed_frames: by which what was settled is too short for its speed.
        speed: of the last unit.
    """

    caches: tuple[Tensor, ...]
    units: tuple[int, ...] = ()
    settled_frames: int = 0
    speeds: tuple[float, ...] = ()
    owed_frames: float = 0.0
    speed: float = 1.0

    def to(self, device: torch.device | str) -> VocoderState:
        return replace(self, caches=tuple(cache.to(device) for cache in self.caches))


def streaming_state(vocoder: CodeHiFiGANVocoder) -> VocoderState:
    """State of a stream in which nothing was spoken yet, on the weights' device."""
    return VocoderState(streaming_generator(vocoder.generator).init_caches())


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
        self.unsettled_units = vocoder.generator.duration_radius_units() if dur_prediction else 0
        self.context_units = 2 * self.unsettled_units

    def init_state(self) -> VocoderState:
        return streaming_state(self.vocoder)

    @torch.no_grad()
    def step(
        self, units: Sequence[int], state: VocoderState, *, speed: float = 1.0
    ) -> tuple[Tensor, Tensor, VocoderState]:
        """Synthesise new units.

        Args:
            speed: predicted durations shrink by this factor, reached smoothly from the speed of
                the last unit (see :mod:`echostream.models.decoders.pace`).

        Returns:
            (samples,) waveform of the new units, (N,) their frames, and the new state.

        Raises:
            ValueError: a unit that the vocoder does not have, or a speed out of range.
        """
        vocoder, generator = self.vocoder, self.vocoder.generator
        vocoder.check_units(units)
        check_speed(speed)
        weight = generator.dict.weight
        if not units:
            return weight.new_zeros(0), torch.zeros(0, dtype=torch.long), state
        everything = (*state.units, *units)
        code = torch.tensor([everything], device=weight.device)
        predicted = generator.durations(code) if self.dur_prediction else torch.ones_like(code)
        first = max(len(state.units) - self.unsettled_units, 0)
        known = len(state.units) - first
        speeds = (*state.speeds, *approach(state.speed, speed, len(units)))
        pace = paced(predicted[0, first:].tolist(), speeds, state.owed_frames)
        settling = max(len(speeds) - self.unsettled_units, 0)
        growth = Growth(
            settled=state.settled_frames,
            first_new=sum(pace.frames[:known]),
            end=sum(pace.frames),
            newly_settled=sum(pace.frames[:settling]),
        )
        durations = torch.tensor([pace.frames], device=weight.device)
        frames = generator.embed(code[:, first:], durations).transpose(1, 2)
        waves, caches = streaming_generator(generator).step(frames, state.caches, [growth])
        following = VocoderState(
            caches,
            everything[len(everything) - min(self.context_units, len(everything)) :],
            state.settled_frames + growth.newly_settled,
            speeds[settling:],
            pace.owed[settling],
            speeds[-1],
        )
        return waves[0], durations[0, known:], following
