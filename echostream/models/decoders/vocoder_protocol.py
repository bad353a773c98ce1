"""What the system asks of a vocoder, whichever it is.

A vocoder is weights; a front of it speaks streams. Both of :class:`CodeHiFiGANVocoder` with
:class:`StreamingVocoder` and of :class:`CodeVocosVocoder` with :class:`StreamingCodeVocos` keep to
this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

StateT = TypeVar("StateT")


@runtime_checkable
class Vocoder(Protocol):
    """Units to waveform.

    Attributes:
        config: with ``sampling_rate`` in Hz.
        unit_samples: samples of one unit frame.
        num_units: units that may be asked for.
        context_units: units before new ones that a stream has to know, at most.
        predicts_durations: whether it can tell how long units last.
    """

    config: Any
    num_units: int

    @property
    def sample_rate(self) -> int: ...

    @property
    def unit_samples(self) -> int: ...

    @property
    def context_units(self) -> int: ...

    @property
    def predicts_durations(self) -> bool: ...

    def check_units(self, units: Sequence[int]) -> None:
        """Raise ``ValueError`` naming the first unit that it does not have."""

    def generate(
        self, units: Sequence[int], *, dur_prediction: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Whole sequence of N units to (samples,) waveform and (N,) frames per unit.

        Args:
            dur_prediction: predict how many frames each unit lasts; otherwise one each.
        """


@runtime_checkable
class VocoderFront(Protocol[StateT]):
    """Units of a stream to its waveform, as they come."""

    def init_state(self, batch_size: int = 1) -> StateT:
        """Of streams in which nothing was spoken yet."""

    def step_rows(
        self, units: Sequence[Sequence[int]], state: StateT, speeds: Sequence[float]
    ) -> tuple[list[Tensor], list[Tensor], StateT]:
        """:meth:`step` of several streams at once, none of which ends."""

    def step(
        self,
        units: Sequence[int],
        state: StateT,
        *,
        speed: float = 1.0,
        final: bool = False,
    ) -> tuple[Tensor, Tensor, StateT]:
        """Speak new units.

        Args:
            speed: predicted durations shrink by this factor, reached smoothly.
            final: nothing more will come; what was held back is given out.

        Returns:
            (samples,) new waveform, frames of every unit laid out now, and the new state.

        Raises:
            ValueError: a unit that the vocoder does not have, or a speed out of range.
        """


def check_units(units: Sequence[int], num_units: int) -> None:
    """Raise ``ValueError`` naming the first unit that is not below ``num_units``."""
    for position, unit in enumerate(units):
        if not 0 <= unit < num_units:
            raise ValueError(
                f"unit {unit} at position {position} is outside the vocoder's range "
                f"0 to {num_units - 1}"
            )
