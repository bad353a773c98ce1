"""The steps from downloaded corpora to training data; each can be interrupted and repeated.

A step that finds its results does nothing. Long ones keep what they had when they stopped:
features one file per clip, units line by line. Clips that cannot be used are left out and listed
in ``skipped.tsv`` with the reason.
"""

from __future__ import annotations

import functools
import json
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from echostream.audio import Frontend
from echostream.config import FrontendConfig
from echostream.files import atomic_path, write_atomically
from echostream.processes import fresh_processes
from echostream.samples import Resampler, check_samples, read_audio
from echostream.training.feature_archive import FBANK_ZIP, GCMVN, RunningMoments, index_feature_zip
from echostream.training.preparation.cvss import SPLITS, Clip, Corpus, normalize_text
from echostream.training.units.sequences import read_units, reduce_units

logger = logging.getLogger(__name__)

UNIT_RATE = 16000  # Hz, of the unit extractors
FBANK_FOLDER = "src_fbank80"


@dataclass(frozen=True)
class Options:
    """What to prepare.

    Attributes:
        out: folder of everything that is made.
        unit_name: suffix of the unit files, ``km1000``.
        num_units: units are below it.
        vocab_size: SentencePiece pieces per side, special symbols included.
        jobs: processes.
        vocoder: checkpoint and configuration to name in the YAML, relative to ``out``.
    """

    out: Path
    unit_name: str = "km1000"
    num_units: int = 1000
    vocab_size: int = 6000
    jobs: int = 1
    vocoder: tuple[str, str] = ("vocoder/g_00500000", "vocoder/config.json")


@dataclass
class Skipped:
    """Clips left out, with the reason, kept in ``skipped.tsv``."""

    path: Path
    reasons: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Skipped:
        reasons = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                name, _, reason = line.partition("\t")
                reasons[name] = reason
        return cls(path, reasons)

    def add(self, found: dict[str, str]) -> None:
        """Remember and report more of them."""
        if not found:
            return
        self.reasons |= found
        write_atomically(
            self.path, "".join(f"{name}\t{why}\n" for name, why in sorted(self.reasons.items()))
        )
        example = next(iter(found.items()))
        logger.warning(
            "leaving out %d clips, such as %s: %s; all are listed in %s",
            len(found), *example, self.path,
        )  # fmt: skip


def progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """A progress bar on a terminal."""
    return tqdm(items, total=total, desc=what, unit="clip", disable=None)


def in_processes(
    work: Callable[[Any], Any], items: Sequence[Any], jobs: int, what: str
) -> list[Any]:
    """``work`` on every item, in order, with a progress bar."""
    if jobs <= 1:
        return [work(item) for item in progress(items, len(items), what)]
    with ProcessPoolExecutor(jobs, fresh_processes(), torch.set_num_threads, (1,)) as pool:
        done = pool.map(work, items, chunksize=16)
        return list(progress(done, len(items), what))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def compute_features(clip: Clip, folder: Path) -> str | None:
    """Write a clip's filterbank, as the running system computes it but not normalised.

    Returns:
        None, or why it cannot be made.
    """
    path = folder / f"{clip.id}.npy"
    if path.is_file():
        return None
    try:
        samples, rate = read_audio(clip.source)
        frontend = Frontend(FrontendConfig())
        features, _ = frontend.step(samples, rate, frontend.init_state(), final=True)
    except (OSError, ValueError) as error:
        return _one_line(error)
    if not features.size(1):
        return f"{clip.source}: shorter than one frame"
    with atomic_path(path) as temporary:
        np.save(temporary, features[0].numpy())
    return None


def load_speech(path: Path) -> np.ndarray:
    """(S,) float32 at the unit extractors' rate."""
    samples, rate = read_audio(path)
    mono = check_samples(samples)
    resampler = Resampler(rate, UNIT_RATE)
    return resampler.step(mono, resampler.init_state(), final=True)[0]


def extract_features(corpus: Corpus, options: Options) -> None:
    """``src_fbank80.zip`` and ``gcmvn.npz``: source features and their moments in training."""
    archive = options.out / FBANK_ZIP
    if archive.is_file() and (options.out / GCMVN).is_file():
        logger.info("features: %s is there", archive)
        shutil.rmtree(options.out / FBANK_FOLDER, ignore_errors=True)
        return
    folder = options.out / FBANK_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    skipped = Skipped.load(options.out / "skipped.tsv")
    moments = RunningMoments()
    names: list[str] = []
    for split in SPLITS:
        clips = corpus.clips(split)
        work = functools.partial(compute_features, folder=folder)
        faults = in_processes(work, clips, options.jobs, f"features, {split}")
        skipped.add(
            {clip.name: why for clip, why in zip(clips, faults, strict=True) if why is not None}
        )
        made = [clip.id for clip, why in zip(clips, faults, strict=True) if why is None]
        names += made
        if split == "train":
            for name in progress(made, len(made), "mean and deviation"):
                moments.add(np.load(folder / f"{name}.npy"))
    moments.save(options.out / GCMVN)
    _write_zip(archive, folder, names)
    shutil.rmtree(folder)


