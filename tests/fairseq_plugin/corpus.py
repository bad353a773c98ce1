"""A data folder in StreamSpeech's layout, small enough to train on in seconds."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import yaml

REPOSITORY = Path(__file__).parents[2]
BINS = 80
SOURCE_PIECES, TARGET_PIECES, UNITS = 20, 24, 30
SPEECH_HEADER = "id\tsrc_audio\tsrc_n_frames\tsrc_text\ttgt_text\ttgt_audio\ttgt_n_frames"
MULTITASK = {
    "target_unigram": ("transformer", "tgt_unigram", 8.0),
    "source_unigram": ("ctc", "src_unigram", 4.0),
    "ctc_target_unigram": ("ctc", "tgt_unigram", 4.0),
}


def write_zip(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Store arrays uncompressed; returns the reference of each."""
    references = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            start = data.index(b"\x93NUMPY", info.header_offset)
            references[info.filename[:-4]] = f"{path.name}:{start}:{info.file_size}"
    return references


def write_corpus(root: Path, count: int = 8, seed: int = 0) -> Path:
    """Write ``count`` random utterances as ``train`` and ``dev``; returns the data folder."""
    rng = np.random.default_rng(seed)
    folder = root / "fbank2unit"
    folder.mkdir(parents=True)
    arrays, rows, texts = {}, [], {"src": [], "tgt": []}
    sounds = rng.normal(3.0, 2.0, (SOURCE_PIECES, BINS))
    for index in range(count):
        name = f"utterance_{index}"
        spoken = rng.integers(0, SOURCE_PIECES, rng.integers(3, 7))
        lasting = rng.integers(18, 30, len(spoken))
        frames = int(lasting.sum())
        clean = sounds[np.repeat(spoken, lasting)]
        arrays[name] = (clean + rng.normal(0, 0.5, clean.shape)).astype(np.float32)
        source = [f"s{i}" for i in spoken]
        target = [f"t{i}" for i in rng.integers(0, TARGET_PIECES, rng.integers(3, 7))]
        units = rng.integers(0, UNITS, rng.integers(9, 15))
        units = units[np.insert(np.diff(units) != 0, 0, True)]
        texts["src"].append(f"{name}\t{' '.join(source)}")
        texts["tgt"].append(f"{name}\t{' '.join(target)}")
        rows.append((name, frames, " ".join(source), " ".join(target), units))
    references = write_zip(root / "src_fbank80.zip", arrays)
    lines = [
        "\t".join(
            [
                name,
                f"../{references[name]}",
                str(frames),
                source,
                target,
                " ".join(map(str, units)),
                str(len(units)),
            ]
        )
        for name, frames, source, target, units in rows
    ]
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("\n".join([SPEECH_HEADER, *lines]) + "\n")
    for side, pieces in (("src", SOURCE_PIECES), ("tgt", TARGET_PIECES)):
        task = root / f"{side}_unigram"
        task.mkdir()
        (task / "dict.txt").write_text("".join(f"{side[0]}{i} 1\n" for i in range(pieces)))
        for split in ("train", "dev"):
            (task / f"{split}.tsv").write_text("\n".join(["id\ttgt_text", *texts[side]]) + "\n")
    stacked = np.concatenate(list(arrays.values()))
    np.savez(root / "gcmvn.npz", mean=stacked.mean(axis=0), std=stacked.std(axis=0))
    features = {
        "input_channels": 1,
        "input_feat_per_channel": BINS,
        "global_cmvn": {"stats_npz_path": "../gcmvn.npz"},
        "specaugment": {
            "freq_mask_F": 27,
            "freq_mask_N": 1,
            "time_mask_N": 1,
            "time_mask_T": 100,
            "time_mask_p": 1.0,
            "time_wrap_W": 0,
        },
        "transforms": {"*": ["global_cmvn"], "_train": ["global_cmvn"]},
    }
    (folder / "config_gcmvn.yaml").write_text(yaml.safe_dump(features))
    tasks = {
        name: {
            "decoder_type": kind,
            "dict": f"../{where}/dict.txt",
            "data": f"../{where}",
            "loss_weight": weight,
            "rdrop_alpha": 0.0,
            "decoder_args": {"decoder_layers": 0},
            "label_smoothing": 0.1,
        }
        for name, (kind, where, weight) in MULTITASK.items()
    }
    (folder / "config_mtl_asr_st_ctcst.yaml").write_text(yaml.safe_dump(tasks))
    return folder


def edit_line(path: Path, number: int, old: str, new: str) -> None:
    """Replace text in one line, counted from 1."""
    lines = path.read_text().split("\n")
    assert old in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new, 1)
    path.write_text("\n".join(lines))


def train_command(folder: Path, save_dir: Path, *extra: str) -> list[str]:
    """A ``fairseq-train`` command on the CPU."""
    return [
        sys.executable, "-m", "fairseq_cli.train", str(folder),
        "--user-dir", str(REPOSITORY / "echostream/fairseq_plugin"),
        "--task", "echostream", "--criterion", "echostream", "--arch", "echostream_tiny",
        "--target-code-size", str(UNITS), "--valid-subset", "dev", "--save-dir", str(save_dir),
        "--optimizer", "adam", "--adam-betas", "(0.9,0.98)", "--clip-norm", "10.0",
        "--max-tokens", "100000", "--cpu", "--num-workers", "0", "--seed", "1",
        "--log-format", "json", "--no-progress-bar",
        *extra,
    ]  # fmt: skip


def train_environment(**variables: str) -> dict[str, str]:
    """One thread, no GPU."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}


def run_training(folder: Path, save_dir: Path, *extra: str, timeout: int = 300) -> str:
    """Train; returns what was logged."""
    result = subprocess.run(
        train_command(folder, save_dir, *extra),
        env=train_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=folder,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-4000:]
    return output


def logged(output, subset):
    """The JSON lines that a subset logged."""
    mark = f"| INFO | {subset} | "
    return [json.loads(line.split(mark)[1]) for line in output.split("\n") if mark in line]
