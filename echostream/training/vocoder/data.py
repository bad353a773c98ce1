"""Speech with its units, cut into training segments."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from echostream.config import CodeVocosConfig, VocoderConfig
from echostream.samples import read_audio
from echostream.training.corpus.synthesis import generator_for
from echostream.training.units.sequences import read_units, reduce_units

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segments:
    """Training material of one update.

    Attributes:
        units: (B, T).
        waveform: (B, 1, S).
        f0: (B, T * n) pitch in Hz, 0 where there is none; None if not known.
    """

    units: Tensor
    waveform: Tensor
    f0: Tensor | None = None

    def to(self, device: torch.device) -> Segments:
        f0 = None if self.f0 is None else self.f0.to(device)
        return Segments(self.units.to(device), self.waveform.to(device), f0)


@dataclass(frozen=True)
class SpeechWithUnits:
    """One utterance.

    Attributes:
        units: (T,) one per frame.
        pcm: (T * frame_samples,) int16, a quarter of what float64 takes.
        f0: (T * n,) pitch in Hz, 0 where there is none, n values per frame; None if not known.
    """

    id: str
    units: np.ndarray
    pcm: np.ndarray
    f0: np.ndarray | None = None

    @property
    def waveform(self) -> np.ndarray:
        """(S,) float32 in [-1, 1]."""
        return self.pcm.astype(np.float32) / 32768

    @property
    def reduced(self) -> tuple[np.ndarray, np.ndarray]:
        return reduce_units(self.units)


def find_sound(folder: Path, name: str) -> Path:
    """The sound file of an utterance, whatever its suffix.

    Raises:
        FileNotFoundError: there is none.
    """
    for suffix in ("", ".flac", ".wav"):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise FileNotFoundError(f"no sound of utterance {name!r} in {folder} (.flac or .wav)")


def load_speech_for(
    config: VocoderConfig | CodeVocosConfig | None,
    model_dir: Path,
    units_file: Path,
    audio_folder: Path,
    limit: int | None = None,
) -> list[SpeechWithUnits]:
    """:func:`load_speech` in the units and at the rate of the vocoder of ``model_dir``.

    Raises:
        ValueError: the model has none, or the speech does not fit it.
    """
    if config is None:
        raise ValueError(f"{model_dir} has no vocoder")
    return load_speech(
        units_file,
        audio_folder,
        num_units=config.num_embeddings,
        sample_rate=config.sampling_rate,
        frame_samples=config.unit_samples,
        limit=limit,
    )


def load_speech(
    units_file: Path,
    audio_folder: Path,
    *,
    num_units: int,
    sample_rate: int,
    frame_samples: int,
    limit: int | None = None,
    pitch_file: Path | None = None,
    pitch_per_frame: int = 1,
) -> list[SpeechWithUnits]:
    """Read utterances into memory.

    Args:
        units_file: ``id|units``, one unit per frame.
        limit: at most so many utterances.
        pitch_file: ``id|pitch``, whole Hz, 0 where there is none, ``pitch_per_frame`` a frame.

    Raises:
        ValueError: another sample rate, several channels, or units or pitch that do not fit the
            length.
    """
    utterances = []
    pitch = None if pitch_file is None else read_units(pitch_file)
    known = list(read_units(units_file, num_units).items())[:limit]
    for name, units in tqdm(known, desc=f"speech {units_file.stem}", mininterval=1.0):
        path = find_sound(audio_folder, name)
        samples, rate = read_audio(path)
        if rate != sample_rate or samples.ndim != 1:
            raise ValueError(
                f"{path}: expected mono at {sample_rate} Hz, got shape {samples.shape} at {rate} Hz"
            )
        # Models drop up to two frames at the end (HuBERT's convolutions reach over 400 samples).
        frames = min(len(units), len(samples) // frame_samples)
        if abs(len(units) - len(samples) // frame_samples) > 2 or not frames:
            raise ValueError(
                f"{path}: {len(samples)} samples make {len(samples) // frame_samples} frames, "
                f"but {units_file} has {len(units)} units for {name!r}"
            )
        pcm = np.clip(np.round(samples[: frames * frame_samples] * 32768), -32768, 32767)
        f0 = None
        if pitch is not None:
            f0 = pitch.get(name, np.zeros(0))[: frames * pitch_per_frame].astype(np.float32)
            if len(f0) < frames * pitch_per_frame:
                raise ValueError(
                    f"{pitch_file}: {name!r} has {len(f0)} values, but its {frames} frames need "
                    f"{frames * pitch_per_frame}"
                )
        utterances.append(SpeechWithUnits(name, units[:frames], pcm.astype(np.int16), f0))
    if not utterances:
        raise ValueError(f"{units_file}: no utterances")
    hours = sum(len(u.pcm) for u in utterances) / sample_rate / 3600
    logger.info("%d utterances, %.2f hours from %s", len(utterances), hours, audio_folder)
    return utterances


class SegmentSampler:
    """Random training material that depends on seed and update alone, so that a resumed training
    sees what an uninterrupted one would.

    Args:
        segment_frames: unit frames per segment; shorter utterances are left out.
    """

    def __init__(
        self,
        utterances: Sequence[SpeechWithUnits],
        *,
        segment_frames: int,
        frame_samples: int,
        seed: int,
    ) -> None:
        self.utterances = list(utterances)
        self.long = [u for u in self.utterances if len(u.units) >= segment_frames]
        if not self.long:
            raise ValueError(f"no utterance has {segment_frames} frames, the segment length")
        lengths = np.array([len(u.units) for u in self.long], dtype=np.float64)
        self._share = lengths / lengths.sum()
        self.segment_frames, self.frame_samples, self.seed = segment_frames, frame_samples, seed

    def segments(self, update: int, batch_size: int) -> Segments:
        """Random stretches of random utterances."""
        rng = generator_for(self.seed, "segments", update)
        units, sounds, pitch = [], [], []
        for index in rng.choice(len(self.long), batch_size, p=self._share):
            utterance = self.long[index]
            start = int(rng.integers(0, len(utterance.units) - self.segment_frames + 1))
            end = start + self.segment_frames
            units.append(utterance.units[start:end])
            sounds.append(utterance.pcm[start * self.frame_samples : end * self.frame_samples])
            if utterance.f0 is not None:
                each = len(utterance.f0) // len(utterance.units)
                pitch.append(utterance.f0[start * each : end * each])
        waveform = torch.from_numpy(np.stack(sounds).astype(np.float32) / 32768)
        f0 = torch.from_numpy(np.stack(pitch)) if pitch else None
        return Segments(torch.from_numpy(np.stack(units)), waveform[:, None], f0)

    def reduced(self, update: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Reduced units (1, N) and durations (1, N) of whole utterances."""
        rng = generator_for(self.seed, "durations", update)
        for index in rng.integers(0, len(self.utterances), count):
            units, durations = self.utterances[int(index)].reduced
            yield torch.from_numpy(units)[None], torch.from_numpy(durations)[None]
