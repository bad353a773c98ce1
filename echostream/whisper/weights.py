"""Reading Whisper's weights, in whatever form they were published.

Three forms are known: OpenAI's ``.pt`` files, Hugging Face folders (``model.safetensors``), and
CTranslate2 folders (``model.bin``), float or int8. All become float32 tensors under Hugging Face's
names, which are fairseq's too: ``encoder.layers.0.self_attn.q_proj.weight``,
``decoder.embed_tokens.weight``. Nothing that is read can run code.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from echostream.torch_files import read_checkpoint

HEAD_DIM = 64  # of every Whisper model
_CT2_TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_OPENAI_PARTS = (
    ("cross_attn_ln.", "encoder_attn_layer_norm."),
    ("cross_attn.", "encoder_attn."),
    ("attn_ln.", "self_attn_layer_norm."),
    (".attn.", ".self_attn."),
    ("blocks.", "layers."),
    (".query.", ".q_proj."),
    (".key.", ".k_proj."),
    (".value.", ".v_proj."),
    (".out.", ".out_proj."),
    ("mlp_ln.", "final_layer_norm."),
    ("mlp.0.", "fc1."),
    ("mlp.2.", "fc2."),
    ("ln_post.", "layer_norm."),
    ("decoder.ln.", "decoder.layer_norm."),
    ("token_embedding.", "embed_tokens."),
    ("positional_embedding", "embed_positions.weight"),
)


@dataclass(frozen=True)
class WhisperWeights:
    """A Whisper model's tensors.

    Attributes:
        tensors: under Hugging Face's names, float32.
        where: the file that they came from.
    """

    tensors: dict[str, Tensor]
    where: Path

    @property
    def width(self) -> int:
        return self.tensors["encoder.conv1.weight"].size(0)

    @property
    def heads(self) -> int:
        return self.width // HEAD_DIM

    @property
    def bins(self) -> int:
        return self.tensors["encoder.conv1.weight"].size(1)

    @property
    def ffn_dim(self) -> int:
        return self.tensors["encoder.layers.0.fc1.weight"].size(0)

    def layers(self, side: str) -> int:
        """Of the ``encoder`` or the ``decoder``."""
        found = (re.match(rf"{side}\.layers\.(\d+)\.", name) for name in self.tensors)
        return 1 + max(int(match[1]) for match in found if match)


def read_whisper(path: str | Path) -> WhisperWeights:
    """Read a Whisper model from a ``.pt`` or ``.safetensors`` file or from a folder.

    Raises:
        FileNotFoundError: no such file, or nothing in the folder that is known.
        ValueError: not a Whisper model.
    """
    path = Path(path)
    if path.is_dir():
        known = [path / name for name in ("model.safetensors", "model.bin")]
        known += sorted(path.glob("*.pt"))
        found = [file for file in known if file.is_file()]
        if not found:
            raise FileNotFoundError(
                f"{path} holds no Whisper model: expected model.safetensors (Hugging Face), "
                "model.bin (CTranslate2) or a .pt file (OpenAI)"
            )
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"no such Whisper model: {path}")
    if path.suffix == ".safetensors":
        tensors = _read_hugging_face(path)
    elif path.suffix == ".bin":
        tensors = _read_ctranslate2(path)
    else:
        tensors = _read_openai(path)
    for name in ("encoder.conv1.weight", "encoder.layers.0.fc1.weight", "decoder.layer_norm.bias"):
        if name not in tensors:
            raise ValueError(f"{path} is not a Whisper model: it has no {name}")
    return WhisperWeights({name: t.float() for name, t in tensors.items()}, path)


def _read_hugging_face(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    return {name.removeprefix("model."): t for name, t in tensors.items() if "proj_out" not in name}


def _read_openai(path: Path) -> dict[str, Tensor]:
    try:
        state = read_checkpoint(path, keep=("model_state_dict",)).get("model_state_dict")
    except ValueError as error:
        raise ValueError(f"{path}: not a file of plain tensors: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a Whisper model: it has no model_state_dict")
    return {openai_name(name): tensor for name, tensor in state.items()}


def read_alignment_heads(folder: Path) -> tuple[tuple[int, int], ...]:
    """Layer and head of each head that follows the speech, as the folder's ``config.json``
    (CTranslate2) or ``generation_config.json`` (Hugging Face) tells; none if neither does."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            told = json.loads(path.read_text(encoding="utf-8")).get("alignment_heads")
            if told:
                return tuple((int(layer), int(head)) for layer, head in told)
    return ()


