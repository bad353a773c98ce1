"""From corpus texts to a folder that training reads: the steps of ``scripts/make_corpus.py``.

Every step leaves finished files alone, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from echostream.audio import fbank
from echostream.checkpoint import load_model_dir
from echostream.config import FrontendConfig
from echostream.files import write_atomically
from echostream.processes import fresh_processes
from echostream.samples import read_audio
from echostream.training import feature_archive
from echostream.training.audio_folder import write_normalisation, write_vocabularies
from echostream.training.corpus import layout, synthesis
from echostream.training.corpus.speakers import speaker
from echostream.training.corpus.text_files import SPLITS, Chooser, Utterance, digest
from echostream.training.data_folder import MANIFESTS, text_folder, vocabulary_stem
from echostream.training.units.extractor import CENTROIDS, SETTINGS, UnitExtractor
from echostream.training.units.sequences import read_units, write_units
from echostream.training.units.unit_features import MFCCFeatures

logger = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Splits = Mapping[str, Sequence[Utterance]]


@dataclass(frozen=True)
class BuildOptions:
    """How to build the data.

    Attributes:
        seed: of noise and levels, sampling for k-means, and k-means.
        jobs: processes.
        unit_model: folder of a unit model with ``num_units``; None: fit one. k-means comes out
            differently on different processors, so what weights trained before were trained on
            must be kept, not fitted again.
        kmeans_utterances: training utterances that k-means is fitted on.
        decoder_args: MT decoder sizes for the multitask YAML, those of the *_mini architectures.
        like: model directory or name whose vocabularies and normalisation are used instead of
            fitted ones, so that its weights can be trained further on other sentences.
    """

    seed: int = 1
    jobs: int = 1
    num_units: int = 200
    unit_model: Path | None = None
    vocab_size: int = 500
    kmeans_utterances: int = 2000
    like: Path | None = None
    decoder_args: Mapping[str, int] = field(
        default_factory=lambda: {
            "decoder_layers": 2,
            "decoder_embed_dim": 192,
            "decoder_ffn_embed_dim": 512,
            "decoder_attention_heads": 4,
        }
    )

    def __post_init__(self) -> None:
        for name in ("jobs", "num_units", "vocab_size", "kmeans_utterances"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def sound_path(folder: Path, side: str, utterance: Utterance) -> Path:
    """Where an utterance's sound lies; ``side`` is source or target."""
    return folder / "audio" / side / utterance.split / f"{utterance.id}.flac"


def _one_thread() -> None:
    torch.set_num_threads(1)


