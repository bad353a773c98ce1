"""Training of the network that tells how long symbols last and how high they are.

Each update takes random pieces of random utterances, with the text before them, as speaking does;
every second piece is a whole utterance. Some of the others may be pieces of a policy, held until
the next one is there (:mod:`echostream.training.voice.retiming`). An update's randomness comes from
seed and update number, and a checkpoint holds the rest, so a training resumed is the training that
was never stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echostream.config import to_dict
from echostream.files import atomic_path, write_atomically
from echostream.models.decoders.phone_prosody import PhoneProsody, PhoneProsodyConfig
from echostream.training.corpus.synthesis import generator_for
from echostream.training.voice.material import (
    FRAME_MS,
    Utterance,
    known_utterances,
    read_utterances,
)
from echostream.training.voice.policy_pieces import read_pieces
from echostream.training.voice.retiming import Retimed, RetimingConfig, retime_utterance
from echostream.voice.folder import (
    CONFIG_KEY,
    PROSODY_FILE,
    load_prosody,
    read_inventory,
    save_prosody,
)
from echostream.voice.phone_units import PhoneInventory, symbol_pitch

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
SHORTEST_PIECE = 4  # symbols


@dataclass(frozen=True)
class ProsodyTrainingConfig:
    """How to train; ``retiming`` None: at natural lengths alone."""

    network: PhoneProsodyConfig = field(default_factory=PhoneProsodyConfig)
    seed: int = 1
    updates: int = 3000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_updates: int = 100
    pitch_weight: float = 3.0
    retiming: RetimingConfig | None = None


@dataclass(frozen=True)
class SpokenSymbols:
    """One utterance: (N,) symbol numbers, frames, log pitch and voiced frames of each, and the
    latter three as they are under a policy."""

    symbols: np.ndarray
    frames: np.ndarray
    log_pitch: np.ndarray
    voiced: np.ndarray
    retimed: Retimed | None = None


def spoken_symbols(utterance: Utterance, inventory: PhoneInventory) -> SpokenSymbols:
    pitch, voiced = symbol_pitch(utterance.f0, utterance.frames)
    numbers = np.array(inventory.indices(utterance.symbols), dtype=np.int64)
    return SpokenSymbols(numbers, utterance.frames, pitch, voiced)


@dataclass(frozen=True)
class Pieces:
    """(B, N) symbols (-1: none), whether they belong to the piece, frames, log pitch, and the
    share of their frames that are voiced."""

    symbols: Tensor
    inside: Tensor
    frames: Tensor
    log_pitch: Tensor
    voiced: Tensor


def cut_piece(length: int, context: int, rng: np.random.Generator | None) -> tuple[int, int, int]:
    """Where what is seen begins, where a piece begins and where it ends; without ``rng``
    everything."""
    if rng is None or rng.random() < 0.5:
        return 0, 0, length
    begin = int(rng.integers(0, max(length - SHORTEST_PIECE, 1)))
    end = int(rng.integers(min(begin + SHORTEST_PIECE, length), length + 1))
    return max(begin - context, 0), begin, end


def policy_piece(
    spoken: SpokenSymbols, context: int, rng: np.random.Generator
) -> tuple[SpokenSymbols, tuple[int, int, int]] | None:
    """An utterance as re-timed, and the place of a piece that was held, as of :func:`cut_piece`;
    None if none was."""
    retimed = spoken.retimed
    if retimed is None or not retimed.held:
        return None
    place = retimed.held[int(rng.integers(len(retimed.held)))]
    begin, end = retimed.borders[place : place + 2]
    held = replace(
        spoken, frames=retimed.frames, log_pitch=retimed.log_pitch, voiced=retimed.voiced
    )
    return held, (max(begin - context, 0), begin, end)


def collate(rows: Sequence[SpokenSymbols], cuts: Sequence[tuple[int, int, int]]) -> Pieces:
    def table(values: list[np.ndarray], filler: float, dtype: torch.dtype) -> Tensor:
        tensors = [torch.from_numpy(np.ascontiguousarray(v)).to(dtype) for v in values]
        return pad_sequence(tensors, batch_first=True, padding_value=filler)

    seen = list(zip(rows, cuts, strict=True))
    share = [r.voiced / np.maximum(r.frames, 1) for r in rows]
    return Pieces(
        table([r.symbols[first:end] for r, (first, _, end) in seen], -1, torch.long),
        table([np.arange(first, end) >= begin for _, (first, begin, end) in seen], 0, torch.bool),
        table([r.frames[first:end] for r, (first, _, end) in seen], 1, torch.float32),
        table([r.log_pitch[first:end] for r, (first, _, end) in seen], 0, torch.float32),
        table([s[c[0] : c[2]] for s, c in zip(share, cuts, strict=True)], 0, torch.float32),
    )


def losses(network: PhoneProsody, pieces: Pieces, *, alike: bool = False) -> tuple[Tensor, Tensor]:
    """Mean absolute error of log frames, and of log pitch where there is voice.

    Absolute errors, since their best prediction is the median, which logarithms leave where it is.

    Args:
        alike: every piece counts as much as any other, however short, not every symbol.
    """
    log_frames, pitch = network(pieces.symbols)
    inside = pieces.inside.float()
    if alike:
        inside = inside / inside.sum(1, keepdim=True).clamp(min=1)
    length = ((log_frames - pieces.frames.log()).abs() * inside).sum() / inside.sum()
    weight = inside * pieces.voiced
    height = ((pitch - pieces.log_pitch).abs() * weight).sum() / weight.sum().clamp(min=1e-6)
    return length, height


class ProsodyTrainer:
    """Network, optimiser and material.

    Args:
        material: utterances to learn from.
    """

    def __init__(self, config: ProsodyTrainingConfig, material: Sequence[SpokenSymbols]) -> None:
        self.config, self.material = config, list(material)
        torch.manual_seed(config.seed)
        self.network = PhoneProsody(config.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), config.learning_rate, weight_decay=0.01, foreach=False
        )
        self.update = 0

    def step(self) -> dict[str, float]:
        """One update; returns the losses."""
        config = self.config
        torch.manual_seed(config.seed * 100_000_007 + self.update)
        rng = generator_for(config.seed, "pieces", self.update)
        rate = config.learning_rate * min(1.0, (self.update + 1) / max(config.warmup_updates, 1))
        rate *= 0.5 * (1 + np.cos(np.pi * min(self.update / config.updates, 1.0))) + 0.01
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rows = [self.material[i] for i in rng.integers(0, len(self.material), config.batch_size)]
        context = config.network.context_symbols
        cuts = [cut_piece(len(row.symbols), context, rng) for row in rows]
        if config.retiming is not None:
            # Of a generator of their own, so that the other pieces are those of training without.
            rng = generator_for(config.seed, "policy pieces", self.update)
            for place, row in enumerate(rows):
                whole = cuts[place] == (0, 0, len(row.symbols))
                if whole or rng.random() >= config.retiming.share:
                    continue
                if (piece := policy_piece(row, context, rng)) is not None:
                    rows[place], cuts[place] = piece
        pieces = collate(rows, cuts)
        self.network.train()
        # A policy's piece has few symbols, and few of those are held.
        length, height = losses(self.network, pieces, alike=config.retiming is not None)
        self.optimizer.zero_grad(set_to_none=True)
        (length + config.pitch_weight * height).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.update += 1
        return {"duration": length.item(), "pitch": height.item()}

    @torch.no_grad()
    def validate(self, held_out: Sequence[SpokenSymbols]) -> dict[str, float]:
        """Errors on whole utterances: of log frames and log pitch, and predicted over true
        length."""
        self.network.eval()
        everything = collate(held_out, [(0, 0, len(row.symbols)) for row in held_out])
        length, height = losses(self.network, everything)
        log_frames, _ = self.network(everything.symbols)
        told = (log_frames.exp() * everything.inside).sum()
        true = (everything.frames * everything.inside).sum()
        return {
            "duration": length.item(),
            "pitch": height.item(),
            "length_ratio": float(told / true),
        }

    def export(self, path: Path) -> None:
        """Write the network alone, in half precision."""
        save_prosody(path, self.network)

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        tensors = {f"network/{name}": t for name, t in self.network.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer/{index}/{key}": value for key, value in state.items()})
        metadata = {"update": str(self.update), CONFIG_KEY: json.dumps(to_dict(self.config))}
        with atomic_path(path) as temporary:
            save_file(
                {name: t.detach().contiguous() for name, t in tensors.items()}, temporary, metadata
            )

    def start_from(self, path: Path) -> None:
        """Take over the weights of a voice's prosody file; its mean pitch stays with them.

        Raises:
            FileNotFoundError, ValueError: no such file, or a network of other sizes.
        """
        other = load_prosody(path)
        sizes = replace(self.config.network, mean_log_f0=other.config.mean_log_f0)
        if other.config != sizes:
            raise ValueError(
                f"{path}: holds a network of other sizes: {other.config}, expected {sizes}"
            )
        self.config = replace(self.config, network=sizes)
        self.network.config = sizes
        self.network.load_state_dict(other.state_dict())

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint of the same settings.

        Raises:
            ValueError: not a checkpoint, or one of other settings.
        """
        try:
            with safe_open(path, "pt") as stream:
                metadata = stream.metadata() or {}
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            update, stored = int(metadata["update"]), json.loads(metadata[CONFIG_KEY])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: not a prosody training checkpoint: {error!r}") from error
        for key, value in to_dict(self.config).items():
            if stored.get(key) != value:
                raise ValueError(
                    f"{path}: was trained with {key} = {stored.get(key)}, now it is {value}; "
                    "continue with the same settings or choose another folder"
                )
        state: dict[int, dict[str, Tensor]] = {}
        weights = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "network":
                weights[rest] = tensor
            else:
                index, _, key = rest.partition("/")
                state.setdefault(int(index), {})[key] = tensor
        self.network.load_state_dict(weights)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.update = update


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m echostream.training.voice.prosody",
        description="Train durations and pitch of a voice. The same command resumes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--speech", type=Path, required=True, nargs="+", help="folders of aligned speech"
    )
    parser.add_argument("--inventory", type=Path, required=True, help="inventory.json of the voice")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, weights, report")
    parser.add_argument("--init-from", type=Path, help="begin with this prosody file of a voice")
    parser.add_argument("--updates", type=int, default=ProsodyTrainingConfig.updates)
    parser.add_argument("--batch-size", type=int, default=ProsodyTrainingConfig.batch_size)
    parser.add_argument(
        "--retime",
        type=Path,
        metavar="INSTANCES_LOG",
        help="log of a run with text output: learn to hold words where its policy has no more yet",
    )
    parser.add_argument(
        "--retime-share",
        type=float,
        metavar="X",
        help="with --retime: of the parts of utterances, so many are the policy's pieces, "
        f"{RetimingConfig.share} unless told",
    )
    parser.add_argument("--every", type=int, default=250, help="updates between checkpoints")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for name in ("updates", "batch_size", "every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive, got {getattr(args, name)}")
    if args.retime_share is not None and args.retime is None:
        parser.error("--retime-share needs --retime")
    try:
        inventory = read_inventory(args.inventory)
        with_pitch = [u for folder in args.speech for u in read_utterances(folder) if len(u.f0)]
        spoken = known_utterances(with_pitch, inventory, "prosody")
        material = [spoken_symbols(u, inventory) for u in spoken if u.split == "train"]
        held_out = [spoken_symbols(u, inventory) for u in spoken if u.split == "dev"]
        if not material or not held_out:
            raise ValueError(
                "prosody needs train_... and dev_... utterances with pitch whose symbols "
                f"{args.inventory} has, got {len(material)} and {len(held_out)}"
            )
        retiming = None
        if args.retime is not None:
            policy = read_pieces(args.retime)
            share = RetimingConfig.share if args.retime_share is None else args.retime_share
            retiming = RetimingConfig(policy.fingerprint, share)
            seed = ProsodyTrainingConfig.seed
            training = [u for u in spoken if u.split == "train"]
            material = [
                replace(one, retimed=retime_utterance(u, policy, retiming, seed))
                for one, u in zip(material, training, strict=True)
            ]
        mean = float(np.average(*_weighted([(r.log_pitch, r.voiced) for r in material])))
        network = PhoneProsodyConfig(
            num_symbols=len(inventory.symbols), frame_ms=FRAME_MS, mean_log_f0=round(mean, 4)
        )
        config = ProsodyTrainingConfig(
            network=network,
            updates=args.updates,
            batch_size=args.batch_size,
            retiming=retiming,
        )
        trainer = ProsodyTrainer(config, material)
        if args.init_from is not None:
            trainer.start_from(args.init_from)
        if (args.out / CHECKPOINT).is_file():
            trainer.restore(args.out / CHECKPOINT)
            logger.info("resuming at update %d", trainer.update)
        run(trainer, held_out, args.out, args.every)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    return 0


