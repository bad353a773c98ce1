"""Utterances with units and texts, as fairseq iterates over them.

Shapes: B batch, T filterbank frames, U units, N text tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fairseq.data import FairseqDataset
from torch import Tensor

from echostream.config import EchoStreamConfig
from echostream.fairseq_plugin.data_config import (
    ASR_TASK,
    MT_TASK,
    DataConfig,
    SpecAugmentConfig,
    TextTask,
)
from echostream.fairseq_plugin.losses import ctc_frames_needed
from echostream.fairseq_plugin.manifest import (
    SpeechRow,
    TextRow,
    read_speech_manifest,
    read_text_manifest,
)
from echostream.fairseq_plugin.source_features import load_features, spec_augment
from echostream.models.decoders.ctc_collapse import UNIT_OFFSET
from echostream.text import Vocabulary

logger = logging.getLogger(__name__)

NO_TOKENS = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class Utterance:
    """One item.

    Attributes:
        features: (T, bins) float32, normalised.
        units: (U,) token ids of the unit vocabulary; (0,) if none are known.
        texts: (N,) token ids per task, without end-of-sentence; (0,) if none are known.
        clean: (T, bins) the features as they are, neither normalised nor augmented; None unless the
            dataset was asked to keep them.
    """

    index: int
    features: Tensor
    units: Tensor
    texts: dict[str, Tensor]
    clean: Tensor | None = None


def pad_rows(rows: list[Tensor], value: int) -> Tensor:
    """Vectors to (B, longest), padded on the right."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


