"""What the system asks of a vocoder, whichever it is.

A vocoder is weights; a front of it speaks streams. Both of :class:`CodeHiFiGANVocoder` with
:class:`StreamingVocoder` and of :class:`CodeVocosVocoder` with :class:`StreamingCodeVocos` keep to
this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from echostream.config import CodeVocosConfig, VocoderConfig

StateT = TypeVar("StateT")


class Vocoder(nn.Module, ABC):
    """Units to waveform.

    Args:
        config: network sizes, with ``sampling_rate`` in Hz.
        num_units: units that may be asked for; more embeddings may exist.
    """

    def __init__(self, config: VocoderConfig | CodeVocosConfig, num_units: int | None) -> None:
        super().__init__()
        self.config: Any = config
        self.num_units = config.num_embeddings if num_units is None else num_units

    @property
    def sample_rate(self) -> int:
        return self.config.sampling_rate

    @property
    def unit_samples(self) -> int:
        """Samples of one unit frame."""
        return self.config.unit_samples

    @property
    @abstractmethod
    def predicts_durations(self) -> bool:
        """Whether it can tell how long units last."""

    def check_units(self, units: Sequence[int]) -> None:
        """Raise ``ValueError`` naming the first unit that it does not have."""
        for position, unit in enumerate(units):
            if not 0 <= unit < self.num_units:
                raise ValueError(
                    f"unit {unit} at position {position} is outside the vocoder's range "
                    f"0 to {self.num_units - 1}"
                )

    @abstractmethod
    def generate(
        self, units: Sequence[int], *, dur_prediction: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Whole sequence of N units to (samples,) waveform and (N,) frames per unit.

        Args:
            units: unit ids; consecutive repeats removed if ``dur_prediction``.
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
