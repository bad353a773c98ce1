"""The folder that training reads, in StreamSpeech's layout; every corpus is written by this.

::

    src_fbank80.zip, gcmvn.npz          features and their global mean and deviation
    fbank2unit/<split>.tsv              utterances, with config_gcmvn.yaml and
                                        config_mtl_asr_st_ctcst.yaml; .txt, .src and .unit beside
    src_unigram<N>/, tgt_unigram<N>/    SentencePiece model, dictionary, <split>.tsv of pieces
    simuleval/<split>/                  wav_list.txt, target.txt, src.txt, unit.txt

Paths in the YAML files are relative to the files, and those in manifests to ``audio_root``.
``feature_archive`` writes the features.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import yaml

from echostream.files import write_atomically
from echostream.text import SPECIALS
from echostream.training.feature_archive import FBANK_ZIP, GCMVN

MANIFESTS, LISTS = "fbank2unit", "simuleval"
FEATURE_YAML, TASK_YAML = "config_gcmvn.yaml", "config_mtl_asr_st_ctcst.yaml"
# The last one is left out where nothing is known about speakers.
SPEECH_COLUMNS = (
    "id",
    "src_audio",
    "src_n_frames",
    "src_text",
    "tgt_text",
    "tgt_audio",
    "tgt_n_frames",
    "speaker",
)
TEXT_COLUMNS = ("id", "tgt_text")
LABEL_SMOOTHING = 0.1
LOSS_WEIGHTS = {"target_unigram": 8.0, "source_unigram": 4.0, "ctc_target_unigram": 4.0}


@dataclass(frozen=True)
class SpeechEntry:
    """One utterance of a speech manifest.

    Attributes:
        offset, size: bytes in the feature archive.
        frames: of the features.
        src_text, tgt_text: as the corpus has them.
        units: target units without repeats.
        speaker: of the source, if known.
    """

    id: str
    offset: int
    size: int
    frames: int
    src_text: str
    tgt_text: str
    units: Sequence[int] | np.ndarray
    speaker: str | None = None

    @property
    def audio(self) -> str:
        """Where the features are, as manifests write it."""
        return f"{FBANK_ZIP}:{self.offset}:{self.size}"


def text_folder(side: str, vocab_size: int) -> str:
    """Name of a text task's folder; ``side`` is src or tgt."""
    return f"{side}_unigram{vocab_size}"


def vocabulary_stem(language: str) -> str:
    """Name of a vocabulary's files; StreamSpeech calls both sides by the source language."""
    return f"spm_unigram_{language}"


def unit_line(units: Iterable[int]) -> str:
    return " ".join(map(str, units))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    write_atomically(path, "".join(f"{line}\n" for line in lines))


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
    write_lines(path, lines)


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, yaml.safe_dump(content, sort_keys=False))


def write_speech_manifest(
    folder: Path,
    split: str,
    entries: Sequence[SpeechEntry],
    source_lines: Iterable[str],
) -> None:
    """Write ``fbank2unit/<split>.tsv`` and the plain text files beside it.

    Args:
        folder: the data folder.
        source_lines: source texts for ``.src``, line by line.
    """
    rows = [
        (
            entry.id,
            entry.audio,
            entry.frames,
            entry.src_text,
            entry.tgt_text,
            unit_line(entry.units),
            len(entry.units),
            entry.speaker,
        )
        for entry in entries
    ]
    known = all(entry.speaker is not None for entry in entries)
    columns = SPEECH_COLUMNS if known else SPEECH_COLUMNS[:-1]
    target = folder / MANIFESTS
    write_table(target / f"{split}.tsv", columns, (row[: len(columns)] for row in rows))
    write_lines(target / f"{split}.txt", (entry.tgt_text.lower() for entry in entries))
    write_lines(target / f"{split}.src", source_lines)
    write_lines(target / f"{split}.unit", (unit_line(entry.units) for entry in entries))


