"""CodeVocos."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from echostream.config.checks import require


@dataclass(frozen=True)
class UnitDurationConfig:
    """How CodeVocos predicts how long units last, where nobody tells.

    Attributes:
        width: channels of the predictor.
        past_units: units before a unit that its duration depends on.
        future_units: units behind it, which are waited for.
    """

    width: int = 96
    past_units: int = 4
    future_units: int = 2

    def __post_init__(self) -> None:
        require(self.width > 0, f"unit durations: width must be positive, got {self.width}")
        for name in ("past_units", "future_units"):
            value = getattr(self, name)
            require(value >= 0, f"unit durations: {name} must not be negative, got {value}")


@dataclass(frozen=True)
class CodeVocosConfig:
    """Units to waveform by ConvNeXt blocks and an inverse STFT.

    Attributes:
        num_embeddings: units; with pitch classes ``state * pitch_classes + pitch``.
        pitch_classes: of a unit; 1 if units do not tell pitch.
        sampling_rate: Hz.
        hop_samples: between two spectra; each spans two hops.
        frames_per_unit: spectra made of one unit frame.
        width, hidden_width, blocks, kernel: of the ConvNeXt blocks; kernels end at their frame.
        lookahead_frames: unit frames behind a frame that are waited for.
        lowest_f0, highest_f0: bounds of predicted pitch, Hz.
        noise_frames: spectra of noise before they repeat.
        durations: null where every unit comes with its duration.
    """

    kind: Literal["codevocos"] = "codevocos"
    num_embeddings: int = 1000
    pitch_classes: int = 1
    sampling_rate: int = 24000
    hop_samples: int = 300
    frames_per_unit: int = 1
    width: int = 256
    hidden_width: int = 768
    blocks: int = 8
    kernel: int = 7
    lookahead_frames: int = 4
    lowest_f0: float = 60.0
    highest_f0: float = 420.0
    noise_frames: int = 256
    durations: UnitDurationConfig | None = field(default_factory=UnitDurationConfig)

    def __post_init__(self) -> None:
        for name in (
            "num_embeddings",
            "pitch_classes",
            "sampling_rate",
            "hop_samples",
            "frames_per_unit",
            "width",
            "hidden_width",
            "blocks",
            "kernel",
            "noise_frames",
        ):
            value = getattr(self, name)
            require(value > 0, f"codevocos: {name} must be positive, got {value}")
        require(
            self.lookahead_frames >= 0,
            f"codevocos: lookahead_frames must not be negative, got {self.lookahead_frames}",
        )
        require(
            self.num_embeddings % self.pitch_classes == 0,
            "codevocos: num_embeddings must be a multiple of pitch_classes, "
            f"got {self.num_embeddings} and {self.pitch_classes}",
        )
        require(
            0 < self.lowest_f0 < self.highest_f0 < self.sampling_rate / 2,
            "codevocos: lowest_f0 and highest_f0 must rise and lie below half the sampling rate, "
            f"got {self.lowest_f0} and {self.highest_f0}",
        )

    @property
    def unit_samples(self) -> int:
        """Samples that one unit frame becomes."""
        return self.hop_samples * self.frames_per_unit

    @property
    def bins(self) -> int:
        """Frequencies of a spectrum."""
        return self.hop_samples + 1
