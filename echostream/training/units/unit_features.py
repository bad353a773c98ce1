"""Frame features that k-means turns into units.

Every extractor maps a mono waveform to one vector per ``frame_samples`` samples. Shapes: S samples,
T frames, D dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
import torchaudio.compliance.kaldi as kaldi
from torch import Tensor, nn
from torchaudio.functional import compute_deltas

from echostream.samples import KALDI_SCALE
from echostream.torch_files import read_checkpoint

UNIT_FRAME_SAMPLES = 320  # 50 Hz at 16 kHz


class FeatureExtractor(ABC):
    """Waveform to frame features.

    Attributes:
        kind: name under which an extractor is stored.
        sample_rate: of the waveform, in Hz.
        frame_samples: samples per frame.
    """

    kind: str
    sample_rate = 16000
    frame_samples = UNIT_FRAME_SAMPLES

    @abstractmethod
    def __call__(self, waveform: Tensor) -> Tensor:
        """(S,) waveform in [-1, 1] to (T, D) float32 features."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What :func:`build_features` needs to make the same extractor again."""

    def check(self, waveform: Tensor) -> None:
        if waveform.dim() != 1 or not waveform.is_floating_point():
            raise ValueError(
                f"{self.kind}: expected a float waveform (samples,), got {waveform.dtype} of shape "
                f"{tuple(waveform.shape)}"
            )


class MFCCFeatures(FeatureExtractor):
    """39 dimensions: 13 MFCC with first and second differences, centred on each 20 ms frame."""

    kind = "mfcc"
    coefficients = 13

    def __call__(self, waveform: Tensor) -> Tensor:
        self.check(waveform)
        frames = waveform.numel() // self.frame_samples
        if not frames:
            return waveform.new_zeros(0, 3 * self.coefficients)
        static = kaldi.mfcc(
            (waveform * KALDI_SCALE)[None],
            num_ceps=self.coefficients,
            num_mel_bins=23,
            sample_frequency=self.sample_rate,
            frame_shift=1000 * self.frame_samples / self.sample_rate,
            frame_length=25.0,
            snip_edges=False,  # frame t is centred on the samples that its unit stands for
            use_energy=False,
            dither=0.0,
        )[:frames].T
        delta = compute_deltas(static)
        return torch.cat([static, delta, compute_deltas(delta)]).T.contiguous()

    def options(self) -> dict[str, Any]:
        return {}


class HubertFeatures(FeatureExtractor):
    """Hidden states of one layer of a HuBERT-like model.

    Args:
        model: a torchaudio ``Wav2Vec2Model`` or a transformers ``HubertModel``.
        layer: 1 is the first Transformer layer's output; StreamSpeech takes mHuBERT's layer 11.
        normalize: zero mean and unit variance per utterance before the model, as models with
            layer norm in their convolutions were trained.
        checkpoint: where the model came from, to store with the units.
    """

    kind = "hubert"

    def __init__(
        self, model: nn.Module, layer: int, *, normalize: bool = False, checkpoint: str = ""
    ) -> None:
        self.model: Any = model.eval()  # the libraries' classes have nothing in common
        self.layer, self.normalize, self.checkpoint = layer, normalize, checkpoint
        self.layers = _count_layers(model)
        if not 1 <= layer <= self.layers:
            raise ValueError(f"hubert: layer must lie between 1 and {self.layers}, got {layer}")

    @classmethod
    def from_path(cls, path: Path, layer: int, *, normalize: bool = False) -> HubertFeatures:
        """Load a checkpoint: a transformers model folder, or a torch file
        ``{"config": wav2vec2_model arguments, "model": state dict}`` for torchaudio.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: neither of the two formats.
        """
        path = Path(path)
        if path.is_dir():
            model = _load_transformers(path)
        elif path.is_file():
            model = _load_torchaudio(path)
        else:
            raise FileNotFoundError(f"no such HuBERT checkpoint: {path}")
        return cls(model, layer, normalize=normalize, checkpoint=str(path))

    @torch.inference_mode()
    def __call__(self, waveform: Tensor) -> Tensor:
        self.check(waveform)
        device = next(self.model.parameters()).device
        # The smallest input that gives one frame; shorter sounds hold no unit.
        if waveform.numel() < 400:
            return torch.zeros(0, 0)
        batch = waveform.to(device)[None]
        if self.normalize:
            batch = torch.nn.functional.layer_norm(batch, batch.shape)
        if hasattr(self.model, "extract_features"):
            states, _ = self.model.extract_features(batch, num_layers=self.layer)
            hidden = states[-1]
        else:
            hidden = self.model(batch, output_hidden_states=True).hidden_states[self.layer]
        return hidden[0].float().cpu()

    def options(self) -> dict[str, Any]:
        return {
            "checkpoint": self.checkpoint,
            "layer": self.layer,
            "normalize": self.normalize,
        }


def _count_layers(model: Any) -> int:
    if hasattr(model, "config"):
        return model.config.num_hidden_layers
    return len(model.encoder.transformer.layers)


def _load_transformers(path: Path) -> nn.Module:
    try:
        from transformers import HubertModel
    except ImportError as error:
        raise ImportError("a HuBERT model folder needs the transformers package") from error
    try:
        return HubertModel.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a transformers HuBERT model: {error}") from error


def _load_torchaudio(path: Path) -> nn.Module:
    from torchaudio.models import wav2vec2_model

    try:
        checkpoint = read_checkpoint(path)
        model = wav2vec2_model(**checkpoint["config"])
        model.load_state_dict(checkpoint["model"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path}: not a torchaudio checkpoint with 'config' and 'model': {error}"
        ) from error
    return model


def build_features(kind: str, options: dict[str, Any]) -> FeatureExtractor:
    """Make an extractor by name."""
    if kind == MFCCFeatures.kind:
        return MFCCFeatures()
    if kind == HubertFeatures.kind:
        return HubertFeatures.from_path(
            Path(options["checkpoint"]), options["layer"], normalize=options.get("normalize", False)
        )
    raise ValueError(f"features must be mfcc or hubert, got {kind!r}")
