"""Conversion of StreamSpeech checkpoints (fairseq format) to model directories and back.

Nothing of fairseq is needed and nothing in a checkpoint is executed (``unpickler``).
Sizes come from the settings that the checkpoint stores and from its multitask YAML
(``settings``), and every tensor must find its place with the right shape. The way back
is in ``export``.
"""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echostream.audio import CMVN
from echostream.checkpoint import VOCODER_PREFIX, System, Unfilled, load_state
from echostream.config import EchoStreamConfig, VocoderConfig, load_yaml
from echostream.models.decoders.vocoder import read_vocoder_state, vocoder_config_from_json
from echostream.models.echostream_model import EchoStreamModel, freeze
from echostream.streamspeech.fairseq_settings import (
    ASR_TASK,
    MT_TASK,
    TIED,
    VERSIONS,
    check_tasks,
    config_from_settings,
)
from echostream.text import SPECIALS, Vocabulary
from echostream.torch_files import StandIn, read_checkpoint

logger = logging.getLogger(__name__)


def resolve_data_file(name: str, data_bin: Path) -> Path:
    """Find a file that a data directory's YAML names.

    A path that exists (relative ones inside ``data_bin``, never the current directory) is taken
    as it is. Released YAML files hold the paths of the machine that trained, so any other is
    looked up by file name inside ``data_bin``; among several, the one sharing the longest end of
    the path wins.

    Raises:
        FileNotFoundError: no file of that name.
        ValueError: several that fit equally well.
    """
    wanted = Path(name)
    direct = data_bin / wanted  # an absolute path stays as it is
    if direct.is_file():
        return direct
    candidates = sorted(path for path in data_bin.rglob(wanted.name) if path.is_file())
    if not candidates:
        raise FileNotFoundError(f"{name}: neither there nor, by file name, inside {data_bin}")

    def shared_end(path: Path) -> int:
        pairs = zip(reversed(path.parts), reversed(wanted.parts), strict=False)
        count = 0
        for ours, theirs in pairs:
            if ours != theirs:
                break
            count += 1
        return count

    best = max(map(shared_end, candidates))
    chosen = [path for path in candidates if shared_end(path) == best]
    if len(chosen) > 1:
        listed = ", ".join(str(path) for path in chosen)
        raise ValueError(f"{name}: several files inside {data_bin} fit equally well: {listed}")
    return chosen[0]


def read_streamspeech(
    checkpoint: Path,
    data_bin: Path,
    *,
    config_yaml: str | None = None,
    multitask_config_yaml: str | None = None,
    vocoder: Path | None = None,
    vocoder_cfg: Path | None = None,
    text_only: bool = False,
    to_store: torch.dtype | None = None,
) -> System:
    """Read a StreamSpeech checkpoint with its data directory into a ready model.

    Args:
        checkpoint: fairseq checkpoint.
        data_bin: data directory; the YAML files and everything they name are looked up there.
        config_yaml, multitask_config_yaml: file names, by default those of the training run.
        vocoder, vocoder_cfg: CodeHiFiGAN checkpoint and JSON, by default those that the data
            YAML names, if they can be found.
        text_only: leave the vocoder out, and admit a text-to-unit encoder that looks ahead: the
            model transcribes and translates, and does not speak.
        to_store: hold weights in this precision, and hold no more than these: the model can be
            stored, not run.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a damaged file, a part that does not exist here, or tensors that do not fit.
    """
    if not data_bin.is_dir():
        raise FileNotFoundError(f"no such data directory: {data_bin}")
    saved = read_checkpoint(checkpoint, keep=("cfg", "args", "model"))
    state, args = _state_dict(saved, checkpoint), _arguments(saved, checkpoint)
    data_file = resolve_data_file(
        str(config_yaml or args.get("config_yaml") or "config.yaml"), data_bin
    )
    tasks_name = multitask_config_yaml or args.get("multitask_config_yaml")
    if not tasks_name:
        raise ValueError(f"{checkpoint}: names no multitask YAML; pass --multitask-config-yaml")
    tasks_file = resolve_data_file(str(tasks_name), data_bin)
    data, tasks = _mapping(data_file), _mapping(tasks_file)
    check_tasks(tasks, tasks_file)
    source, target = (
        _vocabulary(tasks[task], data_bin, f"{tasks_file}: {task}") for task in (ASR_TASK, MT_TASK)
    )
    speech = None if text_only else _vocoder(data, data_bin, vocoder, vocoder_cfg)
    config = config_from_settings(
        (args | {"uni_encoder": True}) if text_only else args,
        data,
        tasks,
        (len(source), len(target)),
        speech[0] if speech else None,
        str(checkpoint),
    )
    weights = drop_tied_weights(state, str(checkpoint))
    if speech:
        weights |= {VOCODER_PREFIX + key: tensor for key, tensor in speech[1].items()}
    model = check_sizes(config, weights, str(checkpoint))
    if to_store is None:
        model = EchoStreamModel(config)
        load_state(model, weights, str(checkpoint))
    else:
        del saved, speech
        state.clear()  # nothing but `weights` holds them now, and gives one up after the other
        for key, tensor in weights.items():
            weights[key] = tensor.to(to_store) if tensor.is_floating_point() else tensor
        load_state(model, weights, str(checkpoint), assign=True)
    stats = data.get("global_cmvn") or {}
    if not isinstance(stats, dict):
        raise ValueError(f"{data_file}: global_cmvn must be a mapping, got {reprlib.repr(stats)}")
    if "stats_npz_path" not in stats:
        logger.warning(
            "%s: names no CMVN statistics (global_cmvn: stats_npz_path), so features stay as they "
            "are",
            data_file,
        )
        cmvn = CMVN.identity(config.frontend.num_mel_bins)
    else:
        cmvn = CMVN.from_npz(resolve_data_file(str(stats["stats_npz_path"]), data_bin))
    return System(config, freeze(model), source, target, cmvn)


