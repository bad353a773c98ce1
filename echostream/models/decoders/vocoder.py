"""CodeHiFiGAN vocoder: loading and synthesis of whole unit sequences.

Reads the public checkpoint format (a torch file with a ``generator`` state under weight
normalisation, and a JSON configuration) and safetensors. Nothing in a torch file is executed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from echostream.config import VocoderConfig, from_dict, to_dict
from echostream.models.decoders.codehifigan_standalone import CodeGenerator, fold_weight_norm
from echostream.models.decoders.vocoder_protocol import Vocoder
from echostream.torch_files import read_checkpoint

UNSUPPORTED_FEATURES = ("f0", "multispkr", "embedder_params")


def vocoder_config_from_json(path: Path) -> VocoderConfig:
    """Read the JSON that ships with public CodeHiFiGAN checkpoints.

    Training-only entries are ignored; a feature the generator here lacks (pitch, speakers) is an
    error.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such vocoder configuration: {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    for feature in UNSUPPORTED_FEATURES:
        if data.get(feature):
            raise ValueError(f"{path}: vocoders with {feature!r} are not supported")
    known = {field.name: data[field.name] for field in fields(VocoderConfig) if field.name in data}
    known.setdefault("sampling_rate", VocoderConfig.sampling_rate)
    known.setdefault("dur_predictor_params", None)
    if known["dur_predictor_params"] is not None:
        allowed = to_dict(VocoderConfig())["dur_predictor_params"]
        params = known["dur_predictor_params"]
        known["dur_predictor_params"] = {k: v for k, v in params.items() if k in allowed}
    return from_dict(VocoderConfig, known, str(path))


def read_vocoder_state(path: Path) -> dict[str, Tensor]:
    """Read generator weights from ``.safetensors`` or a public torch checkpoint, weight
    normalisation folded in."""
    if not path.is_file():
        raise FileNotFoundError(f"no such vocoder checkpoint: {path}")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = read_checkpoint(path, keep=("generator",)).get("generator")
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not a readable vocoder checkpoint: {error}") from error
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path}: a vocoder checkpoint needs a 'generator' entry with weights")
    return fold_weight_norm(state)


class CodeHiFiGANVocoder(Vocoder):
    """Units to 16 kHz waveform."""

    def __init__(self, config: VocoderConfig, num_units: int | None = None) -> None:
        super().__init__(config, num_units)
        self.generator = CodeGenerator(config)

    @classmethod
    def load(cls, checkpoint: Path, config: Path | VocoderConfig) -> CodeHiFiGANVocoder:
        """Build from a checkpoint and its configuration, ready for synthesis."""
        if not isinstance(config, VocoderConfig):
            config = vocoder_config_from_json(Path(config))
        vocoder = cls(config)
        vocoder.load_generator(read_vocoder_state(Path(checkpoint)), str(checkpoint))
        return vocoder.eval()

    def load_generator(self, state: dict[str, Tensor], where: str) -> None:
        """Load folded generator weights; every key must match."""
        try:
            self.generator.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{where}: does not fit the vocoder configuration: {error}") from error

    @property
    def predicts_durations(self) -> bool:
        return self.generator.dur_predictor is not None

    @torch.no_grad()
    def durations(self, units: Sequence[Sequence[int]]) -> list[list[int]]:
        """Frames that each unit of each sequence lasts, predicted from its neighbours.

        Raises:
            ValueError: this vocoder has no duration predictor.
        """
        lengths = [len(row) for row in units]
        code = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
        for row, own in enumerate(units):
            code[row, : len(own)] = torch.tensor(own)
        frames = self.generator.durations(code.to(self.generator.dict.weight.device), lengths)
        return [row[:length] for row, length in zip(frames.tolist(), lengths, strict=True)]

    def generate(
        self, units: Sequence[int], *, dur_prediction: bool = True
    ) -> tuple[Tensor, Tensor]:
        self.check_units(units)
        device = self.generator.dict.weight.device
        code = torch.tensor([list(units)], dtype=torch.long, device=device)
        if code.size(1) == 0:
            return self.generator.dict.weight.new_zeros(0), code[0]
        durations = self.generator.durations(code) if dur_prediction else torch.ones_like(code)
        waveform = self.generator.synthesize(self.generator.embed(code, durations))
        return waveform.flatten(), durations[0]
