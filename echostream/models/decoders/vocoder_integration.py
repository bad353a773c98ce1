"""Streaming synthesis: new units in, new samples out.

The samples of a write are the tail of what synthesising all units so far would give, but only
what is new or still changes is computed: every convolution keeps its own left context (see
:mod:`echostream.models.decoders.streaming_generator`), and the last units, whose predicted
durations depend on what follows them, are laid out once more. The state is of constant size, and
rows that bring different numbers of units are synthesised together.

Shapes: B batch, C channels, N units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echostream.models.decoders.pace import check_speed
from echostream.models.decoders.streaming_generator import streaming_generator
from echostream.models.decoders.unit_layout import UnitTail, lay_out
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder
from echostream.streaming import PerRow


@dataclass(frozen=True)
class VocoderState:
    """What the next write of each row depends on.

    Attributes:
        caches: (B, kept, C) left context per convolution that needs any.
        tails: the last units of each row.
    """

    caches: tuple[Tensor, ...]
    tails: PerRow

    def at_speed_of(self, before: VocoderState) -> VocoderState:
        """Go on at the speed of what was spoken before."""
        tails = (
            replace(tail, speed=old.speed)
            for tail, old in zip(self.tails, before.tails, strict=True)
        )
        return replace(self, tails=PerRow(tails))


class StreamingVocoder:
    """Incremental front of a :class:`CodeHiFiGANVocoder`.

    Args:
        vocoder: holds the weights.
        dur_prediction: predict how many frames each unit lasts; otherwise one each.
    """

    def __init__(self, vocoder: CodeHiFiGANVocoder, *, dur_prediction: bool = True) -> None:
        if dur_prediction and not vocoder.predicts_durations:
            raise ValueError("this vocoder has no duration predictor")
        self.vocoder = vocoder
        self.dur_prediction = dur_prediction
        self.unsettled_units = vocoder.generator.duration_radius_units() if dur_prediction else 0

    def init_state(self, batch_size: int = 1) -> VocoderState:
        """Streams in which nothing was spoken yet, on the weights' device."""
        caches = streaming_generator(self.vocoder.generator).init_caches(batch_size)
        return VocoderState(caches, PerRow.of(UnitTail(), batch_size))

    def step(
        self,
        units: Sequence[int],
        state: VocoderState,
        *,
        speed: float = 1.0,
        final: bool = False,
    ) -> tuple[Tensor, Tensor, VocoderState]:
        """Synthesise new units of the only row; see :meth:`step_rows`.

        ``final`` changes nothing, as nothing is held back.

        Returns:
            (samples,) waveform of the new units, (N,) their frames, and the new state.
        """
        (samples,), (frames,), state = self.step_rows([units], state, [speed])
        return samples, frames, state

    @torch.no_grad()
    def step_rows(
        self, units: Sequence[Sequence[int]], state: VocoderState, speeds: Sequence[float]
    ) -> tuple[list[Tensor], list[Tensor], VocoderState]:
        """Synthesise new units of each row.

        Args:
            units: at least one of each row, unless no row has any.
            speeds: predicted durations of each row shrink by this factor, reached smoothly from
                the speed of its last unit (see :mod:`echostream.models.decoders.pace`).

        Returns:
            (samples,) waveform of each row's new units, (N,) their frames, and the new state.

        Raises:
            ValueError: a unit that the vocoder does not have, a speed out of range, or a row
                without units beside others.
        """
        for row, speed in zip(units, speeds, strict=True):
            self.vocoder.check_units(row)
            check_speed(speed)
        generator = self.vocoder.generator
        weight = generator.dict.weight
        if not any(map(len, units)):
            nothing = [weight.new_zeros(0) for _ in units]
            return nothing, [torch.zeros(0, dtype=torch.long) for _ in units], state
        if not all(map(len, units)):
            raise ValueError("rows that are synthesised together need a new unit each")
        predicted = self._durations(
            [(*tail.units, *new) for tail, new in zip(state.tails, units, strict=True)]
        )
        writes = [
            lay_out(new, tail, speed, durations, self.unsettled_units)
            for new, tail, speed, durations in zip(
                units, state.tails, speeds, predicted, strict=True
            )
        ]
        frames = pad_sequence(
            [
                generator.embed(
                    torch.tensor([write.units], device=weight.device),
                    torch.tensor([write.pace.frames], device=weight.device),
                )[0].T
                for write in writes
            ],
            batch_first=True,
        )
        growth = [write.growth for write in writes]
        waves, caches = streaming_generator(generator).step(frames, state.caches, growth)
        lasting = [torch.tensor(write.pace.frames[write.known :]) for write in writes]
        return waves, lasting, VocoderState(caches, PerRow(write.tail for write in writes))

    def _durations(self, units: list[tuple[int, ...]]) -> list[list[int]]:
        """Frames of each row's units at speed 1."""
        if not self.dur_prediction:
            return [[1] * len(row) for row in units]
        return self.vocoder.durations(units)