def _write_zip(archive: Path, folder: Path, names: Sequence[str]) -> None:
    """Store arrays without compression, so that byte ranges of the archive are arrays."""
    with (
        atomic_path(archive) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as packed,
    ):
        for name in progress(names, len(names), "archive"):
            packed.write(folder / f"{name}.npy", arcname=f"{name}.npy")


def extract_units(
    corpus: Corpus, options: Options, extractor: Callable[[np.ndarray], np.ndarray] | None
) -> None:
    """``<split>.<unit_name>``: a unit per 20 ms of target speech.

    Raises:
        ValueError: units are needed and there is no extractor, or it has another size.
    """
    skipped = Skipped.load(options.out / "skipped.tsv")
    for split in SPLITS:
        path = options.out / f"{split}.{options.unit_name}"
        if path.is_file():
            logger.info("units: %s is there", path)
            continue
        if extractor is None:
            raise ValueError(
                f"{path} is not there, and no unit model to make it with: pass --unit-model, or "
                "--hubert and --kmeans"
            )
        partial = path.with_name(f"{path.name}.partial")
        done = _finished_lines(partial)
        faults = {}
        clips = corpus.clips(split)
        with partial.open("a", encoding="utf-8") as lines:
            for clip in progress(clips, len(clips), f"units, {split}"):
                key = f"{clip.name}.wav"
                if key in done:
                    continue
                try:
                    units = extractor(load_speech(clip.target))
                except (OSError, ValueError) as error:
                    faults[clip.name] = _one_line(error)
                    continue
                if not len(units):
                    faults[clip.name] = f"{clip.target}: shorter than one unit"
                    continue
                if int(units.max()) >= options.num_units:
                    raise ValueError(
                        f"{clip.target}: unit {int(units.max())}; {options.unit_name} has "
                        f"{options.num_units}"
                    )
                lines.write(f"{key}|{' '.join(map(str, units.tolist()))}\n")
                lines.flush()
        skipped.add(faults)
        read_units(partial, options.num_units)  # whole, or an error that names the line
        partial.replace(path)


def _finished_lines(partial: Path) -> set[str]:
    """Keys of complete lines of an interrupted file; an incomplete last one is cut off."""
    if not partial.is_file():
        return set()
    text = partial.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) != len(text):
        write_atomically(partial, whole)
    return {line.partition("|")[0] for line in whole.decode("utf-8").splitlines()}


@dataclass(frozen=True)
class Row:
    """A clip that is complete: features, units and both texts."""

    clip: Clip
    offset: int
    size: int
    frames: int
    units: np.ndarray

    @property
    def src_text(self) -> str:
        return normalize_text(self.clip.src_text)

    @property
    def tgt_text(self) -> str:
        return normalize_text(self.clip.tgt_text)


def complete_rows(corpus: Corpus, options: Options) -> dict[str, list[Row]]:
    """Clips of every split that have everything, as all later steps list them.

    Raises:
        FileNotFoundError: features or units have not been made.
    """
    index = index_feature_zip(options.out / FBANK_ZIP)
    skipped = Skipped.load(options.out / "skipped.tsv")
    rows: dict[str, list[Row]] = {}
    for split in SPLITS:
        units = read_units(options.out / f"{split}.{options.unit_name}", options.num_units)
        rows[split], faults = [], {}
        for clip in corpus.clips(split):
            key = f"{clip.name}.wav"
            if clip.id not in index:
                faults[clip.name] = skipped.reasons.get(clip.name, "no features")
            elif key not in units:
                faults[clip.name] = skipped.reasons.get(clip.name, "no units")
            elif not normalize_text(clip.src_text) or not normalize_text(clip.tgt_text):
                faults[clip.name] = "a text without words"
            else:
                reduced, _ = reduce_units(units[key])
                rows[split].append(Row(clip, *index[clip.id], reduced))
        skipped.add({name: why for name, why in faults.items() if name not in skipped.reasons})
        if not rows[split]:
            raise ValueError(f"{split}: no clip has features, units and texts")
    return rows


def write_settings(options: Options, language: str) -> None:
    """Keep what the data was made with, and refuse to mix it with something else.

    Raises:
        ValueError: the folder was prepared with other settings.
    """
    path = options.out / "preparation.json"
    settings = {
        "language": language,
        "unit_name": options.unit_name,
        "num_units": options.num_units,
    }
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before != settings:
            raise ValueError(
                f"{path}: this folder was prepared with {before}, asked for is {settings}; "
                "take another --out"
            )
        return
    write_atomically(path, json.dumps(settings, indent=2) + "\n")