def train_vocabulary(
    model: Path, sentences: Sequence[str], vocab_size: int, *, threads: int = 1
) -> None:
    """Train a SentencePiece unigram model; write it, its ``.vocab`` and fairseq's dictionary.

    The model is written last: where it is, the others are.

    Args:
        model: ``.model`` file to write; ``.vocab`` and ``.txt`` come beside it.
        vocab_size: subwords with the four special symbols, as fairseq counts.
        threads: more than one add up floats in any order.

    Raises:
        ValueError: the text does not support so many subwords.
    """
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=written,
            vocab_size=vocab_size,
            model_type="unigram",
            character_coverage=1.0,
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
            num_threads=threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"{model}: cannot make {vocab_size} pieces: {len(sentences)} sentences do not give "
            f"{vocab_size} pieces: {error}"
        ) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [processor.id_to_piece(index) for index in range(processor.vocab_size())]
    scores = (f"{piece}\t{processor.get_score(i):g}" for i, piece in enumerate(pieces))
    write_lines(model.with_suffix(".vocab"), scores)
    known = (f"{piece} 1" for piece in pieces if piece not in SPECIALS)
    write_lines(model.with_suffix(".txt"), known)
    write_atomically(model, written.getvalue())


def write_pieces(folder: Path, model: Path, texts: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Write ``<split>.tsv`` of subwords.

    Args:
        model: SentencePiece model.
        texts: (id, text) of every split.
    """
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for split, rows in texts.items():
        table = ((name, " ".join(processor.encode(text, out_type=str))) for name, text in rows)
        write_table(folder / f"{split}.tsv", TEXT_COLUMNS, table)


def feature_settings(vocoder: tuple[str, str], spec_augment: Mapping[str, float]) -> dict[str, Any]:
    """Content of ``config_gcmvn.yaml``.

    Args:
        vocoder: checkpoint and configuration, relative to the data folder.
    """
    checkpoint, config = vocoder
    return {
        "audio_root": "..",
        "global_cmvn": {"stats_npz_path": f"../{GCMVN}"},
        "input_channels": 1,
        "input_feat_per_channel": 80,
        "specaugment": dict(spec_augment),
        "transforms": {"*": ["global_cmvn"], "_train": ["global_cmvn", "specaugment"]},
        "vocoder": {
            "checkpoint": f"../{checkpoint}",
            "config": f"../{config}",
            "type": "code_hifigan",
        },
    }


def task_settings(
    language: str, vocab_size: int, decoder_args: Mapping[str, int]
) -> dict[str, Any]:
    """Content of ``config_mtl_asr_st_ctcst.yaml``.

    Args:
        language: of the source.
        decoder_args: ``decoder_layers`` and sizes of the MT decoder.
    """
    tasks = {}
    for name, weight in LOSS_WEIGHTS.items():
        is_ctc = name != "target_unigram"
        side = "src" if name == "source_unigram" else "tgt"
        data = f"../{text_folder(side, vocab_size)}"
        layers = 0 if is_ctc else decoder_args["decoder_layers"]
        tasks[name] = {
            "decoder_type": "ctc" if is_ctc else "transformer",
            "dict": f"{data}/{vocabulary_stem(language)}.txt",
            "data": data,
            "loss_weight": weight,
            "rdrop_alpha": 0.0,
            "decoder_args": {**decoder_args, "decoder_layers": layers},
            "label_smoothing": LABEL_SMOOTHING,
        }
    return tasks


def write_lists(
    folder: Path,
    *,
    sounds: Iterable[str],
    targets: Iterable[str],
    sources: Iterable[str],
    units: Iterable[Iterable[int]] | None = None,
) -> None:
    """Write SimulEval's source list and references, line by line; ``folder`` is the split's."""
    write_lines(folder / "wav_list.txt", sounds)
    write_lines(folder / "target.txt", targets)
    write_lines(folder / "src.txt", sources)
    if units is not None:
        write_lines(folder / "unit.txt", map(unit_line, units))
