"""The folder of a voice.

    inventory.json         symbols and pitch classes
    prosody.safetensors    durations and pitch of symbols
    vocoder.safetensors    CodeVocos

Nothing in it is executed on loading.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from echostream.config import from_dict, to_dict
from echostream.files import atomic_path, write_atomically
from echostream.models.decoders.codevocos_vocoder import CodeVocosVocoder
from echostream.models.decoders.phone_prosody import PhoneProsody, PhoneProsodyConfig
from echostream.voice.phone_units import PhoneInventory

INVENTORY_FILE, PROSODY_FILE = "inventory.json", "prosody.safetensors"
VOCODER_FILE = "vocoder.safetensors"
CONFIG_KEY = "config"


def write_inventory(path: Path, inventory: PhoneInventory) -> None:
    data = {"symbols": "".join(inventory.symbols), "pitch_edges": list(inventory.pitch_edges)}
    write_atomically(path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")


def read_inventory(path: Path) -> PhoneInventory:
    """Read what :func:`write_inventory` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an inventory.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such inventory of units: {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return PhoneInventory(tuple(data["symbols"]), tuple(map(float, data["pitch_edges"])))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not an inventory of units: {error!r}") from error


def save_prosody(path: Path, network: PhoneProsody) -> None:
    """Write weights in half precision, and the configuration, into one safetensors file."""
    weights = {n: t.detach().cpu().half().contiguous() for n, t in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(weights, temporary, {CONFIG_KEY: json.dumps(to_dict(network.config))})
        temporary.chmod(0o644)


def load_prosody(path: Path) -> PhoneProsody:
    """Read what :func:`save_prosody` wrote, ready for use.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or one whose weights do not fit its configuration.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such prosody file: {path}")
    try:
        with safe_open(path, "pt") as stream:
            data = json.loads((stream.metadata() or {})[CONFIG_KEY])
            state = {name: stream.get_tensor(name).float() for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a prosody file: {error!r}") from error
    network = PhoneProsody(from_dict(PhoneProsodyConfig, data, str(path)))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: weights do not fit the configuration: {error}") from error
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Voice:
    """A loaded voice.

    Attributes:
        inventory, prosody, vocoder: its parts.
        phonemizer: text to phonemic text; None: it can only be looked at and saved.

    Raises:
        ValueError: its parts do not belong together.
    """

    inventory: PhoneInventory
    prosody: PhoneProsody
    vocoder: CodeVocosVocoder
    phonemizer: Callable[[str], str] | None = None

    def __post_init__(self) -> None:
        symbols, known = len(self.inventory.symbols), self.prosody.config.num_symbols
        if symbols != known:
            raise ValueError(f"the inventory has {symbols} symbols, the prosody network {known}")
        config = self.vocoder.config
        sizes = (self.inventory.num_units, self.inventory.pitch_classes)
        if sizes != (config.num_embeddings, config.pitch_classes):
            raise ValueError(
                f"the inventory has {sizes[0]} units in {sizes[1]} pitch classes, "
                f"the vocoder {config.num_embeddings} in {config.pitch_classes}"
            )
        frame_ms = 1000 * config.unit_samples / config.sampling_rate
        if frame_ms != self.prosody.config.frame_ms:
            raise ValueError(
                f"the vocoder's units last {frame_ms:g} ms, "
                f"the prosody network counts {self.prosody.config.frame_ms:g} ms"
            )

    @classmethod
    def load(cls, folder: Path) -> Voice:
        """Read a voice.

        Raises:
            FileNotFoundError: the folder or a file in it is missing.
            ValueError: a file is damaged, or they do not belong together.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"no such voice: {folder}")
        parts = (
            read_inventory(folder / INVENTORY_FILE),
            load_prosody(folder / PROSODY_FILE),
            CodeVocosVocoder.load(folder / VOCODER_FILE),
        )
        try:
            return cls(*parts)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error

    def to(self, device: torch.device | str) -> Voice:
        """The same voice with its networks on a device."""
        return replace(self, prosody=self.prosody.to(device), vocoder=self.vocoder.to(device))

    def save(self, folder: Path) -> None:
        """Write the three files, each whole or not at all."""
        write_inventory(folder / INVENTORY_FILE, self.inventory)
        save_prosody(folder / PROSODY_FILE, self.prosody)
        self.vocoder.save(folder / VOCODER_FILE)
