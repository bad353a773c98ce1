"""Model directories of StreamSpeech's kind, written the way the original code loads them."""

from __future__ import annotations

import argparse
import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from echostream.checkpoint import VOCODER_PREFIX, load_model_dir
from echostream.config import to_dict
from echostream.files import atomic_directory
from echostream.streamspeech.fairseq_settings import (
    ASR_TASK,
    DATA_YAML,
    MT_TASK,
    ST_TASK,
    TASKS_YAML,
    TIED,
    VERSIONS,
    settings_from_config,
)

FAIRSEQ_CHECKPOINT = "streamspeech.pt"


def export_to_fairseq(model_dir: Path, out: Path) -> None:
    """Write a model directory as a checkpoint, data directory and vocoder for StreamSpeech.

    ``out`` gets ``streamspeech.pt`` and ``config/`` (YAML, dictionaries, CMVN, ``voc/``). The YAML
    holds absolute paths, because the original opens them from wherever it runs.

    Raises:
        FileExistsError: ``out`` exists and is not an empty directory.
        ValueError: StreamSpeech has no counterpart of a part of this model.
    """
    system = load_model_dir(model_dir)
    args, data, tasks = settings_from_config(system.config, str(model_dir))
    out = Path(os.path.abspath(out))
    config_dir = out / "config"
    args["data"] = str(config_dir)
    state = system.model.state_dict()
    generator = {
        key.removeprefix(VOCODER_PREFIX): tensor
        for key, tensor in state.items()
        if key.startswith(VOCODER_PREFIX)
    }
    state = {key: tensor for key, tensor in state.items() if not key.startswith(VOCODER_PREFIX)}
    for copy, original in TIED:
        state[copy] = state[original]
    for key in VERSIONS:
        state[key] = torch.tensor([3.0])
    data["global_cmvn"] = {"stats_npz_path": str(config_dir / "gcmvn.npz")}
    for task, folder in ((MT_TASK, "tgt"), (ASR_TASK, "src"), (ST_TASK, "tgt")):
        tasks[task]["dict"] = str(config_dir / folder / "dict.txt")
        tasks[task]["data"] = str(config_dir / folder)
    if generator:
        data["vocoder"] = {
            "checkpoint": str(config_dir / "voc" / "g"),
            "config": str(config_dir / "voc" / "config.json"),
            "type": "code_hifigan",
        }

    with atomic_directory(out, lambda folder: False, "an empty folder") as working:
        config = working / "config"
        for folder, vocabulary in (
            ("src", system.source_vocabulary),
            ("tgt", system.target_vocabulary),
        ):
            (config / folder).mkdir(parents=True)
            vocabulary.save(config / folder / "dict.txt", config / folder / "dict.model")
        mean, std = system.cmvn.mean.numpy(), system.cmvn.std.numpy()
        np.savez(config / "gcmvn.npz", mean=mean, std=std)
        for name, content in ((DATA_YAML, data), (TASKS_YAML, tasks)):
            text = yaml.safe_dump(content, sort_keys=False)
            (config / name).write_text(text, encoding="utf-8")
        if generator:
            (config / "voc").mkdir()
            torch.save({"generator": add_weight_norm(generator)}, config / "voc" / "g")
            settings = to_dict(system.config.vocoder) | {"resblock": "1", "f0": False}
            (config / "voc" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        torch.save(fairseq_checkpoint(args, state), working / FAIRSEQ_CHECKPOINT)


def fairseq_checkpoint(args: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A checkpoint as fairseq stores it: plain containers, with namespaces for model and task."""
    task = argparse.Namespace(**{**args, "_name": args["task"]})
    return {
        "cfg": {
            "_name": None,
            "common": {"_name": None, "seed": 1, "fp16": False, "user_dir": None},
            "common_eval": {"_name": None, "model_overrides": "{}", "post_process": None},
            "checkpoint": {"_name": None, "checkpoint_suffix": "", "checkpoint_shard_count": 1},
            "model": argparse.Namespace(**args),
            "task": task,
            "criterion": {"_name": args["criterion"]},
        },
        "args": None,
        "model": OrderedDict(state),
        "optimizer_history": [
            {
                "criterion_name": args["criterion"],
                "optimizer_name": "adam",
                "lr_scheduler_state": {},
                "num_updates": 0,
            }
        ],
        "task_state": {},
        "extra_state": {},
        "last_optimizer_state": None,
    }


def add_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of ``fold_weight_norm``, for the convolutions that have it."""
    split = {}
    for key, tensor in state.items():
        if key.endswith(".weight") and key.split(".")[0] not in ("dict", "dur_predictor"):
            split[f"{key}_g"], split[f"{key}_v"] = torch.norm_except_dim(tensor, 2, 0), tensor
        else:
            split[key] = tensor
    return split