def run(trainer: ProsodyTrainer, held_out: Sequence[SpokenSymbols], out: Path, every: int) -> None:
    """Update until the end, with checkpoints and reports on the way."""
    logger.info("%d utterances, %d held out", len(trainer.material), len(held_out))
    history: list[dict[str, float]] = []
    report = out / "training.jsonl"
    while trainer.update < trainer.config.updates:
        history.append(trainer.step())
        if trainer.update % every == 0 or trainer.update == trainer.config.updates:
            trainer.save(out / CHECKPOINT)
            means = {k: round(float(np.mean([h[k] for h in history])), 4) for k in history[0]}
            checked = {f"dev_{k}": round(v, 4) for k, v in trainer.validate(held_out).items()}
            record = {"update": trainer.update, **means, **checked}
            before = report.read_text(encoding="utf-8") if report.is_file() else ""
            write_atomically(report, before + json.dumps(record) + "\n")
            logger.info("%s", record)
            history = []
    trainer.export(out / PROSODY_FILE)


def _weighted(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, None, np.ndarray]:
    values = np.concatenate([np.nan_to_num(pitch) for pitch, _ in pairs])
    return values, None, np.concatenate([weight for _, weight in pairs]).astype(float)


if __name__ == "__main__":
    raise SystemExit(main())
