"""A data folder from recordings alone, for training an encoder that imitates another one.

    python -m echostream.training.audio_folder --model-dir MODEL --audio RECORDINGS --out DATA

Recordings need neither transcripts nor translations. Features, normalisation and vocabularies are
the model's, so that ``fairseq-train DATA/fbank2unit --missing-targets mask --distill MODEL`` reads
what the model knows. Long recordings are cut where they are quietest. A finished folder is left
alone.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from echostream.audio import fbank
from echostream.checkpoint import System, load_model_dir
from echostream.config import FrontendConfig
from echostream.files import atomic_path
from echostream.samples import check_samples, read_audio
from echostream.training.data_folder import (
    FEATURE_YAML,
    MANIFESTS,
    TASK_YAML,
    feature_settings,
    task_settings,
    text_folder,
    vocabulary_stem,
    write_table,
    write_yaml,
)
from echostream.training.feature_archive import (
    FBANK_ZIP,
    GCMVN,
    RunningMoments,
    index_feature_zip,
    write_feature_zip,
)

logger = logging.getLogger(__name__)

SOUNDS = (".flac", ".wav", ".ogg", ".mp3", ".opus")
COLUMNS = ("id", "src_audio", "src_n_frames")
# Gentler than StreamSpeech's: a mask of a second would hide whole words.
SPEC_AUGMENT = {
    "freq_mask_F": 27,
    "freq_mask_N": 1,
    "time_mask_N": 2,
    "time_mask_T": 20,
    "time_mask_p": 1.0,
    "time_wrap_W": 0,
}
QUIET_FRAMES = 10  # over which loudness is averaged where a recording is cut
SHORTEST_FRAMES = 40


def find_sounds(audio: Path) -> list[Path]:
    """Sound files of a folder, or those that a list names, one a line.

    Raises:
        FileNotFoundError: no such folder or list, or a listed file is missing.
        ValueError: there is none.
    """
    if audio.is_dir():
        sounds = sorted(path for path in audio.rglob("*") if path.suffix.lower() in SOUNDS)
    elif audio.is_file():
        lines = audio.read_text(encoding="utf-8").splitlines()
        sounds = [Path(line.strip()) for line in lines if line.strip()]
        missing = [path for path in sounds if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{audio}: no such sound file: {missing[0]}")
    else:
        raise FileNotFoundError(f"no such folder or list of recordings: {audio}")
    if not sounds:
        raise ValueError(f"{audio}: no sound files ({', '.join(SOUNDS)})")
    return sounds


def load_mono(path: Path, rate: int) -> torch.Tensor:
    """(S,) samples at ``rate``."""
    samples, found = read_audio(path)
    samples = check_samples(samples)
    if found != rate:
        import soxr

        samples = soxr.resample(samples, found, rate)
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def cut_where_quiet(features: np.ndarray, longest: int) -> list[np.ndarray]:
    """(T, bins) to pieces of at most ``longest`` frames, cut at the quietest place of each last
    third; pieces too short to hold speech are left out."""
    pieces = []
    while len(features) > longest:
        first = longest * 2 // 3
        loudness = features[first:longest].mean(axis=1)
        kernel = np.ones(QUIET_FRAMES) / QUIET_FRAMES
        quiet = first + int(np.convolve(loudness, kernel, mode="same").argmin())
        pieces.append(features[:quiet])
        features = features[quiet:]
    pieces.append(features)
    return [piece for piece in pieces if len(piece) >= SHORTEST_FRAMES]


def pieces_of(
    sounds: Sequence[Path], frontend: FrontendConfig, longest: int, split: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Ids and (T, bins) log-mel features of all pieces."""
    number = 0
    for path in tqdm(sounds, desc=split, mininterval=1.0):
        features = fbank(load_mono(path, frontend.sample_rate), frontend).numpy()
        for piece in cut_where_quiet(features, longest):
            number += 1
            yield f"{split}_{number:07d}", piece


def write_vocabularies(folder: Path, system: System, language: str) -> None:
    """Write the model's vocabularies where the text tasks look for them."""
    for side, vocabulary in (("src", system.source_vocabulary), ("tgt", system.target_vocabulary)):
        target = folder / text_folder(side, len(vocabulary))
        target.mkdir(parents=True, exist_ok=True)
        stem = target / vocabulary_stem(language)
        vocabulary.save(stem.with_suffix(".txt"), stem.with_suffix(".model"))


