"""Units of many sound files, resumably."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import soxr
import torch
from tqdm import tqdm

from echostream.samples import check_samples, read_audio
from echostream.training.units.extractor import UnitExtractor
from echostream.training.units.sequences import read_units, write_units

logger = logging.getLogger(__name__)


def load_waveform(path: Path, sample_rate: int) -> torch.Tensor:
    """(S,) mono float32 at ``sample_rate``, from a file of any rate and channels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a sound file, or samples that are not finite; names the file.
    """
    samples, rate = read_audio(path)
    try:
        mono = check_samples(samples)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate, quality="HQ")
    return torch.from_numpy(mono)


def quantize(
    extractor: UnitExtractor, sounds: Mapping[str, Path], out: Path, *, save_every: int = 500
) -> None:
    """Write the units of sound files, one per frame, in the order of ``sounds``.

    What is done so far lies in a file beside ``out`` that ends in ``.part``; a later call with the
    same arguments goes on from there.

    Args:
        sounds: utterance id to file.
        save_every: utterances between saves.
    """
    if out.is_file():
        missing = set(sounds) - set(read_units(out))
        if not missing:
            return
        logger.info("%s lacks %d utterances, making it again", out, len(missing))
    part = out.with_name(f"{out.name}.part")
    known = read_units(part, extractor.num_units) if part.is_file() else {}
    done = {name: units for name, units in known.items() if name in sounds}
    todo = [name for name in sounds if name not in done]
    for number, name in enumerate(tqdm(todo, desc=f"units {out.name}", mininterval=1.0), 1):
        done[name] = extractor(load_waveform(sounds[name], extractor.features.sample_rate))
        if number % save_every == 0:
            write_units(part, done)
    write_units(out, {name: done[name] for name in sounds})
    part.unlink(missing_ok=True)
