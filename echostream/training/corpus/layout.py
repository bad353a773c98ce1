"""The training data in StreamSpeech's layout, from texts, sounds and units.

Everything lies in one folder::

    src_fbank80.zip, gcmvn.npz          features and their global mean and deviation
    fbank2unit/<split>.tsv              utterances, with config_gcmvn.yaml and
                                        config_mtl_asr_st_ctcst.yaml; .txt, .src and .unit beside
    src_unigram<N>/, tgt_unigram<N>/    SentencePiece model, dictionary, <split>.tsv of pieces
    simuleval/<split>/                  wav_list.txt, target.txt, src.txt, unit.txt

Paths in the YAML files are relative to the files, and those in manifests to ``audio_root``.
"""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import yaml

from echostream.text import SPECIALS
from echostream.training.corpus.files import atomic_path, write_atomically
from echostream.training.corpus.pairs import normalize
from echostream.training.corpus.text_files import Utterance
from echostream.training.units.sequences import reduce_units

logger = logging.getLogger(__name__)

FBANK_ZIP, GCMVN = "src_fbank80.zip", "gcmvn.npz"
MANIFESTS = "fbank2unit"
SPEECH_COLUMNS = (
    "id",
    "src_audio",
    "src_n_frames",
    "src_text",
    "tgt_text",
    "tgt_audio",
    "tgt_n_frames",
)
TEXT_COLUMNS = ("id", "tgt_text")
SOURCE_LANGUAGE = "es"
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # a fixed date keeps the archive's bytes reproducible
_SPECAUGMENT = {  # short time masks: a longer one would delete whole words of these sentences
    "freq_mask_F": 27,
    "freq_mask_N": 1,
    "time_mask_N": 2,
    "time_mask_T": 20,
    "time_mask_p": 1.0,
    "time_wrap_W": 0,
}


def text_folder(side: str, vocab_size: int) -> str:
    """Name of a text task's folder; ``side`` is src or tgt."""
    return f"{side}_unigram{vocab_size}"


class RunningMoments:
    """Mean and standard deviation per bin over all frames."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, features: np.ndarray) -> None:
        wide = features.astype(np.float64)
        self.count += len(wide)
        self.total = self.total + wide.sum(0)
        self.squares = self.squares + np.square(wide).sum(0)

    def save(self, path: Path) -> None:
        """Write ``gcmvn.npz``."""
        if not self.count:
            raise ValueError(f"{path}: no training frames to estimate mean and deviation from")
        mean = self.total / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 1e-10))
        with atomic_path(path) as temporary:
            np.savez(temporary, mean=mean.astype(np.float32), std=std.astype(np.float32))


def write_feature_zip(
    path: Path, features: Iterable[tuple[str, np.ndarray]], moments: RunningMoments
) -> None:
    """Store (T, bins) arrays without compression; training ones also count for the moments."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in features:
            if name.startswith("train"):
                moments.add(array)
            buffer = io.BytesIO()
            np.save(buffer, array)
            info = zipfile.ZipInfo(f"{name}.npy", _ZIP_DATE)
            info.compress_type = zipfile.ZIP_STORED
            archive.writestr(info, buffer.getvalue())


def index_feature_zip(path: Path) -> dict[str, tuple[int, int, int]]:
    """Where each array lies: id to (byte offset, bytes, frames).

    Raises:
        FileNotFoundError: no such archive.
        ValueError: damaged, or an entry is compressed or no array.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such feature archive: {path}")
    index = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{path}: {info.filename} is compressed")
                stream.seek(info.header_offset + 26)
                lengths = np.frombuffer(stream.read(4), "<u2")
                offset = info.header_offset + 30 + int(lengths.sum())
                stream.seek(offset)
                np.lib.format.read_magic(stream)
                shape, _, _ = np.lib.format.read_array_header_1_0(stream)
                index[info.filename.removesuffix(".npy")] = (offset, info.file_size, shape[0])
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: not a zip archive: {error}") from error
    return index


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a TSV with a header.

    Raises:
        ValueError: a field holds a tab or a newline.
    """
    lines = ["\t".join(columns)]
    for row in rows:
        fields = [str(field) for field in row]
        if any("\t" in field or "\n" in field for field in fields):
            raise ValueError(f"{path}: row {fields[0]!r} holds a tab or a newline")
        lines.append("\t".join(fields))
    write_atomically(path, "\n".join(lines) + "\n")


def write_speech_manifest(
    folder: Path,
    split: str,
    utterances: Sequence[Utterance],
    features: Mapping[str, tuple[int, int, int]],
    units: Mapping[str, np.ndarray],
    *,
    suffix: str = "",
    archives: Mapping[str, str] | None = None,
) -> None:
    """Write ``fbank2unit/<split>.tsv`` and the plain text files beside it.

    Args:
        suffix: of the folder's name.
        archives: feature archive of utterances that are not in the common one.

    Raises:
        ValueError: an utterance has no features or no units.
    """
    rows = []
    for utterance in utterances:
        for what, table in (("features", features), ("units", units)):
            if utterance.id not in table:
                raise ValueError(f"{split}: utterance {utterance.id!r} has no {what}")
        offset, size, frames = features[utterance.id]
        reduced, _ = reduce_units(units[utterance.id])
        rows.append(
            (
                utterance.id,
                f"{(archives or {}).get(utterance.id, FBANK_ZIP)}:{offset}:{size}",
                frames,
                utterance.src_text,
                utterance.tgt_text,
                " ".join(map(str, reduced)),
                len(reduced),
            )
        )
    target = folder / f"{MANIFESTS}{suffix}"
    write_table(target / f"{split}.tsv", SPEECH_COLUMNS, rows)
    write_atomically(target / f"{split}.txt", "".join(f"{row[4].lower()}\n" for row in rows))
    write_atomically(target / f"{split}.src", "".join(f"{row[3].lower()}\n" for row in rows))
    write_atomically(target / f"{split}.unit", "".join(f"{row[5]}\n" for row in rows))