def write_normalisation(folder: Path, system: System) -> None:
    """Write the model's mean and deviation as the folder's."""
    with atomic_path(folder / GCMVN) as temporary:
        np.savez(temporary, mean=system.cmvn.mean.numpy(), std=system.cmvn.std.numpy())


def prepare(
    model_dir: str | Path, audio: Path, out: Path, *, held_out: int = 20, max_seconds: float = 20.0
) -> None:
    """Write the folder.

    Args:
        model_dir: a model directory or name.
        audio: a folder or a list of sound files.
        out: the data folder.
        held_out: recordings of the split ``dev``, the last ones.
        max_seconds: of the longest piece.

    Raises:
        FileNotFoundError, ValueError: no such model or recordings, or too few of them.
    """
    manifest = out / MANIFESTS / "train.tsv"
    if manifest.is_file():
        logger.info("%s is there already", manifest)
        return
    system = load_model_dir(model_dir)
    sounds = find_sounds(audio)
    if not 0 < held_out < len(sounds):
        raise ValueError(
            f"{audio}: {held_out} recordings are to be held out, there are {len(sounds)}"
        )
    frontend = system.config.frontend
    longest = int(max_seconds * 1000 / frontend.shift_ms)
    language = system.config.card.source_language or "src"
    out.mkdir(parents=True, exist_ok=True)

    def everything() -> Iterator[tuple[str, np.ndarray]]:
        yield from pieces_of(sounds[:-held_out], frontend, longest, "train")
        yield from pieces_of(sounds[-held_out:], frontend, longest, "dev")

    write_feature_zip(out / FBANK_ZIP, everything(), RunningMoments())
    write_normalisation(out, system)
    write_vocabularies(out, system, language)
    settings = feature_settings(("", ""), SPEC_AUGMENT)
    del settings["vocoder"]
    write_yaml(out / MANIFESTS / FEATURE_YAML, settings)
    mt = system.config.mt
    sizes = {
        "decoder_layers": mt.layers,
        "decoder_embed_dim": mt.embed_dim,
        "decoder_ffn_embed_dim": mt.ffn_dim,
        "decoder_attention_heads": mt.attention_heads,
    }
    tasks = task_settings(language, 0, sizes)
    for name, task in tasks.items():
        side, vocabulary = "tgt", system.target_vocabulary
        if name == "source_unigram":
            side, vocabulary = "src", system.source_vocabulary
        task["data"] = f"../{text_folder(side, len(vocabulary))}"
        task["dict"] = f"{task['data']}/{vocabulary_stem(language)}.txt"
    write_yaml(out / MANIFESTS / TASK_YAML, tasks)
    index = index_feature_zip(out / FBANK_ZIP)
    # The manifest of training comes last: where it is, the rest is.
    for split in ("dev", "train"):
        rows = [
            (name, f"{FBANK_ZIP}:{offset}:{size}", frames)
            for name, (offset, size, frames) in index.items()
            if name.startswith(f"{split}_")
        ]
        write_table(out / MANIFESTS / f"{split}.tsv", COLUMNS, rows)
        hours = sum(row[2] for row in rows) * frontend.shift_ms / 3.6e6
        logger.info("%s: %d pieces, %.2f hours", split, len(rows), hours)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m echostream.training.audio_folder",
        description="Make a data folder for distillation from recordings without any text.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model-dir", required=True, help="whose features and vocabularies to use")
    parser.add_argument("--audio", type=Path, required=True, help="folder or list of sound files")
    parser.add_argument("--out", type=Path, required=True, help="data folder to write")
    parser.add_argument("--held-out", type=int, default=20, help="recordings of the dev split")
    parser.add_argument("--max-seconds", type=float, default=20.0, help="longest piece")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if args.max_seconds < 1:
        parser.error(f"--max-seconds must be at least 1, got {args.max_seconds:g}")
    try:
        prepare(
            args.model_dir,
            args.audio,
            args.out,
            held_out=args.held_out,
            max_seconds=args.max_seconds,
        )
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