def parallel_map(
    function: Callable[[ItemT], ResultT], items: Sequence[ItemT], jobs: int, what: str
) -> Iterator[ResultT]:
    """Results in order, with a progress bar."""
    bar = partial(tqdm, total=len(items), desc=what, disable=not items, mininterval=1.0)
    if jobs == 1 or len(items) < 2:
        yield from bar(map(function, items))
        return
    with fresh_processes().Pool(jobs, initializer=_one_thread) as pool:
        yield from bar(pool.imap(function, items, chunksize=min(8, -(-len(items) // (4 * jobs)))))


def _synthesize(utterance: Utterance, folder: Path, seed: int) -> None:
    source = sound_path(folder, "source", utterance)
    if not source.is_file():
        samples = synthesis.synthesize_source(
            utterance.id, utterance.src_text, speaker(utterance.speaker), seed
        )
        synthesis.save_flac(samples, source)
    target = sound_path(folder, "target", utterance)
    if not target.is_file():
        synthesis.save_flac(synthesis.flite(utterance.tgt_text), target)


def synthesize(folder: Path, utterances: Sequence[Utterance], options: BuildOptions) -> None:
    """Make all sounds that are not there yet."""
    missing = [
        utterance
        for utterance in utterances
        if not all(sound_path(folder, side, utterance).is_file() for side in ("source", "target"))
    ]
    if missing:
        synthesis.require_synthesizers()
        synthesis.require_voices({speaker(utterance.speaker) for utterance in missing})
    for _ in parallel_map(
        partial(_synthesize, folder=folder, seed=options.seed), missing, options.jobs, "speech"
    ):
        pass


def load_sound(path: Path) -> torch.Tensor:
    """(S,) mono float32 at 16 kHz.

    Raises:
        ValueError: another rate or more channels.
    """
    samples, rate = read_audio(path)
    if rate != synthesis.SAMPLE_RATE or samples.ndim != 1:
        raise ValueError(f"{path}: expected mono at {synthesis.SAMPLE_RATE} Hz, got {rate} Hz")
    return torch.from_numpy(samples)


def features_of(utterance: Utterance, folder: Path) -> tuple[str, np.ndarray]:
    waveform = load_sound(sound_path(folder, "source", utterance))
    return utterance.id, fbank(waveform, FrontendConfig()).numpy()


def extract_features(
    folder: Path, utterances: Sequence[Utterance], options: BuildOptions
) -> dict[str, tuple[int, int, int]]:
    """Filterbank archive and global CMVN; returns the archive's index."""
    archive, stats = folder / feature_archive.FBANK_ZIP, folder / feature_archive.GCMVN
    wanted = {utterance.id for utterance in utterances}
    if archive.is_file() and stats.is_file():
        index = feature_archive.index_feature_zip(archive)
        if set(index) == wanted:
            return index
        logger.info("%s holds other utterances, extracting again", archive)
    moments = feature_archive.RunningMoments()
    found = parallel_map(
        partial(features_of, folder=folder), utterances, options.jobs, "filterbank"
    )
    feature_archive.write_feature_zip(archive, found, moments)
    moments.save(stats)
    return feature_archive.index_feature_zip(archive)


def units_of(utterance: Utterance, folder: Path, model: Path) -> tuple[str, np.ndarray]:
    # Read per utterance, so that workers need no state; the file is 32 kB.
    extractor = UnitExtractor.load(model)
    return utterance.id, extractor(load_sound(sound_path(folder, "target", utterance)))


def prepare_units(folder: Path, utterances: Sequence[Utterance], options: BuildOptions) -> Path:
    """Copy the unit model, or fit one on a sample of target speech, unless it is there.

    A model of other origin (fitted in a trial with ``--limit``, say) is replaced, and the units
    made with it are removed.

    Raises:
        ValueError: the model to copy has another number of units.
    """
    model = folder / "units"
    if options.unit_model is None:
        chosen = Chooser(options.seed, "k-means").shuffled(utterances)[: options.kmeans_utterances]
        origin = digest(utterance.id for utterance in chosen)
    else:
        count = UnitExtractor.load(options.unit_model).num_units
        if count != options.num_units:
            raise ValueError(f"{options.unit_model} has {count} units, not {options.num_units}")
        origin = hashlib.sha256((options.unit_model / CENTROIDS).read_bytes()).hexdigest()
    mark = model / "origin.sha256"
    if (model / SETTINGS).is_file() and mark.is_file() and mark.read_text() == origin:
        if UnitExtractor.load(model).num_units == options.num_units:
            return model
    for stale in folder.glob("*.km*"):
        stale.unlink()
    if options.unit_model is not None:
        UnitExtractor.load(options.unit_model).save(model)
    else:
        waveforms = (
            load_sound(sound_path(folder, "target", utterance))
            for utterance in tqdm(chosen, desc="k-means features", mininterval=1.0)
        )
        extractor = UnitExtractor.fit(
            MFCCFeatures(), waveforms, options.num_units, seed=options.seed
        )
        extractor.save(model)
    write_atomically(mark, origin)
    return model


def extract_units(
    folder: Path, splits: Splits, options: BuildOptions
) -> dict[str, dict[str, np.ndarray]]:
    """Units of all target speech, one file ``<split>.km<K>`` per split."""
    model = prepare_units(folder, splits["train"], options)
    units = {}
    for split, utterances in splits.items():
        path = folder / f"{split}.km{options.num_units}"
        if path.is_file():
            known = read_units(path, options.num_units)
            if set(known) == {utterance.id for utterance in utterances}:
                units[split] = known
                continue
        worker = partial(units_of, folder=folder, model=model)
        units[split] = dict(parallel_map(worker, utterances, options.jobs, f"units {split}"))
        write_units(path, units[split])
    return units


def begin(folder: Path, seed: int) -> None:
    """Mark a corpus folder with its seed.

    Raises:
        ValueError: the folder was begun with another seed.
    """
    mark = folder / "seed.txt"
    if mark.is_file() and mark.read_text().strip() != str(seed):
        raise ValueError(
            f"{folder} was begun with seed {mark.read_text().strip()}, not {seed}; "
            "its speech would be mixed, choose another folder"
        )
    write_atomically(mark, f"{seed}\n")


def write_text_tasks_like(model: Path, folder: Path, splits: Splits, vocab_size: int) -> None:
    """Text tasks in a model's vocabularies, and its normalisation as the folder's.

    Raises:
        ValueError: its vocabularies have another size.
    """
    system = load_model_dir(model)
    for vocabulary in (system.source_vocabulary, system.target_vocabulary):
        if len(vocabulary) != vocab_size:
            raise ValueError(f"{model}: {len(vocabulary)} pieces, vocab_size is {vocab_size}")
    write_normalisation(folder, system)
    write_vocabularies(folder, system, layout.SOURCE_LANGUAGE)
    for side in ("src", "tgt"):
        target = folder / text_folder(side, vocab_size)
        pieces = target / f"{vocabulary_stem(layout.SOURCE_LANGUAGE)}.model"
        layout.write_pieces(target, side, splits, pieces)


def build(folder: Path, splits: Splits, options: BuildOptions) -> None:
    """Run every step.

    Raises:
        ValueError: the folder was begun with another seed.
    """
    begin(folder, options.seed)
    everything: Iterable[Utterance] = (u for split in SPLITS for u in splits[split])
    utterances = list(everything)
    synthesize(folder, utterances, options)
    features = extract_features(folder, utterances, options)
    units = extract_units(folder, splits, options)
    lists = dict(splits)
    # Sentences of patterns that training has and has not seen are also reported apart.
    lists["test_seen"] = [utterance for utterance in splits["test"] if not utterance.unseen]
    lists["test_unseen"] = [utterance for utterance in splits["test"] if utterance.unseen]
    for split in SPLITS:
        layout.write_speech_manifest(folder, split, splits[split], features, units[split])
    every_unit = {name: values for found in units.values() for name, values in found.items()}
    for name, rows in lists.items():
        sounds = [str(sound_path(folder, "source", row).resolve()) for row in rows]
        layout.write_simuleval_lists(folder / "simuleval" / name, rows, sounds, every_unit)
    if options.like is None:
        for side in ("src", "tgt"):
            layout.write_text_task(folder, side, splits, options.vocab_size)
    else:
        write_text_tasks_like(options.like, folder, splits, options.vocab_size)
    layout.write_configs(folder, options.vocab_size, options.decoder_args)
    logger.info("training data is in %s", folder / MANIFESTS)
