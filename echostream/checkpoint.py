"""Model directories: everything a system needs, self-contained and safe to load.

    config.yaml            EchoStreamConfig
    model.safetensors      weights, StreamSpeech's names
    encoder.safetensors    those of the encoder, if they are kept apart
    vocoder.safetensors    CodeHiFiGAN generator (if the system speaks)
    cmvn.npz               global mean and std of the filterbank
    source.dict.txt        fairseq dictionary of the transcript, and source.spm.model
    target.dict.txt        fairseq dictionary of the translation, and target.spm.model
    transcript.dict.txt    what the text decoder transcribes in, if it does
    voice/                 the voice that speaks its translation (if ``speech.voice`` is ``own``)
    provenance.json        where it came from: files, hashes, licences (if it was fetched)

Nothing in it is executed on loading. Saving goes through a temporary directory, so that a
directory under the final name is always whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from echostream.audio import CMVN, build_frontend
from echostream.config import (
    EchoStreamConfig,
    Settings,
    SpeechConfig,
    load_config,
    save_config,
)
from echostream.files import atomic_directory, install_directory
from echostream.hub.names import resolve_model
from echostream.int8_storage import from_int8, to_int8
from echostream.models.echostream_model import EchoStreamModel, freeze
from echostream.precision import check_dtype, convert
from echostream.samples import WindowedFrontend
from echostream.text import Vocabulary
from echostream.voice.folder import INVENTORY_FILE, PROSODY_FILE, Voice
from echostream.voice.folder import VOCODER_FILE as VOICE_VOCODER_FILE
from echostream.voice.named import OWN, OWN_FOLDER, open_voice, voice_folder

if TYPE_CHECKING:  # its packages are optional
    from echostream.voice.streaming_voice import StreamingVoice

CONFIG_FILE = "config.yaml"
MODEL_FILE = "model.safetensors"
ENCODER_FILE = "encoder.safetensors"
VOCODER_FILE = "vocoder.safetensors"
CMVN_FILE = "cmvn.npz"
PROVENANCE_FILE = "provenance.json"
ENCODER_PREFIX = "encoder."
VOCODER_PREFIX = "vocoder.generator."
# Files of weights, and what their names are called in the model.
WEIGHT_FILES = {MODEL_FILE: "", ENCODER_FILE: ENCODER_PREFIX, VOCODER_FILE: VOCODER_PREFIX}
_FILLING = {name for name in dir(torch.nn.init) if name.endswith("_") and name[0] != "_"}
VOICE_FILES = {
    f"{OWN_FOLDER}/{name}" for name in (INVENTORY_FILE, PROSODY_FILE, VOICE_VOCODER_FILE)
}
KNOWN_FILES = {CONFIG_FILE, *WEIGHT_FILES, CMVN_FILE, PROVENANCE_FILE} | VOICE_FILES
KNOWN_FILES |= {
    f"{side}.{kind}" for side in ("source", "target") for kind in ("dict.txt", "spm.model")
}
TRANSCRIPT_FILE = "transcript.dict.txt"
KNOWN_FILES.add(TRANSCRIPT_FILE)


@dataclass
class System:
    """A loaded model directory.

    Attributes:
        source_vocabulary: of the ASR head.
        target_vocabulary: of the translation.
        folder: where it lies; None for one that was made.
        voices: those that were loaded, by their names in settings.
        transcript_vocabulary: of the transcripts that the text decoder writes; None: it writes
            none, and the ASR head's are shown.
    """

    config: EchoStreamConfig
    model: EchoStreamModel
    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    cmvn: CMVN
    folder: Path | None = None
    voices: dict[str, StreamingVoice] = field(default_factory=dict, repr=False)
    transcript_vocabulary: Vocabulary | None = None

    def __post_init__(self) -> None:
        for name, vocabulary, size in (
            ("source", self.source_vocabulary, self.config.source_vocab_size),
            ("target", self.target_vocabulary, self.config.target_vocab_size),
            ("transcript", self.transcript_vocabulary, self.config.mt.transcript_vocab_size),
        ):
            if vocabulary is None and not size:
                continue
            if vocabulary is None:
                raise ValueError(
                    f"the configuration names {size} subwords of transcripts, of which "
                    "there is no vocabulary"
                )
            if len(vocabulary) != size:
                raise ValueError(
                    f"the {name} vocabulary has {len(vocabulary)} entries (4 special symbols "
                    f"included), the configuration says {size}"
                )

    def frontend(self) -> WindowedFrontend:
        return build_frontend(self.config.frontend, self.cmvn)

    def voice(self, speech: SpeechConfig | None = None) -> StreamingVoice | None:
        """What speaks the translation, where it is not the unit decoder; loaded once, to where the
        model is.

        Args:
            speech: other settings than the system's.

        Raises:
            FileNotFoundError: there is no such voice.
            ValueError: it is damaged, or what it needs is not on this machine.
        """
        name = (self.config.speech if speech is None else speech).voice
        if name is None:
            return None
        if name not in self.voices:
            device = next(self.model.parameters()).device
            self.voices[name] = open_voice(voice_folder(name, self.folder), device)
        return self.voices[name]

    def move(self, device: str) -> None:
        """Move model and voices."""
        self.model.to(device)
        for voice in self.voices.values():
            voice.voice.to(device)

    def with_settings(self, settings: Settings) -> System:
        """The same weights under other settings."""
        return replace(self, config=replace(self.config, **settings.sections()))


def save_model_dir(
    path: Path,
    system: System,
    *,
    dtype: torch.dtype | None = None,
    encoder_apart: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a model directory, replacing one that is there.

    Args:
        dtype: store floating-point weights in this precision; ``torch.int8`` stores large matrices
            in eight bits (:mod:`echostream.int8_storage`).
        encoder_apart: keep the encoder's weights in a file of their own, for hosts that limit the
            size of files.
        provenance: where it came from, as JSON values.
    """
    with atomic_directory(Path(path), _is_model_dir, "a model directory") as staging:
        save_config(system.config, staging / CONFIG_FILE)
        files: dict[str, dict[str, Tensor]] = {name: {} for name in WEIGHT_FILES}
        apart = [VOCODER_FILE, ENCODER_FILE] if encoder_apart else [VOCODER_FILE]
        for name, tensor in system.model.state_dict().items():
            if dtype not in (None, torch.int8) and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            own = next((file for file in apart if name.startswith(WEIGHT_FILES[file])), MODEL_FILE)
            name = name.removeprefix(WEIGHT_FILES[own])
            files[own][name] = tensor.detach().cpu().contiguous()
        for file, weights in files.items():
            if weights or file == MODEL_FILE:
                save_file(to_int8(weights) if dtype == torch.int8 else weights, staging / file)
        mean, std = system.cmvn.mean.numpy(), system.cmvn.std.numpy()
        np.savez(staging / CMVN_FILE, mean=mean, std=std)
        for name, vocabulary in (
            ("source", system.source_vocabulary),
            ("target", system.target_vocabulary),
        ):
            vocabulary.save(staging / f"{name}.dict.txt", staging / f"{name}.spm.model")
        if system.transcript_vocabulary is not None:
            system.transcript_vocabulary.save(staging / TRANSCRIPT_FILE)
        if system.config.speech.voice == OWN:
            known = system.voices.get(OWN)
            voice = known.voice if known else Voice.load(voice_folder(OWN, system.folder))
            voice.save(staging / OWN_FOLDER)
        if provenance is not None:
            write_provenance(staging, provenance)