class EchoStreamDataset(FairseqDataset):
    """A split.

    Args:
        split: name of the manifest.
        rows: the speech manifest.
        texts: per task, the text of every row's id.
        data: features and their transforms.
        training: shuffle, and augment if the split's transforms say so.
        seed: of order and augmentation.
    """

    ends_sentences = False  # whether the texts of the CTC heads end with a symbol
    keep_clean = False  # whether batches hold the features that a teacher reads

    def __init__(
        self,
        split: str,
        rows: list[SpeechRow],
        texts: Mapping[str, Mapping[str, TextRow]],
        data: DataConfig,
        *,
        manifest: Path,
        training: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self.split, self.rows, self.texts = split, rows, texts
        self.manifest, self.data, self.seed = manifest, data, seed
        self.shuffle = training
        transforms = data.transforms_for(split, training=training)
        self.normalise = "global_cmvn" in transforms
        self.specaugment: SpecAugmentConfig | None = None
        if "specaugment" in transforms:
            self.specaugment = data.specaugment
        self.mean, self.std = data.cmvn.mean.numpy(), data.cmvn.std.numpy()
        self.frames = np.array([row.frames for row in rows], dtype=np.int64)
        self.epoch = 1

    @classmethod
    def load(
        cls,
        split: str,
        folder: Path,
        data: DataConfig,
        tasks: Mapping[str, TextTask],
        config: EchoStreamConfig,
        *,
        training: bool,
        unfit: str,
        seed: int,
        may_miss_targets: bool = False,
    ) -> EchoStreamDataset:
        """Read the manifests of a split and check that every target can be learned.

        Args:
            unfit: what to do with an utterance whose target is longer than CTC can align:
                ``error`` or ``skip`` (reported with their number).
            may_miss_targets: utterances without units or texts are right; what they lack costs
                nothing.

        Raises:
            FileNotFoundError, ValueError: a manifest breaks a rule; names file and line.
        """
        manifest = folder / f"{split}.tsv"
        rows = read_speech_manifest(
            manifest,
            num_units=config.num_units,
            audio_root=data.audio_root,
            may_miss_units=may_miss_targets,
        )
        texts: dict[str, Mapping[str, TextRow]] = {}
        for name, task in tasks.items():
            path = task.data / f"{split}.tsv"
            if may_miss_targets and not path.is_file():
                texts[name] = {}
                continue
            texts[name] = read_text_manifest(path, task.vocabulary)
            for row in rows:
                if row.id not in texts[name] and not may_miss_targets:
                    raise ValueError(
                        f"{manifest}, line {row.line}: no text for id {row.id!r} in {path}"
                    )
        rows = _fitting(rows, texts, tasks, config, manifest, unfit, int(cls.ends_sentences))
        logger.info(
            "%s: %d utterances, %.2f hours", manifest, len(rows),
            sum(row.frames for row in rows) * config.frontend.shift_ms / 3.6e6,
        )  # fmt: skip
        if may_miss_targets:
            logger.info(
                "%s: %d utterances have units, %d a translation, %d a transcript", manifest,
                sum(len(row.units) > 0 for row in rows),
                *(sum(row.id in texts[task] for row in rows) for task in (MT_TASK, ASR_TASK)),
            )  # fmt: skip
        return cls(split, rows, texts, data, manifest=manifest, training=training, seed=seed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Utterance:
        row = self.rows[index]
        features = load_features(
            row.features, frames=row.frames, bins=self.data.bins, where=self.where(index)
        )
        clean = torch.from_numpy(features) if self.keep_clean else None
        if self.normalise:
            features = (features - self.mean) / self.std
        if self.specaugment is not None:
            # Seeded by what is augmented, not by which worker does it, so that runs repeat
            # exactly whatever the number of workers and resuming changes nothing.
            rng = np.random.default_rng((self.seed, self.epoch, int(index)))
            features = spec_augment(features, self.specaugment, rng)
        return self.targets(index, torch.from_numpy(np.ascontiguousarray(features)), clean)

    def text(self, task: str, identifier: str) -> np.ndarray:
        """(N,) token ids of an utterance's text; (0,) if it has none."""
        row = self.texts[task].get(identifier)
        return NO_TOKENS if row is None else row.tokens

    def targets(
        self, index: int, features: Tensor | None = None, clean: Tensor | None = None
    ) -> Utterance:
        """Units and texts of a row, with its features if they are given."""
        row = self.rows[index]
        # Units come from the states of a text.
        units = row.units if row.id in self.texts[MT_TASK] else NO_TOKENS
        return Utterance(
            int(index),
            torch.zeros(0, self.data.bins) if features is None else features,
            torch.from_numpy(units.astype(np.int64)) + UNIT_OFFSET,
            {
                name: torch.from_numpy(self.text(name, row.id).astype(np.int64))
                for name in self.texts
            },
            clean,
        )

    def collater(self, samples: list[Utterance]) -> dict:
        """Batch: ``net_input`` is what the model takes, ``target`` (B, U) the units, and
        ``texts[task]`` the (B, N) texts, all with lengths, 0 for what is not known; ``clean`` the
        (B, T, bins) features of a teacher, if they are kept."""
        if not samples:
            return {}
        lengths = torch.tensor([len(sample.features) for sample in samples])
        pad = Vocabulary.pad
        texts = {}
        for name in self.texts:
            tokens = [sample.texts[name] for sample in samples]
            texts[name] = {
                "target": pad_rows(tokens, pad),
                "target_lengths": torch.tensor([len(row) for row in tokens]),
            }
        words = [sample.texts[MT_TASK] for sample in samples]
        eos = torch.tensor([Vocabulary.eos])
        ended = [torch.cat([row, eos]) if len(row) else row for row in words]
        texts[MT_TASK] = {
            "target": pad_rows([*ended, eos.new_empty(1 + max(map(len, words)))], pad)[:-1],
            "target_lengths": torch.tensor([len(row) for row in ended]),
        }
        units = [sample.units for sample in samples]
        clean = [sample.clean for sample in samples if sample.clean is not None]
        return {
            **({"clean": pad_rows(clean, 0)} if clean else {}),
            "id": torch.tensor([sample.index for sample in samples]),
            "net_input": {
                "src_tokens": pad_rows([sample.features for sample in samples], 0),
                "src_lengths": lengths,
                "prev_output_tokens": pad_rows([torch.cat([eos, row]) for row in words], pad),
            },
            "target": pad_rows(units, pad),
            "target_lengths": torch.tensor([len(row) for row in units]),
            "texts": texts,
            "ntokens": sum(len(row) for row in units),
            "nsentences": len(samples),
        }

    def where(self, index: int) -> str:
        """Where an item stands, for errors."""
        return f"{self.manifest}, line {self.rows[index].line}"

    def num_tokens(self, index: int) -> int:
        return int(self.frames[index])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return self.frames[indices]

    def size(self, index: int) -> tuple[int, int]:
        return int(self.frames[index]), len(self.rows[index].units)

    @property
    def sizes(self) -> np.ndarray:
        return self.frames

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return True  # batches stay, their order and masks change

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def ordered_indices(self) -> np.ndarray:
        """By length, longest first, so that batches need little padding; ties at random in
        training."""
        order = np.arange(len(self))
        if self.shuffle:
            order = np.random.default_rng(self.seed).permutation(order)
        return order[np.argsort(-self.frames[order], kind="stable")]

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[list[int]]:
        """Cut ordered indices into batches of at most ``max_tokens`` padded frames.

        fairseq's own routine (in fairseq-fixed 0.12.3.1) silently drops what is left at the end
        if that is no multiple: 3 of 11 utterances at a multiple of 8. Here every index comes out
        once.

        Raises:
            ValueError: one utterance alone is longer than ``max_tokens``.
        """
        batches: list[list[int]] = []
        batch: list[int] = []
        longest = 0
        for index in map(int, indices):
            frames = int(self.frames[index])
            if max_tokens is not None and frames > max_tokens:
                raise ValueError(
                    f"{self.where(index)}: {frames} frames are more than --max-tokens {max_tokens}"
                )
            batch.append(index)
            longest = max(longest, frames)
            while (max_tokens is not None and len(batch) * longest > max_tokens) or (
                max_sentences is not None and len(batch) > max_sentences
            ):
                keep = len(batch) - 1
                if keep > required_batch_size_multiple:
                    keep -= keep % required_batch_size_multiple
                batches.append(batch[:keep])
                batch = batch[keep:]
                longest = max(int(self.frames[i]) for i in batch)
        if batch:
            batches.append(batch)
        return batches


def encoder_frames(frames: int) -> int:
    """Encoder frames that come out of filterbank frames, for either encoder."""
    return (frames + 3) // 4


def _fitting(
    rows: list[SpeechRow],
    texts: Mapping[str, Mapping[str, TextRow]],
    tasks: Mapping[str, TextTask],
    config: EchoStreamConfig,
    manifest: Path,
    unfit: str,
    end_symbols: int,
) -> list[SpeechRow]:
    """Rows whose CTC targets fit their inputs; CTC gives others no gradient at all."""
    kept, faults = [], []
    ratio = config.unit.upsample_ratio
    for row in rows:
        frames = encoder_frames(row.frames)
        heads = []
        if row.id in texts[MT_TASK]:
            states = len(texts[MT_TASK][row.id].tokens) + 1  # and end-of-sentence
            heads.append(("units", row.units, 0, states * ratio, f"{states} text states x {ratio}"))
        heads += [
            (name, texts[name][row.id].tokens, end_symbols, frames, f"{frames} encoder frames")
            for name, task in tasks.items()
            if task.is_ctc and row.id in texts[name]
        ]
        fault = ""
        for name, target, more, available, source in heads:
            needed = ctc_frames_needed(target) + more
            if needed > available:
                fault = f"{name} need {needed} CTC frames, there are {available} ({source})"
                break
        if fault:
            faults.append(f"{manifest}, line {row.line} ({row.id}): {fault}")
        else:
            kept.append(row)
    if not faults:
        return kept
    summary = f"{len(faults)} of {len(rows)} utterances have a target longer than its CTC input"
    if unfit == "error" or not kept:
        raise ValueError(
            f"{manifest}: {summary}; first: {faults[0]}. Shorten or remove them, raise "
            "--ctc-upsample-rate, or leave them out with --unfit-targets skip"
        )
    logger.warning("%s: skipping %s", manifest, summary)
    for fault in faults[:10]:
        logger.warning("skipped: %s", fault)
    return kept