def openai_name(name: str) -> str:
    """Hugging Face's name of a tensor that OpenAI's code calls ``name``."""
    for old, new in _OPENAI_PARTS:
        name = name.replace(old, new)
    return name


def _read_ctranslate2(path: Path) -> dict[str, Tensor]:
    arrays = read_ctranslate2(path)
    for name in [name for name in arrays if name.endswith("/weight_scale")]:
        scale = arrays.pop(name).astype(np.float32)
        weight = name.removesuffix("_scale")
        whole = arrays[weight].astype(np.float32)
        arrays[weight] = whole / scale.reshape(-1, *[1] * (whole.ndim - 1))
    return {
        name: torch.from_numpy(np.array(array, dtype=np.float32))
        for key, value in arrays.items()
        for name, array in _ctranslate2_names(key, value)
    }


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a CTranslate2 ``model.bin`` (its ``ModelReader`` describes the layout).

    Raises:
        ValueError: not such a file, or cut off.
    """
    data = memoryview(path.read_bytes())
    position = 0

    def number(format: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(format, data, position)
        position += struct.calcsize(format)
        return value

    def take(size: int) -> memoryview:
        nonlocal position
        if position + size > len(data):
            raise struct.error(f"{size} bytes wanted at {position}, the file has {len(data)}")
        position += size
        return data[position - size : position]

    def text() -> str:
        return bytes(take(number("<H"))).rstrip(b"\0").decode()

    try:
        version = number("<I")
        if not 2 <= version <= 6:
            raise ValueError(f"{path}: CTranslate2 format {version} is not known")
        text()  # name and revision of the model's class
        number("<I")
        arrays = {}
        for _ in range(number("<I")):
            name = text()
            shape = [number("<I") for _ in range(number("<B"))]
            kind = number("<B")
            if kind not in _CT2_TYPES:
                raise ValueError(f"{path}: {name} has number format {kind}, which is not known")
            arrays[name] = np.frombuffer(take(number("<I")), _CT2_TYPES[kind]).reshape(shape)
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a whole CTranslate2 model: {error}") from error
    return arrays


def _ctranslate2_names(key: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face's names of a CTranslate2 array, which may hold several tensors."""
    key = re.sub(r"/layer_(\d+)/", r"/layers/\1/", key)
    key = key.replace("/gamma", "/weight").replace("/beta", "/bias")
    side, _, rest = key.partition("/")
    if rest.startswith(("conv", "layer_norm/")):
        yield key.replace("/", "."), array
    elif rest == "embeddings/weight":
        yield f"{side}.embed_tokens.weight", array
    elif rest == "position_encodings/encodings":
        yield f"{side}.embed_positions.weight", array
    elif match := re.fullmatch(r"layers/(\d+)/(self_attention|attention|ffn)/(.+)", rest):
        layer, block, leaf = match.groups()
        prefix = f"{side}.layers.{layer}."
        part, _, kind = leaf.rpartition("/")
        attention = "self_attn" if block == "self_attention" else "encoder_attn"
        if part == "layer_norm":
            norm = "final_layer_norm" if block == "ffn" else f"{attention}_layer_norm"
            yield f"{prefix}{norm}.{kind}", array
        elif block == "ffn":
            yield f"{prefix}{'fc1' if part == 'linear_0' else 'fc2'}.{kind}", array
        else:
            fused = {
                ("self_attn", "linear_0"): "qkv",
                ("encoder_attn", "linear_0"): "q",
                ("encoder_attn", "linear_1"): "kv",
            }.get((attention, part))
            if fused is None:
                yield f"{prefix}{attention}.out_proj.{kind}", array
                return
            for letter, piece in zip(fused, np.split(array, len(fused)), strict=True):
                yield f"{prefix}{attention}.{letter}_proj.{kind}", piece
