"""The corpus echo-mini as training data: texts, sounds and units into a data folder.

The folder's layout is that of :mod:`~echostream.training.data_folder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from echostream.training import data_folder
from echostream.training.corpus.text_files import Utterance, normalize
from echostream.training.units.sequences import reduce_units

SOURCE_LANGUAGE = "es"
_SPECAUGMENT = {  # short time masks: a longer one would delete whole words of these sentences
    "freq_mask_F": 27,
    "freq_mask_N": 1,
    "time_mask_N": 2,
    "time_mask_T": 20,
    "time_mask_p": 1.0,
    "time_wrap_W": 0,
}
_VOCODER = ("vocoder/model.safetensors", "vocoder/config.json")


def write_speech_manifest(
    folder: Path,
    split: str,
    utterances: Sequence[Utterance],
    features: Mapping[str, tuple[int, int, int]],
    units: Mapping[str, np.ndarray],
) -> None:
    """Write ``fbank2unit/<split>.tsv`` and the plain text files beside it.

    Raises:
        ValueError: an utterance has no features or no units.
    """
    entries = []
    for utterance in utterances:
        for what, table in (("features", features), ("units", units)):
            if utterance.id not in table:
                raise ValueError(f"{split}: utterance {utterance.id!r} has no {what}")
        entries.append(
            data_folder.SpeechEntry(
                utterance.id,
                *features[utterance.id],
                utterance.src_text,
                utterance.tgt_text,
                reduce_units(units[utterance.id])[0],
                utterance.speaker,
            )
        )
    sources = (utterance.src_text.lower() for utterance in utterances)
    data_folder.write_speech_manifest(folder, split, entries, sources)


def write_text_task(
    folder: Path, side: str, splits: Mapping[str, Sequence[Utterance]], vocab_size: int
) -> None:
    """Write one text task: SentencePiece model, dictionary and pieces of every split."""
    texts = {split: _side_texts(side, utterances) for split, utterances in splits.items()}
    target = folder / data_folder.text_folder(side, vocab_size)
    model = target / f"{data_folder.vocabulary_stem(SOURCE_LANGUAGE)}.model"
    data_folder.train_vocabulary(model, [text for _, text in texts["train"]], vocab_size)
    data_folder.write_pieces(target, model, texts)


def _side_texts(side: str, utterances: Sequence[Utterance]) -> list[tuple[str, str]]:
    return [(u.id, normalize(u.src_text if side == "src" else u.tgt_text)) for u in utterances]


def write_pieces(
    target: Path, side: str, splits: Mapping[str, Sequence[Utterance]], model: Path
) -> None:
    """Write ``<split>.tsv`` with the pieces of every text, by a vocabulary that is there."""
    texts = {split: _side_texts(side, utterances) for split, utterances in splits.items()}
    data_folder.write_pieces(target, model, texts)


def write_configs(folder: Path, vocab_size: int, decoder_args: Mapping[str, int]) -> None:
    """Write the two YAML files beside the manifests.

    Args:
        decoder_args: ``decoder_layers`` and sizes of the MT decoder.
    """
    manifests = folder / data_folder.MANIFESTS
    features = data_folder.feature_settings(_VOCODER, _SPECAUGMENT)
    data_folder.write_yaml(manifests / data_folder.FEATURE_YAML, features)
    tasks = data_folder.task_settings(SOURCE_LANGUAGE, vocab_size, decoder_args)
    data_folder.write_yaml(manifests / data_folder.TASK_YAML, tasks)


def write_simuleval_lists(
    folder: Path,
    utterances: Sequence[Utterance],
    sounds: Sequence[str],
    units: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write SimulEval's source and reference lists, texts normalised as the model writes them."""
    data_folder.write_lists(
        folder,
        sounds=sounds,
        targets=[normalize(u.tgt_text) for u in utterances],
        sources=[normalize(u.src_text) for u in utterances],
        units=None if units is None else [reduce_units(units[u.id])[0] for u in utterances],
    )
