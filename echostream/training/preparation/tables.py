"""Manifests, vocabularies, YAML files and SimulEval lists of prepared data.

Under StreamSpeech's names: ``fbank2unit``, ``fbank2text``, ``src_unigram<N>``,
``tgt_unigram<N>``, ``simuleval``. Paths inside are relative, so the folder can move.
"""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import yaml

from echostream.text import SPECIALS
from echostream.training.corpus.files import write_atomically
from echostream.training.corpus.layout import (
    FBANK_ZIP,
    GCMVN,
    SPEECH_COLUMNS,
    TEXT_COLUMNS,
    write_table,
)
from echostream.training.preparation.steps import Options, Row

logger = logging.getLogger(__name__)

MANIFESTS, TEXT_MANIFESTS, LISTS = "fbank2unit", "fbank2text", "simuleval"
TEXT_SPEECH_COLUMNS = ("id", "audio", "n_frames", "tgt_text", "speaker")
SPECAUGMENT_LB = {
    "freq_mask_F": 27,
    "freq_mask_N": 1,
    "time_mask_N": 1,
    "time_mask_T": 100,
    "time_mask_p": 1.0,
    "time_wrap_W": 0,
}
LOSS_WEIGHTS = {"target_unigram": 8.0, "source_unigram": 4.0, "ctc_target_unigram": 4.0}


def _one_field(text: str) -> str:
    """Text that stays one TSV field."""
    return " ".join(text.split())


def _lines(values: Sequence[str]) -> str:
    return "".join(f"{value}\n" for value in values)


def write_manifests(rows: Mapping[str, Sequence[Row]], options: Options) -> None:
    """``fbank2unit/<split>.tsv`` with ``.txt``, ``.src`` and ``.unit``, and ``fbank2text``."""
    for split, found in rows.items():
        folder = options.out / MANIFESTS
        speech, text = [], []
        for row in found:
            audio = f"{FBANK_ZIP}:{row.offset}:{row.size}"
            source, target = _one_field(row.clip.src_text), _one_field(row.clip.tgt_text)
            units = " ".join(map(str, row.units))
            speech.append((row.clip.id, audio, row.frames, source, target, units, len(row.units)))
            text.append((row.clip.id, audio, row.frames, target, "None"))
        write_table(folder / f"{split}.tsv", SPEECH_COLUMNS, speech)
        write_atomically(folder / f"{split}.txt", _lines([row[4].lower() for row in speech]))
        write_atomically(folder / f"{split}.src", _lines([row.src_text for row in found]))
        write_atomically(folder / f"{split}.unit", _lines([row[5] for row in speech]))
        write_table(options.out / TEXT_MANIFESTS / f"{split}.tsv", TEXT_SPEECH_COLUMNS, text)


def text_folder(side: str, vocab_size: int) -> str:
    """Name of a text task's folder; ``side`` is src or tgt."""
    return f"{side}_unigram{vocab_size}"


def write_text_tasks(rows: Mapping[str, Sequence[Row]], options: Options, language: str) -> None:
    """Vocabulary and ``<split>.tsv`` of pieces for both sides; the target's vocabulary also for
    ``fbank2text``."""
    for side in ("src", "tgt"):
        folder = options.out / text_folder(side, options.vocab_size)
        model = folder / f"spm_unigram_{language}.model"
        texts = {
            split: [row.src_text if side == "src" else row.tgt_text for row in found]
            for split, found in rows.items()
        }
        if model.is_file():
            logger.info("vocabulary: %s is there", model)
        else:
            train_vocabulary(texts["train"], model, options)
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        for split, found in rows.items():
            pieces = processor.encode(texts[split], out_type=str)
            table = ((row.clip.id, " ".join(line)) for row, line in zip(found, pieces, strict=True))
            write_table(folder / f"{split}.tsv", TEXT_COLUMNS, table)
    for path in sorted(folder.glob("spm_unigram_*")):
        shutil.copy2(path, options.out / TEXT_MANIFESTS / path.name)


def train_vocabulary(sentences: Sequence[str], model: Path, options: Options) -> None:
    """A SentencePiece unigram model, its ``.vocab`` and fairseq's dictionary ``.txt``.

    The model is written last: where it is, the others are.

    Raises:
        ValueError: the text does not support so many pieces.
    """
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=written,
            vocab_size=options.vocab_size,
            model_type="unigram",
            character_coverage=1.0,
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
            num_threads=max(options.jobs, 1),
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"{model}: {len(sentences)} sentences do not give {options.vocab_size} pieces: {error}"
        ) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [processor.id_to_piece(index) for index in range(len(processor))]
    scores = [f"{piece}\t{processor.get_score(i):g}" for i, piece in enumerate(pieces)]
    known = [f"{piece} 1" for piece in pieces if piece not in SPECIALS]
    write_atomically(model.with_suffix(".vocab"), _lines(scores))
    write_atomically(model.with_suffix(".txt"), _lines(known))
    write_atomically(model, written.getvalue())


def write_yaml_files(options: Options, language: str) -> None:
    """``config_gcmvn.yaml`` and ``config_mtl_asr_st_ctcst.yaml`` with StreamSpeech's values."""
    checkpoint, config = options.vocoder
    features = {
        "audio_root": "..",
        "global_cmvn": {"stats_npz_path": f"../{GCMVN}"},
        "input_channels": 1,
        "input_feat_per_channel": 80,
        "specaugment": SPECAUGMENT_LB,
        "transforms": {"*": ["global_cmvn"], "_train": ["global_cmvn", "specaugment"]},
        "vocoder": {
            "checkpoint": f"../{checkpoint}",
            "config": f"../{config}",
            "type": "code_hifigan",
        },
    }
    tasks: dict[str, Any] = {}
    for name, weight in LOSS_WEIGHTS.items():
        side = "src" if name == "source_unigram" else "tgt"
        folder = f"../{text_folder(side, options.vocab_size)}"
        is_ctc = name != "target_unigram"
        tasks[name] = {
            "decoder_type": "ctc" if is_ctc else "transformer",
            "dict": f"{folder}/spm_unigram_{language}.txt",
            "data": folder,
            "loss_weight": weight,
            "rdrop_alpha": 0.0,
            "decoder_args": {
                "decoder_layers": 0 if is_ctc else 4,
                "decoder_embed_dim": 512,
                "decoder_ffn_embed_dim": 2048,
                "decoder_attention_heads": 8,
            },
            "label_smoothing": 0.1,
        }
    folder = options.out / MANIFESTS
    dumped = yaml.safe_dump(features, sort_keys=False)
    write_atomically(folder / "config_gcmvn.yaml", dumped)
    write_atomically(options.out / TEXT_MANIFESTS / "config_gcmvn.yaml", dumped)
    write_atomically(
        folder / "config_mtl_asr_st_ctcst.yaml", yaml.safe_dump(tasks, sort_keys=False)
    )


def write_lists(rows: Mapping[str, Sequence[Row]], options: Options) -> None:
    """``simuleval/<split>``: sources and references, line by line, in CVSS-C's order."""
    for split, complete in rows.items():
        found = sorted(complete, key=lambda row: row.clip.position)
        folder = options.out / LISTS / split
        for name, values in (
            ("wav_list.txt", [str(row.clip.source) for row in found]),
            ("target.txt", [_one_field(row.clip.tgt_text) for row in found]),
            ("src.txt", [row.src_text for row in found]),
            ("unit.txt", [" ".join(map(str, row.units)) for row in found]),
        ):
            write_atomically(folder / name, _lines(values))
