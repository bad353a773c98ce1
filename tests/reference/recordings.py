"""Recorded StreamSpeech: the part that lies here, and the whole recording beside the checkout.

``data/`` (see README.md) is part of the repository. Parity tests run on it and fail without it. The
whole recording is larger and lies in ``../shared/reference`` on some machines. What it adds is
tested where it is there.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from echostream.streamspeech.fairseq_settings import DATA_YAML, TASKS_YAML, TIED

DATA = Path(__file__).parent / "data"
WHOLE = Path(__file__).resolve().parents[3] / "shared" / "reference"
# "subset" is "tiny" with one clip; "tiny" and "mid" are the whole recordings.
SUBSET, TINY, MID = "subset", "tiny", "mid"
SUBSET_CLIPS = ("common_voice_fr_17767732",)
# One batch-norm counter for each layer of the encoder; recordings in safetensors lack integers.
COUNTER = "encoder.conformer_layers.{}.conv_module.batch_norm.num_batches_tracked"


@dataclass(frozen=True)
class Recording:
    """A recorded model.

    Attributes:
        name: ``subset``, ``tiny`` or ``mid``.
        folder: the recorded numbers.
        release: ``streamspeech.pt`` and ``config/``, as training left them.
    """

    name: str
    folder: Path
    release: Path

    @property
    def checkpoint(self) -> Path:
        return self.release / "streamspeech.pt"

    @property
    def config(self) -> Path:
        return self.release / "config"

    @functools.cached_property
    def weights(self) -> dict[str, Tensor]:
        """The state dict's floating-point part."""
        return whole_state(load_file(self.folder / "model.safetensors"))

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Inputs (``in.*``) and outputs."""
        return load_file(self.folder / "tensors.safetensors")

    @functools.cached_property
    def features(self) -> dict[str, Tensor]:
        """Name of a clip's wav file to its normalised filterbank (frames, 80)."""
        return load_file(self.folder / "features.safetensors")

    def number(self, flag: str) -> int:
        """An argument of the training command."""
        arguments = json.loads((self.folder / "meta.json").read_text())["argv"]
        return int(arguments[arguments.index(flag) + 1])

    def runs(self, task: str) -> list[dict[str, Any]]:
        """What the published agents did on each clip at each chunk size.

        A clip that the subset has is left out of the whole recording of the same model.
        """
        kind = "agent" if task == "s2st" else "text_agent"
        runs = json.loads((self.folder / f"{kind}_transcripts.json").read_text())
        return [
            run
            for run in runs
            if run.get("task", "s2st") == task
            and not (self.name == TINY and Path(run["wav"]).stem in SUBSET_CLIPS)
        ]


def whole_state(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the second copies that fairseq stores."""
    return weights | {copy: weights[kept] for copy, kept in TIED}


def write_release(out: Path) -> None:
    """Write the subset's model as training leaves it: a pickled checkpoint and a data directory.

    Only numbers and words are part of the repository. A pickle is made when it is needed.
    """
    numbers = DATA / "streamspeech_tiny"
    recorded = json.loads((numbers / "meta.json").read_text())
    weights = whole_state(load_file(numbers / "model.safetensors"))
    counters = [COUNTER.format(layer) for layer in range(recorded["model"]["encoder_layers"])]
    settings = argparse.Namespace(**recorded["model"])
    saved = {
        "args": None,
        "cfg": {"_name": None, "model": settings, "task": settings},
        "model": OrderedDict(weights | {name: torch.tensor(0) for name in counters}),
        "optimizer_history": [],
        "task_state": {},
        "extra_state": {},
        "last_optimizer_state": None,
    }
    config = out / "config"
    (config / "voc").mkdir(parents=True)
    torch.save(saved, out / "streamspeech.pt")
    for side, pieces in recorded["dictionaries"].items():
        (config / side).mkdir()
        (config / side / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces))
    (config / DATA_YAML).write_text(yaml.safe_dump(recorded["data"], sort_keys=False))
    (config / TASKS_YAML).write_text(yaml.safe_dump(recorded["tasks"], sort_keys=False))
    (config / "voc" / "config.json").write_text(json.dumps(recorded["vocoder"]))
    vocoder = load_file(numbers / "vocoder.safetensors")
    torch.save({"generator": vocoder}, config / "voc" / "g")
    shutil.copy(numbers / "gcmvn.npz", config)


def require_whole(path: str = "") -> Path:
    """A path in the whole recording, or skip."""
    found = WHOLE / path
    if not found.exists():
        pytest.skip(f"not in the repository, and ../shared/reference is not there: {path}")
    return found


def opener(scratch: Callable[[], Path]) -> Callable[[str], Recording]:
    """A function from a recording's name to the recording, which is opened once.

    Args:
        scratch: makes a new folder, for the release of the subset.
    """

    @functools.cache
    def open_recording(name: str) -> Recording:
        if name != SUBSET:
            folder = require_whole(f"streamspeech_{name}")
            return Recording(name, folder, folder)
        release = scratch()
        write_release(release)
        return Recording(name, DATA / "streamspeech_tiny", release)

    return open_recording


def clip(wav: str) -> Path:
    """The file of a recorded clip: here, or in the whole recording (else skip)."""
    if Path(wav).stem in SUBSET_CLIPS:
        return DATA / "audio" / f"{Path(wav).stem}.flac"
    return require_whole(f"audio/{wav}")
