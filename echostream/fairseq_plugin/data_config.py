"""The two YAML files of a data folder, read strictly.

``config_gcmvn.yaml`` describes features (global CMVN, SpecAugment, where audio lies),
``config_mtl_asr_st_ctcst.yaml`` the three text tasks. Both are StreamSpeech's. Paths in them are
relative to the file that names them; absolute ones work too.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echostream.audio import CMVN
from echostream.config import load_yaml
from echostream.text import Vocabulary

logger = logging.getLogger(__name__)

MT_TASK, ASR_TASK, ST_TASK = "target_unigram", "source_unigram", "ctc_target_unigram"
DECODER_TYPES = {MT_TASK: "transformer", ASR_TASK: "ctc", ST_TASK: "ctc"}

_DATA_KEYS = {
    "audio_root",
    "feature_transforms",
    "global_cmvn",
    "input_channels",
    "input_feat_per_channel",
    "specaugment",
    "transforms",
    "vocoder",
}
_TASK_KEYS = {
    "data",
    "decoder_args",
    "decoder_type",
    "dict",
    "input_from",
    "label_smoothing",
    "loss_weight",
    "rdrop_alpha",
}
_VOCODER_KEYS = {"checkpoint", "config", "type"}


def resolve(name: Any, base: Path, where: str, *, folder: bool = False) -> Path:
    """Find what ``name`` means in a file that lies in ``base``.

    Raises:
        ValueError: ``name`` is no string.
        FileNotFoundError: it is not there; ``where`` says who asked.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: expected a path, got {name!r}")
    path = base / name  # an absolute name replaces the base
    if not (path.is_dir() if folder else path.is_file()):
        kind = "folder" if folder else "file"
        raise FileNotFoundError(f"{where}: no such {kind}: {path}")
    return path


