"""One vocoder training: networks, updates, checkpoints, export.

An update's randomness (segments, dropout) comes from seed and update number, and a checkpoint
holds all other state, so training resumed from a checkpoint is bit for bit the training that was
never interrupted (on one device, with one number of threads).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from echostream.config import VocoderConfig, from_dict, to_dict
from echostream.files import atomic_path, write_atomically
from echostream.models.decoders.codehifigan_standalone import CodeGenerator, fold_weight_norm
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder, read_vocoder_state
from echostream.models.decoders.vocoder_protocol import Vocoder
from echostream.training.vocoder.data import Segments, SegmentSampler
from echostream.training.vocoder.discriminators import (
    Discriminators,
    discriminator_loss,
    feature_loss,
    generator_loss,
)
from echostream.training.vocoder.spectral_losses import MelLoss, STFTLoss
from echostream.training.vocoder.training_settings import VocoderTrainingConfig

logger = logging.getLogger(__name__)

CHECKPOINT, WEIGHTS, SETTINGS = "checkpoint.safetensors", "model.safetensors", "config.json"
_BETAS = (0.8, 0.99)
MAY_CHANGE = ("updates", "regression_updates", "adversarial_start")  # when a training goes on


def _initialise(module: nn.Module) -> None:
    """HiFi-GAN's small random weights, without which early outputs saturate the tanh."""
    if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
        nn.init.normal_(module.weight, 0.0, 0.01)


def _hifigan(config: VocoderTrainingConfig) -> VocoderConfig:
    if not isinstance(config.vocoder, VocoderConfig):
        raise ValueError(f"this trainer is CodeHiFiGAN's, got a {config.vocoder.kind}")
    return config.vocoder


def build_generator(config: VocoderTrainingConfig) -> CodeGenerator:
    """A generator with weight-normalised convolutions; the duration predictor stays plain."""
    generator = CodeGenerator(_hifigan(config))
    for stem in (*generator.ups, *generator.resblocks, generator.conv_post):
        stem.apply(_initialise)
    parts = (generator.conv_pre, *generator.ups, *generator.resblocks, generator.conv_post)
    for part in parts:
        for module in list(part.modules()):
            if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
                weight_norm(module)
    return generator


