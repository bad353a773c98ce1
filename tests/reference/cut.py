"""Cut the part that lies here out of the whole recording.

    python -m tests.reference.cut ../shared/reference

Numbers are copied as they are. Left out are the second copies of tied weights, all but one clip,
paths of the training machine and every pickle.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file

from echostream.streamspeech.fairseq_settings import DATA_YAML, TASKS_YAML, TIED
from echostream.torch_files import read_checkpoint
from tests.reference.recordings import DATA, SUBSET_CLIPS

WAVS = [f"{clip}.wav" for clip in SUBSET_CLIPS]


def lines(values: list[Any]) -> str:
    """A JSON list, one value a line."""
    return "[\n" + ",\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n]\n"


def cut_model(whole: Path, out: Path) -> None:
    """Weights, inputs and outputs, transcripts and settings of the tiny model."""
    out.mkdir(parents=True)
    weights = load_file(whole / "model.safetensors")
    for copy, kept in TIED:
        if not torch.equal(weights.pop(copy), weights[kept]):
            raise ValueError(f"{whole}: {copy} should equal {kept}")
    save_file(weights, out / "model.safetensors")
    for name in ("tensors", "vocoder"):
        shutil.copyfile(whole / f"{name}.safetensors", out / f"{name}.safetensors")
    features = load_file(whole / "features.safetensors")
    save_file({wav: features[wav] for wav in WAVS}, out / "features.safetensors")
    for name in ("agent_transcripts.json", "text_agent_transcripts.json"):
        runs = json.loads((whole / name).read_text())
        (out / name).write_text(lines([run for run in runs if run["wav"] in WAVS]))
    config = whole / "config"
    shutil.copyfile(config / "gcmvn.npz", out / "gcmvn.npz")
    trained = read_checkpoint(whole / "streamspeech.pt", keep=("cfg",))["cfg"]["model"]
    meta = {
        "argv": json.loads((whole / "meta.json").read_text())["argv"],
        "model": {key: value for key, value in trained.items() if key != "plasma_path"},
        "data": yaml.safe_load((config / DATA_YAML).read_text()),
        "tasks": yaml.safe_load((config / TASKS_YAML).read_text()),
        "vocoder": json.loads((config / "voc" / "config.json").read_text()),
        "dictionaries": {
            side: (config / side / "dict.txt").read_text(encoding="utf-8").split()[::2]
            for side in ("src", "tgt")
        },
    }
    entries = [
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in meta.items()
    ]
    (out / "meta.json").write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")


def cut_metrics(whole: Path, out: Path) -> None:
    """The scripted runs and what the fork of SimulEval reports for them."""
    out.mkdir(parents=True)
    for name in ("expected_scores.tsv", "expected_metrics.tsv"):
        shutil.copyfile(whole / name, out / name)
    script = json.loads((whole / "script.json").read_text())
    (out / "script.json").write_text(json.dumps(script) + "\n")


def main(whole: Path) -> None:
    cut_model(whole / "streamspeech_tiny", DATA / "streamspeech_tiny")
    for run in ("a", "b"):
        cut_metrics(whole / "metrics" / run, DATA / "metrics" / run)
    (DATA / "audio").mkdir()
    for clip in SUBSET_CLIPS:
        samples, rate = soundfile.read(whole / "audio" / f"{clip}.wav", dtype="int16")
        soundfile.write(DATA / "audio" / f"{clip}.flac", samples, rate)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
