"""Manifests, vocabularies, YAML files and SimulEval lists of prepared data.

The folder's layout is that of :mod:`~echostream.training.data_folder`, and ``fbank2text`` with
StreamSpeech's manifests for text output. Paths inside are relative, so the folder can move.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence

from echostream.training import data_folder
from echostream.training.preparation.steps import Options, Row

logger = logging.getLogger(__name__)

TEXT_MANIFESTS = "fbank2text"
TEXT_SPEECH_COLUMNS = ("id", "audio", "n_frames", "tgt_text", "speaker")
SPECAUGMENT_LB = {
    "freq_mask_F": 27,
    "freq_mask_N": 1,
    "time_mask_N": 1,
    "time_mask_T": 100,
    "time_mask_p": 1.0,
    "time_wrap_W": 0,
}
DECODER_ARGS = {
    "decoder_layers": 4,
    "decoder_embed_dim": 512,
    "decoder_ffn_embed_dim": 2048,
    "decoder_attention_heads": 8,
}


def _one_field(text: str) -> str:
    """Text that stays one TSV field."""
    return " ".join(text.split())


def write_manifests(rows: Mapping[str, Sequence[Row]], options: Options) -> None:
    """``fbank2unit/<split>.tsv`` with ``.txt``, ``.src`` and ``.unit``, and ``fbank2text``."""
    for split, found in rows.items():
        entries = [
            data_folder.SpeechEntry(
                row.clip.id,
                row.offset,
                row.size,
                row.frames,
                _one_field(row.clip.src_text),
                _one_field(row.clip.tgt_text),
                row.units,
            )
            for row in found
        ]
        sources = (row.src_text for row in found)
        data_folder.write_speech_manifest(options.out, split, entries, sources)
        text = [(entry.id, entry.audio, entry.frames, entry.tgt_text, "None") for entry in entries]
        path = options.out / TEXT_MANIFESTS / f"{split}.tsv"
        data_folder.write_table(path, TEXT_SPEECH_COLUMNS, text)


def write_text_tasks(rows: Mapping[str, Sequence[Row]], options: Options, language: str) -> None:
    """Vocabulary and ``<split>.tsv`` of pieces for both sides; the target's vocabulary also for
    ``fbank2text``."""
    stem = data_folder.vocabulary_stem(language)
    for side in ("src", "tgt"):
        folder = options.out / data_folder.text_folder(side, options.vocab_size)
        model = folder / f"{stem}.model"
        texts = {
            split: [(row.clip.id, row.src_text if side == "src" else row.tgt_text) for row in found]
            for split, found in rows.items()
        }
        if model.is_file():
            logger.info("vocabulary: %s is there", model)
        else:
            sentences = [text for _, text in texts["train"]]
            threads = max(options.jobs, 1)
            data_folder.train_vocabulary(model, sentences, options.vocab_size, threads=threads)
        data_folder.write_pieces(folder, model, texts)
    for path in sorted(folder.glob("spm_unigram_*")):
        shutil.copy2(path, options.out / TEXT_MANIFESTS / path.name)


def write_yaml_files(options: Options, language: str) -> None:
    """``config_gcmvn.yaml`` and ``config_mtl_asr_st_ctcst.yaml`` with StreamSpeech's values."""
    features = data_folder.feature_settings(options.vocoder, SPECAUGMENT_LB)
    for folder in (data_folder.MANIFESTS, TEXT_MANIFESTS):
        data_folder.write_yaml(options.out / folder / data_folder.FEATURE_YAML, features)
    tasks = data_folder.task_settings(language, options.vocab_size, DECODER_ARGS)
    data_folder.write_yaml(options.out / data_folder.MANIFESTS / data_folder.TASK_YAML, tasks)


def write_lists(rows: Mapping[str, Sequence[Row]], options: Options) -> None:
    """``simuleval/<split>``: sources and references, line by line, in CVSS-C's order."""
    for split, complete in rows.items():
        found = sorted(complete, key=lambda row: row.clip.position)
        data_folder.write_lists(
            options.out / data_folder.LISTS / split,
            sounds=[str(row.clip.source) for row in found],
            targets=[_one_field(row.clip.tgt_text) for row in found],
            sources=[row.src_text for row in found],
            units=[row.units for row in found],
        )