def write_provenance(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write where a model directory came from into it."""
    text = json.dumps(provenance, ensure_ascii=False, indent=1)
    (folder / PROVENANCE_FILE).write_text(text + "\n", encoding="utf-8")


def read_provenance(folder: Path) -> dict[str, Any]:
    """Where a model directory came from, as its maker says; empty if it does not say."""
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a mapping, got {type(found).__name__}")
    return found


def install(staging: Path, path: Path) -> None:
    """Move a finished model directory from beside its place into it.

    Raises:
        FileExistsError: something else than a model directory is there.
    """
    install_directory(staging, path, _is_model_dir, "a model directory")


def _is_model_dir(path: Path) -> bool:
    """Whether a directory holds a model and nothing else, so that replacing it loses nothing."""
    names = {entry.relative_to(path).as_posix() for entry in path.rglob("*")}
    return {CONFIG_FILE, MODEL_FILE} <= names <= KNOWN_FILES | {OWN_FOLDER}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such weights file: {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error


class Unfilled(TorchFunctionMode):
    """Leaves out that new weights are filled with random numbers, where all of them are to be
    loaded. On the ``meta`` device, torch would also load 150 MB of modules to find out what filling
    comes to."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _FILLING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def load_state(
    model: torch.nn.Module, state: dict[str, Tensor], where: str, *, assign: bool = False
) -> None:
    """Load weights strictly.

    Args:
        assign: take the tensors themselves instead of copying what they hold.

    Raises:
        ValueError: keys or shapes do not match; lists them.
    """
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in own]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the configuration needs {tuple(t.shape)}"
        for key, t in own.items()
        if key in state and state[key].shape != t.shape
    ]
    if problems:
        shown = "; ".join(problems[:20]) + ("; ..." if len(problems) > 20 else "")
        raise ValueError(f"{where}: weights do not fit the configuration: {shown}")
    model.load_state_dict(state, assign=assign)


def normalize_device(device: str | None) -> str:
    """``cpu``, ``cuda`` or ``cuda:N``; StreamSpeech's ``gpu`` means ``cuda``.

    Raises:
        ValueError: no such device here.
    """
    name = {"gpu": "cuda", None: "cpu"}.get(device) or str(device)
    try:
        parsed = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}") from error
    if parsed.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} was asked for, but {torch.cuda.device_count()} CUDA devices are "
            "available"
        )
    return name


def load_model_dir(
    path: str | Path, *, device: str = "cpu", dtype: str | torch.dtype = torch.float32
) -> System:
    """Load a model directory for inference.

    Args:
        path: a directory, or a model's name (see :mod:`echostream.hub.names`).
        dtype: what to compute in: one of ``echostream.precision.DTYPES``, or torch's name of it.

    Raises:
        FileNotFoundError: the directory or a file in it is missing.
        ValueError: a file is corrupt or does not fit the configuration.
    """
    path = resolve_model(path)
    device = normalize_device(device)
    check_dtype(dtype, device)
    config = load_config(path / CONFIG_FILE)
    with Unfilled():
        model = EchoStreamModel(config)
    weights = {}
    for file, prefix in WEIGHT_FILES.items():
        needed = file == MODEL_FILE or (file == VOCODER_FILE and config.vocoder is not None)
        if needed or (file == ENCODER_FILE and (path / file).is_file()):
            stored = from_int8(read_safetensors(path / file), str(path / file))
            weights.update({prefix + key: tensor for key, tensor in stored.items()})
    load_state(model, weights, str(path))
    try:
        return System(
            config,
            convert(freeze(model), dtype, device),
            Vocabulary.load(path / "source.dict.txt", path / "source.spm.model"),
            Vocabulary.load(path / "target.dict.txt", path / "target.spm.model"),
            CMVN.from_npz(path / CMVN_FILE),
            path,
            transcript_vocabulary=(
                Vocabulary.load(path / TRANSCRIPT_FILE) if config.mt.transcribes else None
            ),
        )
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: {error}") from error