def train_sentencepiece(folder: Path, sentences: Sequence[str], vocab_size: int) -> Path:
    """Train a unigram model and write model, ``.vocab`` and fairseq dictionary ``.txt``.

    Args:
        vocab_size: pieces with the four special symbols, as fairseq counts.

    Returns:
        the model's path.

    Raises:
        ValueError: the text does not support so many pieces.
    """
    stem = f"spm_unigram_{SOURCE_LANGUAGE}"  # StreamSpeech names both sides after the pair
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            character_coverage=1.0,
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
            num_threads=1,  # more threads add up floats in any order
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"{folder}: cannot make {vocab_size} pieces: {error}") from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    vocab = "".join(f"{piece}\t{processor.get_score(i)}\n" for i, piece in enumerate(pieces))
    known = "".join(f"{piece} 1\n" for piece in pieces if piece not in SPECIALS)
    write_atomically(folder / f"{stem}.model", model.getvalue())
    write_atomically(folder / f"{stem}.vocab", vocab)
    write_atomically(folder / f"{stem}.txt", known)
    return folder / f"{stem}.model"


def write_text_task(
    folder: Path, side: str, splits: Mapping[str, Sequence[Utterance]], vocab_size: int
) -> None:
    """Write one text task: SentencePiece model, dictionary and pieces of every split."""

    target = folder / text_folder(side, vocab_size)
    train = [_side_text(side, utterance) for utterance in splits["train"]]
    write_pieces(target, side, splits, train_sentencepiece(target, train, vocab_size))


def _side_text(side: str, utterance: Utterance) -> str:
    return normalize(utterance.src_text if side == "src" else utterance.tgt_text)


def write_pieces(
    target: Path, side: str, splits: Mapping[str, Sequence[Utterance]], model: Path
) -> None:
    """Write ``<split>.tsv`` with the pieces of every text."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for split, utterances in splits.items():
        rows = (
            (u.id, " ".join(processor.encode(_side_text(side, u), out_type=str)))
            for u in utterances
        )
        write_table(target / f"{split}.tsv", TEXT_COLUMNS, rows)


def write_configs(
    folder: Path, vocab_size: int, decoder_args: Mapping[str, int], suffix: str = ""
) -> None:
    """Write the two YAML files beside the manifests.

    Args:
        decoder_args: ``decoder_layers`` and sizes of the MT decoder.
        suffix: of the names of the folders of manifests and text tasks.
    """
    features = {
        "audio_root": "..",
        "global_cmvn": {"stats_npz_path": f"../{GCMVN}"},
        "input_channels": 1,
        "input_feat_per_channel": 80,
        "specaugment": _SPECAUGMENT,
        "transforms": {"*": ["global_cmvn"], "_train": ["global_cmvn", "specaugment"]},
        "vocoder": {
            "checkpoint": "../vocoder/model.safetensors",
            "config": "../vocoder/config.json",
            "type": "code_hifigan",
        },
    }

    def task(kind: str, side: str, weight: float, layers: int) -> dict[str, Any]:
        data = f"../{text_folder(side, vocab_size)}{suffix}"
        return {
            "decoder_type": kind,
            "dict": f"{data}/spm_unigram_{SOURCE_LANGUAGE}.txt",
            "data": data,
            "loss_weight": weight,
            "rdrop_alpha": 0.0,
            "decoder_args": {**decoder_args, "decoder_layers": layers},
            "label_smoothing": 0.1,
        }

    tasks = {
        "target_unigram": task("transformer", "tgt", 8.0, decoder_args["decoder_layers"]),
        "source_unigram": task("ctc", "src", 4.0, 0),
        "ctc_target_unigram": task("ctc", "tgt", 4.0, 0),
    }
    for name, content in (
        ("config_gcmvn.yaml", features),
        ("config_mtl_asr_st_ctcst.yaml", tasks),
    ):
        target = folder / f"{MANIFESTS}{suffix}" / name
        write_atomically(target, yaml.safe_dump(content, sort_keys=False))


def write_simuleval_lists(
    folder: Path,
    utterances: Sequence[Utterance],
    sounds: Sequence[str],
    units: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write SimulEval's source and reference lists, texts normalised as the model writes them."""
    write_atomically(folder / "wav_list.txt", "".join(f"{sound}\n" for sound in sounds))
    for name, texts in (
        ("target.txt", [normalize(u.tgt_text) for u in utterances]),
        ("src.txt", [normalize(u.src_text) for u in utterances]),
    ):
        write_atomically(folder / name, "".join(f"{text}\n" for text in texts))
    if units is not None:
        lines = (" ".join(map(str, reduce_units(units[u.id])[0])) for u in utterances)
        write_atomically(folder / "unit.txt", "".join(f"{line}\n" for line in lines))
