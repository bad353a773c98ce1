"""A training checkpoint to a model directory. Needs no fairseq.

Checkpoints carry the model's configuration, vocabularies and normalisation
(:meth:`~echostream.fairseq_plugin.task.EchoStreamTask.resolve_model`), so nothing has to be
guessed and no other file is needed, except a vocoder for a system that speaks.
"""

from __future__ import annotations

import base64
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from echostream.audio import CMVN
from echostream.checkpoint import System, load_model_dir, load_state, save_model_dir
from echostream.config import EchoStreamConfig, from_dict
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder
from echostream.models.echostream_model import EchoStreamModel, freeze
from echostream.text import Vocabulary
from echostream.torch_files import read_checkpoint

logger = logging.getLogger(__name__)

STATE_KEY = "echostream"


def is_training_checkpoint(saved: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's content was written by this plugin."""
    state = saved.get("task_state")
    return isinstance(state, Mapping) and STATE_KEY in state


def read_training_checkpoint(checkpoint: Path) -> System:
    """Rebuild the system that a checkpoint holds, without a vocoder.

    Nothing in the file is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no checkpoint of this plugin, or is damaged.
    """
    saved = read_checkpoint(checkpoint, keep=("cfg", "model", "task_state"))
    if not is_training_checkpoint(saved):
        raise ValueError(
            f"{checkpoint}: was not written by echostream's fairseq plugin (its task_state has "
            f"no {STATE_KEY!r} entry)"
        )
    described = saved["task_state"][STATE_KEY]
    where = f"{checkpoint}: task_state: {STATE_KEY}"
    missing = {"config", "source", "target", "cmvn"} - set(described)
    if missing:
        raise ValueError(f"{where}: missing {sorted(missing)[0]!r}")
    config = from_dict(EchoStreamConfig, described["config"], f"{where}: config")
    config = _with_trained_policy(config, saved.get("cfg"))
    model = EchoStreamModel(config)
    load_state(model, saved["model"], str(checkpoint))
    mean, std = (
        torch.tensor(described["cmvn"][key], dtype=torch.float32) for key in ("mean", "std")
    )
    return System(
        config,
        freeze(model),
        _vocabulary(described["source"], f"{where}: source"),
        _vocabulary(described["target"], f"{where}: target"),
        CMVN(mean, std),
    )


def _with_trained_policy(config: EchoStreamConfig, cfg: Any) -> EchoStreamConfig:
    """Decode by the policy that training used, unless it had none."""
    criterion = cfg.get("criterion") if isinstance(cfg, Mapping) else None
    if not isinstance(criterion, Mapping):
        return config
    k1, n1 = criterion.get("k1"), criterion.get("n1")
    policy = config.policy
    if isinstance(k1, int):
        policy = dataclasses.replace(policy, lagging_k1=max(k1, 0))
    if isinstance(n1, int):
        policy = dataclasses.replace(policy, stride_n=n1 if n1 > 0 else 1)
    return dataclasses.replace(config, policy=policy)


def _vocabulary(described: Mapping[str, Any], where: str) -> Vocabulary:
    processor = None
    if described.get("sentencepiece") is not None:
        try:
            model = base64.b64decode(described["sentencepiece"], validate=True)
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{where}: not a SentencePiece model: {error}") from error
    return Vocabulary(described["pieces"], processor)


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    vocoder: Path | None = None,
    vocoder_cfg: Path | None = None,
    vocoder_from: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> System:
    """Write a model directory from a training checkpoint.

    Args:
        checkpoint: what ``fairseq-train`` saved.
        out: directory to write; a model directory that is there is replaced.
        vocoder, vocoder_cfg: CodeHiFiGAN checkpoint and its JSON; without them the system has
            text and units only.
        vocoder_from: model directory or name whose vocoder to take instead.
        dtype: store weights in this precision.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is wrong, or only one of the vocoder's was given.
    """
    if (vocoder is None) != (vocoder_cfg is None):
        raise ValueError("a vocoder is a checkpoint and its configuration; got only one of them")
    if vocoder is not None and vocoder_from is not None:
        raise ValueError("a vocoder comes from a checkpoint or from a model; got both")
    system = read_training_checkpoint(Path(checkpoint))
    if vocoder is not None and vocoder_cfg is not None:
        system = with_vocoder(system, CodeHiFiGANVocoder.load(vocoder, Path(vocoder_cfg)))
    if vocoder_from is not None:
        system = with_vocoder_of(system, load_model_dir(vocoder_from), str(vocoder_from))
    save_model_dir(Path(out), system, dtype=dtype)
    logger.info("wrote %s", out)
    return system


def with_vocoder_of(system: System, other: System, name: str) -> System:
    """The same system with another one's vocoder.

    Raises:
        ValueError: the other one has none, or one of other units; calls it ``name``.
    """
    if other.config.vocoder is None:
        raise ValueError(f"{name} has no vocoder")
    if other.config.num_units != system.config.num_units:
        raise ValueError(
            f"{name} speaks {other.config.num_units} units, the checkpoint writes "
            f"{system.config.num_units}"
        )
    config = dataclasses.replace(system.config, vocoder=other.config.vocoder)
    model = EchoStreamModel(config)
    theirs = other.model.state_dict().items()
    weights = {key: value for key, value in theirs if key.startswith("vocoder.")}
    load_state(model, weights | dict(system.model.state_dict()), name)
    return dataclasses.replace(system, config=config, model=freeze(model))


def with_vocoder(system: System, vocoder: CodeHiFiGANVocoder) -> System:
    """The same system, speaking.

    Raises:
        ValueError: the vocoder knows fewer units than the system writes.
    """
    config = dataclasses.replace(system.config, vocoder=vocoder.config)
    model = EchoStreamModel(config)
    weights = dict(system.model.state_dict())
    prefix = "vocoder.generator."
    weights |= {prefix + name: value for name, value in vocoder.generator.state_dict().items()}
    load_state(model, weights, "vocoder")
    return dataclasses.replace(system, config=config, model=freeze(model))