def _mapping(value: Any, where: str, allowed: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected a mapping, got {type(value).__name__}")
    if allowed is not None:
        for key in value:
            if key not in allowed:
                raise ValueError(
                    f"{where}: unknown key {key!r}; allowed: {', '.join(sorted(allowed))}"
                )
    return dict(value)


def _number(value: Any, where: str, *, low: float = 0.0, high: float | None = None) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where}: expected a number, got {value!r}")
    if value < low or (high is not None and value > high):
        limits = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
        raise ValueError(f"{where}: must be {limits}, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class SpecAugmentConfig:
    """SpecAugment (Park et al., 2019) without time warping: ``N`` masks of up to ``F`` mel bins
    or ``T`` frames, the latter at most the share ``p`` of the utterance."""

    freq_mask_F: int = 0
    freq_mask_N: int = 0
    time_mask_T: int = 0
    time_mask_N: int = 0
    time_mask_p: float = 0.0

    @classmethod
    def from_mapping(cls, data: Any, where: str) -> SpecAugmentConfig:
        fields = {field.name for field in dataclasses.fields(cls)}
        values = _mapping(data, where, {*fields, "time_wrap_W", "mask_value"})
        if values.pop("time_wrap_W", 0):
            raise ValueError(f"{where}: time warping (time_wrap_W above 0) is not supported")
        if values.pop("mask_value", None) is not None:
            raise ValueError(f"{where}: masks take the utterance's mean; drop mask_value")
        for name, value in values.items():
            high = 1.0 if name == "time_mask_p" else None
            number = _number(value, f"{where}: {name}", high=high)
            if name != "time_mask_p" and number != int(number):
                raise ValueError(f"{where}: {name} must be whole, got {value!r}")
            values[name] = number if name == "time_mask_p" else int(number)
        return cls(**values)


@dataclass(frozen=True)
class DataConfig:
    """What ``config_gcmvn.yaml`` says.

    Attributes:
        bins: mel bins per frame.
        audio_root: what relative paths in manifests are relative to, or None: the manifest.
        cmvn: global mean and standard deviation.
        specaugment: applied in training, or None.
        transforms: names of the feature transforms per kind of split.
        vocoder: checkpoint and configuration of a vocoder, if both exist.
    """

    path: Path
    bins: int
    audio_root: Path | None
    cmvn: CMVN
    specaugment: SpecAugmentConfig | None
    transforms: dict[str, tuple[str, ...]]
    vocoder: tuple[Path, Path] | None

    @classmethod
    def load(cls, path: Path) -> DataConfig:
        """Read and check the file.

        Raises:
            FileNotFoundError: the file, or one that it names, is missing.
            ValueError: a key is unknown, missing or wrong; names file and key.
        """
        data = _mapping(load_yaml(path), str(path), _DATA_KEYS)
        base = path.parent
        if data.get("input_channels", 1) != 1:
            raise ValueError(f"{path}: input_channels must be 1, got {data['input_channels']!r}")
        bins = data.get("input_feat_per_channel", 80)
        if type(bins) is not int or bins < 1:
            raise ValueError(f"{path}: input_feat_per_channel must be positive, got {bins!r}")
        transforms = _read_transforms(data, path)
        used = {name for names in transforms.values() for name in names}
        specaugment = None
        if "specaugment" in used:
            if "specaugment" not in data:
                raise ValueError(f"{path}: transforms use specaugment, which is not configured")
            specaugment = SpecAugmentConfig.from_mapping(
                data["specaugment"], f"{path}: specaugment"
            )
        cmvn = CMVN.identity(bins)
        if "global_cmvn" in used:
            stats = _mapping(data.get("global_cmvn"), f"{path}: global_cmvn", {"stats_npz_path"})
            where = f"{path}: global_cmvn: stats_npz_path"
            cmvn = CMVN.from_npz(resolve(stats.get("stats_npz_path"), base, where))
            if len(cmvn.mean) != bins:
                raise ValueError(
                    f"{where}: the statistics have {len(cmvn.mean)} bins, "
                    f"input_feat_per_channel is {bins}"
                )
        root = data.get("audio_root")
        return cls(
            path,
            bins,
            resolve(root, base, f"{path}: audio_root", folder=True) if root else None,
            cmvn,
            specaugment,
            transforms,
            _read_vocoder(data, path),
        )

    def transforms_for(self, split: str, *, training: bool) -> tuple[str, ...]:
        """Feature transforms of a split: its own entry, else that of its kind, else of all."""
        kind = "_train" if training else "_eval"
        for key in (split, kind, "*"):
            if key in self.transforms:
                return self.transforms[key]
        return ()


def _read_transforms(data: dict[str, Any], path: Path) -> dict[str, tuple[str, ...]]:
    if "transforms" in data and "feature_transforms" in data:
        raise ValueError(f"{path}: transforms and feature_transforms mean the same; give one")
    key = "feature_transforms" if "feature_transforms" in data else "transforms"
    transforms: dict[str, tuple[str, ...]] = {}
    for split, names in _mapping(data.get(key) or {}, f"{path}: {key}").items():
        where = f"{path}: {key}: {split}"
        if not isinstance(names, list):
            raise ValueError(f"{where}: expected a list, got {names!r}")
        for name in names:
            if name not in ("global_cmvn", "specaugment"):
                raise ValueError(
                    f"{where}: unknown transform {name!r}; a streaming model can apply "
                    "global_cmvn, and training adds specaugment"
                )
        if "specaugment" in names and "global_cmvn" in names[names.index("specaugment") :]:
            raise ValueError(f"{where}: global_cmvn must come before specaugment")
        transforms[split] = tuple(names)
    normalised = {split: "global_cmvn" in names for split, names in transforms.items()}
    if len(set(normalised.values())) > 1:
        raise ValueError(f"{path}: {key}: every split must be normalised, or none: {normalised}")
    return transforms


def _read_vocoder(data: dict[str, Any], path: Path) -> tuple[Path, Path] | None:
    """A vocoder is not needed for training, so one that is not there is only reported."""
    if not data.get("vocoder"):
        return None
    where = f"{path}: vocoder"
    named = _mapping(data["vocoder"], where, _VOCODER_KEYS)
    if named.get("type", "code_hifigan") != "code_hifigan":
        raise ValueError(f"{where}: type must be code_hifigan, got {named['type']!r}")
    try:
        checkpoint, config = (
            resolve(named.get(key), path.parent, f"{where}: {key}")
            for key in ("checkpoint", "config")
        )
    except FileNotFoundError as error:
        logger.warning("no vocoder: %s", error)
        return None
    return checkpoint, config


@dataclass(frozen=True)
class TextTask:
    """One text target.

    Attributes:
        name: also names the module that predicts it.
        data: folder with a TSV per split.
        vocabulary: with the SentencePiece model, if one lies beside the dictionary.
        loss_weight: factor of its loss.
        label_smoothing: of the text decoder; None: the command line's.
        decoder_args: sizes as the file gives them; the architecture decides.
    """

    name: str
    data: Path
    vocabulary: Vocabulary
    loss_weight: float
    label_smoothing: float | None
    decoder_args: dict[str, Any]

    @property
    def is_ctc(self) -> bool:
        return DECODER_TYPES[self.name] == "ctc"


def load_text_tasks(path: Path) -> dict[str, TextTask]:
    """Read the multitask YAML.

    Raises:
        FileNotFoundError: the file, or one that it names, is missing.
        ValueError: a task is missing or unknown, or one of its keys is wrong.
    """
    data = _mapping(load_yaml(path), str(path), set(DECODER_TYPES))
    missing = [name for name in DECODER_TYPES if name not in data]
    if missing:
        raise ValueError(
            f"{path}: missing task {missing[0]!r}; required: {', '.join(DECODER_TYPES)}"
        )
    tasks = {name: _read_task(name, data[name], path) for name in DECODER_TYPES}
    pieces = tasks[MT_TASK].vocabulary.pieces
    if tasks[ST_TASK].vocabulary.pieces != pieces:
        raise ValueError(f"{path}: {MT_TASK} and {ST_TASK} must share one dictionary")
    return tasks


def _read_task(name: str, data: Any, path: Path) -> TextTask:
    where = f"{path}: {name}"
    task = _mapping(data, where, _TASK_KEYS)
    if task.get("decoder_type") != DECODER_TYPES[name]:
        raise ValueError(
            f"{where}: decoder_type must be {DECODER_TYPES[name]!r}, "
            f"got {task.get('decoder_type')!r}"
        )
    if task.get("input_from", "encoder") != "encoder":
        raise ValueError(f"{where}: input_from must be 'encoder', got {task['input_from']!r}")
    if task.get("rdrop_alpha"):
        raise ValueError(f"{where}: R-Drop (rdrop_alpha above 0) is not supported")
    weight = _number(task.get("loss_weight", 1.0), f"{where}: loss_weight")
    smoothing = task.get("label_smoothing")
    if smoothing is not None:
        smoothing = _number(smoothing, f"{where}: label_smoothing", high=0.999)
    dictionary = resolve(task.get("dict"), path.parent, f"{where}: dict")
    models = sorted(dictionary.parent.glob("*.model"))
    model = dictionary.with_suffix(".model")
    if not model.is_file() and len(models) == 1:
        model = models[0]
    return TextTask(
        name,
        resolve(task.get("data"), path.parent, f"{where}: data", folder=True),
        Vocabulary.load(dictionary, model),
        weight,
        smoothing,
        _mapping(task.get("decoder_args") or {}, f"{where}: decoder_args"),
    )
