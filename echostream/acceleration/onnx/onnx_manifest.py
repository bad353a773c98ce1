"""What a folder of exported graphs holds: ``manifest.json``, read and checked without torch.

    manifest.json        this file's content: configuration, shapes, versions, checksums
    subsampler.onnx      filterbank frames to encoder frames
    encoder.onnx         one segment through the encoder, and both CTC heads
    source.onnx          encoder frames to what the text decoder's cross-attention sees
    text_decoder.onnx    one subword
    unit_decoder.onnx    text states to labels of unit frames
    durations.onnx       units to how long they last (if the vocoder predicts that)
    vocoder.onnx         unit frames to waveform (if the system speaks)
    frontend.npz         filterbank tables, and mean and standard deviation of its bins
    source.dict.txt, source.spm.model, target.dict.txt, target.spm.model

Nothing in the folder is executed on loading but the graphs, and those only if they are what the
manifest was written for.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from echostream.config import EchoStreamConfig, from_dict, to_dict

MANIFEST_FILE = "manifest.json"
FRONTEND_FILE = "frontend.npz"
FORMAT = 1  # raised whenever a folder written before can no longer be read
GRAPHS = (
    "subsampler",
    "encoder",
    "source",
    "text_decoder",
    "unit_decoder",
    "durations",
    "vocoder",
)
SIDES = ("source", "target")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; axes of no fixed size are named by a letter or two."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One exported graph.

    Attributes:
        file: its name in the folder.
        inputs, outputs: in order.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def shape(self, name: str) -> tuple[int | str, ...]:
        """Of an input.

        Raises:
            KeyError: there is none of this name.
        """
        return {spec.name: spec.shape for spec in self.inputs}[name]


@dataclass(frozen=True)
class VocoderSpec:
    """What the vocoder's caller has to know of it.

    Attributes:
        left_context_frames: unit frames before a frame that its samples depend on.
        unsettled_units: units at the end whose predicted durations may still change; 0 without a
            duration predictor.
    """

    left_context_frames: int
    unsettled_units: int


@dataclass(frozen=True)
class Manifest:
    """Content of ``manifest.json``.

    Attributes:
        config: of the system.
        graphs: by name, those of :data:`GRAPHS` that the system needs.
        state: shape of everything that one stream remembers between steps, by name.
        vocoder: None: the system does not speak.
        vocabularies: entries of each side, special symbols included.
        versions: of what wrote the folder.
        sha256: of every other file in it.
    """

    config: EchoStreamConfig
    graphs: dict[str, GraphSpec]
    state: dict[str, tuple[int | str, ...]]
    vocoder: VocoderSpec | None
    vocabularies: dict[str, int]
    versions: dict[str, str]
    sha256: dict[str, str]

    def to_json(self) -> str:
        data = {
            "format": FORMAT,
            "versions": self.versions,
            "vocabularies": self.vocabularies,
            "vocoder": None if self.vocoder is None else asdict(self.vocoder),
            "state": self.state,
            "graphs": {name: asdict(graph) for name, graph in self.graphs.items()},
            "sha256": self.sha256,
            "config": to_dict(self.config),
        }
        return json.dumps(data, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and check a folder's manifest; the files that it names are not read yet.

    Raises:
        FileNotFoundError: no such folder, or no manifest in it.
        ValueError: a manifest that is damaged, or of another format.
    """
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of exported graphs: {folder}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {MANIFEST_FILE}; write one with 'echostream export-onnx MODEL OUT'"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a manifest: {error}") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT}, got {found!r}; export the model again")
    try:
        vocoder = data["vocoder"]
        return Manifest(
            from_dict(EchoStreamConfig, data["config"], str(path)),
            {name: _graph(graph) for name, graph in data["graphs"].items()},
            {name: tuple(shape) for name, shape in data["state"].items()},
            None if vocoder is None else VocoderSpec(**vocoder),
            dict(data["vocabularies"]),
            dict(data["versions"]),
            dict(data["sha256"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged: {error!r}") from error


def _graph(data: dict[str, Any]) -> GraphSpec:
    specs = [
        tuple(TensorSpec(one["name"], one["dtype"], tuple(one["shape"])) for one in data[side])
        for side in ("inputs", "outputs")
    ]
    return GraphSpec(data["file"], *specs)


def read_checked(folder: Path, name: str, manifest: Manifest) -> bytes:
    """The content of a file that the manifest names.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is not the file that was exported.
    """
    expected = manifest.sha256.get(name)
    if expected is None or Path(name).name != name:
        raise ValueError(f"{folder / MANIFEST_FILE}: names no file {name!r}")
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path}: sha256 must be {expected[:16]}..., as {MANIFEST_FILE} says, got "
            f"{found[:16]}...; the file was changed or is incomplete"
        )
    return content


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export and nothing else, so that replacing it loses nothing."""
    try:
        known = {MANIFEST_FILE, *read_manifest(folder).sha256}
    except (OSError, ValueError):
        return False
    return {entry.name for entry in folder.iterdir()} <= known