def _state_dict(saved: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    state = saved.get("model")
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path}: has no 'model' entry with weights")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path}: model entry {key!r} is no tensor")
    return state


def _arguments(saved: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Model and task settings, merged; ``args`` is how checkpoints stored them before Hydra."""
    merged: dict[str, Any] = {}
    settings = saved.get("cfg")
    if isinstance(settings, dict):
        for part in ("task", "model"):
            if isinstance(settings.get(part), dict):
                merged |= settings[part]
    elif isinstance(saved.get("args"), dict):
        merged = dict(saved["args"])
    if not merged:
        raise ValueError(f"{path}: stores neither 'cfg' nor 'args' with the training settings")
    return {key: value for key, value in merged.items() if not isinstance(value, (StandIn, Tensor))}


def check_sizes(
    config: EchoStreamConfig, weights: Mapping[str, Tensor], where: str
) -> EchoStreamModel:
    """The settings describe the stored tensors; seen before any memory is taken for the model.

    Returns:
        The model without memory.
    """
    for name in ("encoder", "asr_ctc", "st_ctc", "mt", "t2u", "unit"):
        layers = getattr(config, name).layers
        used = config.num_units or name not in ("t2u", "unit")
        if used and layers > len(weights):
            raise ValueError(
                f"{where}: every layer needs weights, but the settings give {name} {layers} "
                f"layers and the file holds {len(weights)} tensors"
            )
    try:
        with torch.device("meta"), Unfilled():
            model = EchoStreamModel(config)
    except (RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{where}: no model has the sizes in the settings: {reason}") from error
    load_state(model, {key: tensor.to("meta") for key, tensor in weights.items()}, where)
    return model


def _mapping(path: Path) -> dict[str, Any]:
    data = load_yaml(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping, got {type(data).__name__}")
    return data


def _vocabulary(task: Mapping[str, Any], data_bin: Path, where: str) -> Vocabulary:
    if not task.get("dict"):
        raise ValueError(f"{where}: names no dict")
    dictionary = resolve_data_file(str(task["dict"]), data_bin)
    same_name = dictionary.with_suffix(".model")
    models = [same_name] if same_name.is_file() else sorted(dictionary.parent.glob("*.model"))
    model = models[0] if len(models) == 1 else None
    vocabulary = Vocabulary.load(dictionary, model)
    if vocabulary.processor is not None:
        processor = vocabulary.processor
        for piece in vocabulary.pieces[len(SPECIALS) :]:
            if processor.id_to_piece(processor.piece_to_id(piece)) != piece:
                raise ValueError(
                    f"{dictionary} does not belong to {model}: every piece of the dictionary must "
                    f"be in the SentencePiece model beside it, which lacks {piece!r}"
                )
    return vocabulary


def _vocoder(
    data: Mapping[str, Any], data_bin: Path, checkpoint: Path | None, config: Path | None
) -> tuple[VocoderConfig, dict[str, Tensor]] | None:
    if (checkpoint is None) != (config is None):
        raise ValueError("a vocoder and its configuration go together, got only one of them")
    if checkpoint is None or config is None:
        named = data.get("vocoder")
        if not isinstance(named, dict) or "checkpoint" not in named or "config" not in named:
            return None
        try:
            checkpoint = resolve_data_file(str(named["checkpoint"]), data_bin)
            config = resolve_data_file(str(named["config"]), data_bin)
        except FileNotFoundError as error:
            logger.warning("no vocoder converted: %s", error)
            return None
    return vocoder_config_from_json(config), read_vocoder_state(checkpoint)


def drop_tied_weights(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Remove what fairseq stores twice or for itself.

    The text decoder's output projection is its embedding, the unit decoder's embedding is its
    output projection, and ``version`` and ``_float_tensor`` are fairseq's own marks.

    Raises:
        ValueError: a pair that should be the same tensor is not, or decoders older than the
            final norm.
    """
    kept = dict(state)
    for key in VERSIONS:
        # fairseq leaves out the final norm of decoders below version 3.
        version = state.get(key)
        if version is None or version.numel() != 1 or not float(version) >= 3:
            got = "none" if version is None else reprlib.repr(version.tolist())
            raise ValueError(f"{where}: {key} must be one number of at least 3, got {got}")
    for copy, original in TIED:
        if copy in kept and original in kept:
            if not torch.equal(kept[copy], kept[original]):
                raise ValueError(f"{where}: {copy} and {original} differ, they should be tied")
            del kept[copy]
    for key in state:
        if key in VERSIONS or key.endswith("embed_positions._float_tensor"):
            del kept[key]
    return kept
