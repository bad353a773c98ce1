"""The corpus folder with the extension: more speech, and manifests of both together.

Nothing of the present corpus is written again: features of the extension have an archive of their
own, and its texts and units are those of the present vocabularies and unit model, so that weights
trained before stay usable. Manifests and text tasks lie in folders of the same names with
``_extended`` behind; their ``train`` is the present one followed by the extension.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from echostream.training import data_folder, feature_archive
from echostream.training.corpus import layout
from echostream.training.corpus.build import (
    BuildOptions,
    Splits,
    begin,
    features_of,
    parallel_map,
    sound_path,
    synthesize,
    units_of,
)
from echostream.training.corpus.extended_texts import COMBDEV, COMBTEST, EXTENDED_SPLITS, EXTENSION
from echostream.training.corpus.text_files import Utterance
from echostream.training.units.extractor import UnitExtractor
from echostream.training.units.sequences import read_units, write_units

logger = logging.getLogger(__name__)

SUFFIX = "_extended"
EXTENDED_ZIP = "src_fbank80_extended.zip"
_TEXT_STEM = f"spm_unigram_{layout.SOURCE_LANGUAGE}"
Index = Mapping[str, tuple[int, int, int]]


def _require_present(folder: Path, present: Splits, options: BuildOptions) -> None:
    """Raise ``FileNotFoundError`` naming what the present corpus has not made yet."""
    needed = [folder / feature_archive.FBANK_ZIP, folder / feature_archive.GCMVN]
    needed += [folder / f"{split}.km{options.num_units}" for split in present]
    needed += [
        folder / data_folder.text_folder(side, options.vocab_size) / f"{_TEXT_STEM}.model"
        for side in ("src", "tgt")
    ]
    for path in needed:
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path}; the extension builds on a finished corpus folder, run without "
                "--extended first"
            )


def _features(folder: Path, utterances: Sequence[Utterance], options: BuildOptions) -> Index:
    archive = folder / EXTENDED_ZIP
    if archive.is_file():
        index = feature_archive.index_feature_zip(archive)
        if set(index) == {utterance.id for utterance in utterances}:
            return index
        logger.info("%s holds other utterances, extracting again", archive)
    found = parallel_map(
        partial(features_of, folder=folder), utterances, options.jobs, "filterbank"
    )
    # The moments are for nothing here: mean and deviation stay those of the present corpus.
    feature_archive.write_feature_zip(archive, found, feature_archive.RunningMoments())
    return feature_archive.index_feature_zip(archive)


def _units(
    folder: Path, extended: Splits, options: BuildOptions
) -> dict[str, dict[str, np.ndarray]]:
    model = folder / "units"
    if UnitExtractor.load(model).num_units != options.num_units:
        raise ValueError(f"{model} is not a model of {options.num_units} units")
    units = {}
    for split, utterances in extended.items():
        path = folder / f"{split}.km{options.num_units}"
        known = read_units(path, options.num_units) if path.is_file() else {}
        if set(known) != {utterance.id for utterance in utterances}:
            worker = partial(units_of, folder=folder, model=model)
            known = dict(parallel_map(worker, utterances, options.jobs, f"units {split}"))
            write_units(path, known)
        units[split] = known
    return units


def _write_text_task(folder: Path, side: str, splits: Splits, vocab_size: int) -> None:
    present = folder / data_folder.text_folder(side, vocab_size)
    target = present.with_name(present.name + SUFFIX)
    target.mkdir(exist_ok=True)
    for suffix in (".model", ".vocab", ".txt"):
        shutil.copyfile(present / f"{_TEXT_STEM}{suffix}", target / f"{_TEXT_STEM}{suffix}")
    layout.write_pieces(target, side, splits, target / f"{_TEXT_STEM}.model")


def build_extended(folder: Path, present: Splits, extended: Splits, options: BuildOptions) -> None:
    """Make the extension's speech, features and units, and manifests of everything.

    Args:
        folder: holds the finished build of ``present``, or of a part of it (a trial), which then
            is what the extension is added to.

    Raises:
        FileNotFoundError: it does not.
        ValueError: it was begun with another seed, or has other units.
    """
    begin(folder, options.seed)
    _require_present(folder, present, options)
    utterances = [row for split in EXTENDED_SPLITS for row in extended[split]]
    synthesize(folder, utterances, options)
    new_features = _features(folder, utterances, options)
    units = _units(folder, extended, options)
    for split in present:
        units[split] = read_units(folder / f"{split}.km{options.num_units}", options.num_units)
    present = {
        split: [row for row in rows if row.id in units[split]] for split, rows in present.items()
    }
    every_unit = {name: values for found in units.values() for name, values in found.items()}
    features = {
        **feature_archive.index_feature_zip(folder / feature_archive.FBANK_ZIP),
        **new_features,
    }
    archives = dict.fromkeys(new_features, EXTENDED_ZIP)
    splits = {
        **present,
        "train": [*present["train"], *extended[EXTENSION]],
        COMBDEV: extended[COMBDEV],
        COMBTEST: extended[COMBTEST],
    }
    for split, rows in splits.items():
        layout.write_speech_manifest(
            folder, split, rows, features, every_unit, suffix=SUFFIX, archives=archives
        )
    for side in ("src", "tgt"):
        _write_text_task(folder, side, splits, options.vocab_size)
    layout.write_configs(folder, options.vocab_size, options.decoder_args, SUFFIX)
    for split in (COMBDEV, COMBTEST):
        rows = extended[split]
        sounds = [str(sound_path(folder, "source", row).resolve()) for row in rows]
        layout.write_simuleval_lists(folder / "simuleval" / split, rows, sounds, every_unit)
    logger.info("training data is in %s", folder / f"{data_folder.MANIFESTS}{SUFFIX}")