class VocoderTrainer:
    """Owns the networks and their optimisers.

    Args:
        sampler: training material.
        device: where to compute.
    """

    def __init__(
        self, config: VocoderTrainingConfig, sampler: SegmentSampler, device: torch.device
    ) -> None:
        self.config, self.sampler, self.device = config, sampler, device
        torch.manual_seed(config.seed)
        # Each kind of trainer has its own.
        self.generator: Any = self._build().to(device)
        self.discriminators = Discriminators(config.discriminators).to(device)
        self.mel_loss = MelLoss(config.vocoder.sampling_rate).to(device)
        sizes = tuple((size, size // 4) for size in config.stft_sizes)
        self.stft_loss = STFTLoss(sizes).to(device)
        self.optimizers = {
            name: torch.optim.AdamW(
                network.parameters(),
                config.learning_rate,
                _BETAS,
                # One launch for all parameters where launches cost more than products.
                **({"fused": True} if device.type == "cuda" else {"foreach": False}),
            )
            for name, network in self._networks().items()
        }
        self.update = 0

    def _build(self) -> nn.Module:
        return build_generator(self.config)

    def _speak(self, segments: Segments) -> tuple[Tensor | None, dict[str, Tensor]]:
        """(B, 1, S) waveform (None where it does not matter yet), and losses that this kind of
        generator alone has, weighted."""
        generator = self.generator
        return generator.synthesize(generator.embed(segments.units, None)), {}

    def _networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminators": self.discriminators}

    @property
    def adversarial(self) -> bool:
        return self.update >= self.config.adversarial_start

    def step(self) -> dict[str, float]:
        """One update of all networks; returns the losses.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        config = self.config
        torch.manual_seed(config.seed * 100_000_007 + self.update)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * config.lr_decay ** (self.update / 1000)
                group["lr"] *= min(1.0, (self.update + 1) / max(config.warmup_updates, 1))
        self.generator.train()
        segments = self.sampler.segments(self.update, config.batch_size).to(self.device)
        real = segments.waveform
        fake, losses = self._speak(segments)
        own = list(losses.values())
        if self.adversarial and fake is not None:
            outputs = self.discriminators(real), self.discriminators(fake.detach())
            losses["discriminator"] = discriminator_loss(*outputs)
            self._apply("discriminators", losses["discriminator"])
        total = torch.zeros((), device=self.device)
        if fake is not None:
            losses["mel"] = self.mel_loss(fake, real)
            total = config.mel_weight * losses["mel"]
        if fake is not None and config.stft_weight:
            losses["stft"] = self.stft_loss(fake, real)
            total = total + config.stft_weight * losses["stft"]
        if self.adversarial:
            with torch.no_grad():
                truth = self.discriminators(real)
            judged = self.discriminators(fake)
            losses["adversarial"] = generator_loss(judged)
            losses["feature"] = feature_loss(truth, judged)
            total = total + losses["adversarial"] + config.feature_weight * losses["feature"]
        if config.duration_weight and self._predicts_durations():
            losses["duration"] = self._duration_loss()
            total = total + config.duration_weight * losses["duration"]
        for loss in own:
            total = total + loss
        losses["generator"] = total
        self._apply("generator", total)
        self.update += 1
        return {name: loss.item() for name, loss in losses.items()}

    def _predicts_durations(self) -> bool:
        return self.generator.dur_predictor is not None

    def _duration_loss(self) -> Tensor:
        """Squared error of log(1 + frames), per unit, over whole utterances.

        Utterances go one by one: padding would reach the last unit through the convolutions. The
        embedding serves the waveform and is not moved by durations.
        """
        errors = []
        for units, frames in self.sampler.reduced(self.update, self.config.duration_utterances):
            embedded = self.generator.dict(units.to(self.device)).detach()
            predicted = self.generator.dur_predictor(embedded)
            wanted = torch.log1p(frames.to(self.device, torch.float32))
            errors.append(F.mse_loss(predicted, wanted, reduction="none").flatten())
        return torch.cat(errors).mean()

    def _apply(self, name: str, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of the {name} is {loss.item()} at update {self.update}; "
                "lower the learning rate"
            )
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if name == "generator" and self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.generator.parameters(), self.config.clip_norm)
        optimizer.step()

    def vocoder(self) -> Vocoder:
        """The current generator, weight normalisation folded in, for synthesis on the CPU."""
        vocoder = CodeHiFiGANVocoder(_hifigan(self.config))
        vocoder.load_generator(self._folded(), "the trained generator")
        return vocoder.eval()

    def _folded(self) -> dict[str, Tensor]:
        state = {name: t.detach().cpu() for name, t in self.generator.state_dict().items()}
        return {name: t.contiguous() for name, t in fold_weight_norm(state).items()}

    def export(self, folder: Path) -> None:
        """Write weights and the configuration of public CodeHiFiGAN checkpoints."""
        with atomic_path(folder / WEIGHTS) as temporary:
            save_file(self._folded(), temporary)
        vocoder = self.config.vocoder
        settings = {**to_dict(vocoder), "code_hop_size": vocoder.unit_samples}
        write_atomically(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")

    @torch.no_grad()
    def start_from(self, path: Path) -> None:
        """Take over the generator of a vocoder file, weight normalisation folded in.

        Raises:
            FileNotFoundError, ValueError: no such file, or a generator of other sizes.
        """
        state, mine = read_vocoder_state(path), self._folded()
        for name in sorted(state.keys() | mine.keys()):
            found = tuple(state[name].shape) if name in state else "no such tensor"
            wanted = tuple(mine[name].shape) if name in mine else "no such tensor"
            if found != wanted:
                raise ValueError(f"{path}: {name}: expected {wanted}, got {found}")
        for name, tensor in state.items():
            owner, _, leaf = name.rpartition(".")
            module = self.generator.get_submodule(owner)
            value = tensor.to(self.device, torch.float32)
            if parametrize.is_parametrized(module, leaf):
                setattr(module, leaf, value)  # splits it into norm and direction
            else:
                getattr(module, leaf).copy_(value)

    def save(self, folder: Path) -> None:
        """Write the checkpoint, one file, whole or not at all."""
        tensors = {}
        for name, network in self._networks().items():
            for key, tensor in network.state_dict().items():
                tensors[f"{name}/{key}"] = tensor
            for index, state in self.optimizers[name].state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"optimizer/{name}/{index}/{key}"] = value
        metadata = {"update": str(self.update), "config": json.dumps(to_dict(self.config))}
        with atomic_path(folder / CHECKPOINT) as temporary:
            save_file(
                {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
                temporary,
                metadata,
            )

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint. How many updates there are may differ, all else must agree.

        Raises:
            ValueError: not a checkpoint, or one of another configuration.
        """
        try:
            with safe_open(path, "pt") as stream:
                metadata = stream.metadata() or {}
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            update, data = int(metadata["update"]), json.loads(metadata["config"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: not a vocoder training checkpoint: {error!r}") from error
        stored = to_dict(from_dict(VocoderTrainingConfig, data, str(path)))
        for key, value in to_dict(self.config).items():
            if key not in MAY_CHANGE and stored[key] != value:
                raise ValueError(
                    f"{path}: was trained with {key} = {stored[key]}, now it is {value}; "
                    "continue with the same settings or choose another folder"
                )
        for name, network in self._networks().items():
            network.load_state_dict(_below(tensors, f"{name}/"))
            optimizer = self.optimizers[name]
            state: dict[int, dict[str, Any]] = {}
            for key, tensor in _below(tensors, f"optimizer/{name}/").items():
                index, _, field = key.partition("/")
                state.setdefault(int(index), {})[field] = tensor
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.update = update


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
