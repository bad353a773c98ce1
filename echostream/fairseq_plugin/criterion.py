"""The training loss, under the streaming policy.

    loss = unit CTC + w_asr ASR CTC + w_st ST CTC + w_mt MT cross-entropy

summed over tokens, with weights from the multitask YAML, and divided by the number of units, as
StreamSpeech does. ``--distill`` adds w times the relative distance of the encoder's frames from a
teacher's. Losses whose targets an utterance lacks are masked; a batch of audio alone has the
teacher's only. Every batch is encoded in segments of one random length (multi-chunk training),
the text decoder sees what the policy would have read (k1, n1), and each text state's units see
the text states up to the end of a stride (k2, n2), so that one model serves every latency.
"""

# ruff: noqa: UP045  (fairseq turns annotations into flags and knows typing.Optional only)

import logging
import math
import random
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor

from echostream.fairseq_plugin.data_config import ASR_TASK, MT_TASK, ST_TASK
from echostream.fairseq_plugin.imitation import Imitation
from echostream.fairseq_plugin.losses import ctc_errors, ctc_loss, utterance_spread
from echostream.fairseq_plugin.mixed_precision import autocast
from echostream.fairseq_plugin.model import TextPolicy
from echostream.fairseq_plugin.sentences import SUBSAMPLING, sentence_windows
from echostream.models.decoders.ctc_collapse import NEVER, UNIT_OFFSET
from echostream.models.decoders.unit_decoder import strided_visibility
from echostream.text import Vocabulary

logger = logging.getLogger(__name__)

WHOLE = 1_000_000_000  # a segment longer than any utterance
HEADS = ("unit", "asr", "st", "mt")
WARN_EVERY = 100  # collapsed batches


@dataclass
class EchoStreamCriterionConfig(FairseqDataclass):
    """Flags of the criterion."""

    k1: int = field(default=0, metadata={"help": "text policy: ST tokens to lag behind"})
    n1: int = field(default=1, metadata={"help": "text policy: stride in tokens"})
    k2: int = field(default=0, metadata={"help": "unit policy: text states to lag behind"})
    n2: int = field(
        default=-1,
        metadata={
            "help": "unit policy: stride in text states; -1: random per batch, evenly in its "
            "logarithm"
        },
    )
    multichunk: bool = field(default=False, metadata={"help": "a random segment length per batch"})
    segment_sizes: str = field(
        default="8,16,24,32,whole",
        metadata={"help": "what --multichunk draws from, in encoder frames of 40 ms"},
    )
    valid_segment: str = field(
        default="",
        metadata={"help": "segment length in validation, or 'whole' (default: --chunk-size)"},
    )
    label_smoothing: float = field(
        default=0.1, metadata={"help": "of the text decoder, where the multitask YAML has none"}
    )
    asr_updates: int = field(
        default=0,
        metadata={
            "help": "train only encoder and recognition for so many updates first: they cost a "
            "fraction, and an encoder that recognises something does not collapse"
        },
    )
    unit_interval: int = field(
        default=1,
        metadata={"help": "N: learn units at every Nth update only; the others take less time"},
    )
    autocast: bool = field(
        default=False,
        metadata={
            "help": "train with bfloat16 matrix products (quick on GPUs and on CPUs with "
            "AVX512-BF16 or AMX, slow on others); weights and losses stay float32"
        },
    )
    distill: str = field(
        default="",
        metadata={
            "help": "let the encoder's frames imitate those of this model's encoder (directory or "
            "name) on the same audio before augmentation; needs neither text nor units"
        },
    )
    distill_weight: float = field(
        default=1.0,
        metadata={"help": "of the relative squared distance, against the loss of a unit"},
    )
    distill_layers: str = field(
        default="",
        metadata={"help": "layers that imitate one another too, student:teacher, such as 2:2,4:4"},
    )
    distill_whole: bool = field(
        default=False,
        metadata={
            "help": "the teacher reads everything at once (default: in the student's segments)"
        },
    )
    rdrop_alpha: float = field(default=0.0, metadata={"help": "accepted; must be 0"})
    collapse_threshold: float = field(
        default=0.01,
        metadata={"help": "warn when utterances' mean encoder outputs vary less than this"},
    )
    collapse_after: int = field(
        default=1000, metadata={"help": "updates before the first such warning"}
    )
    report_accuracy: bool = field(
        default=True, metadata={"help": "accepted; validation always reports token errors"}
    )
    sentence_avg: bool = II("optimization.sentence_avg")
    seed: int = II("common.seed")
    world_size: int = II("distributed_training.distributed_world_size")
    ddp_backend: str = II("distributed_training.ddp_backend")
    find_unused_parameters: bool = II("distributed_training.find_unused_parameters")


def parse_segment(text: str, flag: str) -> int:
    """Encoder frames, or ``whole``."""
    if text.strip() == "whole":
        return WHOLE
    if not text.strip().isdigit() or int(text) < 1:
        raise ValueError(f"{flag}: expected a number of frames or 'whole', got {text!r}")
    return int(text)


@register_criterion("echostream", dataclass=EchoStreamCriterionConfig)
class EchoStreamCriterion(FairseqCriterion):
    """All losses of one batch."""

    def __init__(self, task, cfg: EchoStreamCriterionConfig) -> None:
        super().__init__(task)
        if cfg.rdrop_alpha:
            raise ValueError(f"--rdrop-alpha must be 0, got {cfg.rdrop_alpha}: no R-Drop here")
        if cfg.unit_interval < 1:
            raise ValueError(f"--unit-interval must be at least 1, got {cfg.unit_interval}")
        masks = str(task.cfg.missing_targets) == "mask"
        if (
            (cfg.asr_updates or cfg.unit_interval > 1 or masks)
            and cfg.world_size > 1
            and cfg.ddp_backend in ("pytorch_ddp", "c10d")
            and not cfg.find_unused_parameters
        ):
            raise ValueError(
                f"--asr-updates, --unit-interval or --missing-targets mask with {cfg.world_size} "
                "processes needs --find-unused-parameters "
                f"(or --ddp-backend legacy_ddp), got --ddp-backend {cfg.ddp_backend} without it"
            )
        if not 0 <= cfg.label_smoothing < 1:
            raise ValueError(f"--label-smoothing must be in [0, 1), got {cfg.label_smoothing}")
        self.cfg = cfg
        self.policy = TextPolicy(max(cfg.k1, 0), cfg.n1 if cfg.n1 > 0 else 1)
        self.segments = [
            parse_segment(size, "--segment-sizes") for size in cfg.segment_sizes.split(",")
        ]
        self.valid_segment = (
            parse_segment(cfg.valid_segment, "--valid-segment") if cfg.valid_segment else None
        )
        self.weights = {
            "unit": 1.0,
            "asr": task.text_tasks[ASR_TASK].loss_weight,
            "st": task.text_tasks[ST_TASK].loss_weight,
            "mt": task.text_tasks[MT_TASK].loss_weight,
        }
        smoothing = task.text_tasks[MT_TASK].label_smoothing
        self.smoothing = cfg.label_smoothing if smoothing is None else smoothing
        self.collapsed = 0
        if cfg.distill_weight <= 0:
            raise ValueError(f"--distill-weight must be positive, got {cfg.distill_weight:g}")
        self.imitation: Optional[Imitation] = None
        if cfg.distill:
            self.imitation = Imitation.load(
                task.config, cfg.distill, cfg.distill_layers, cfg.distill_whole
            )
            task.keep_clean = True

    def draw(self, sample: dict, training: bool) -> tuple[int | None, int]:
        """Segment length and unit stride of a batch.

        They depend on seed, update and batch alone, so that any number of processes draws the
        same and a resumed run goes on as it would have.
        """
        update = self.task.num_updates if training else -1
        rng = random.Random(f"{self.cfg.seed} {update} {int(sample['id'].min())}")
        if not training:
            segment = self.valid_segment
        elif self.cfg.multichunk:
            segment = rng.choice(self.segments)
        else:
            segment = None
        stride = self.cfg.n2
        if stride < 1:
            # Evenly in the logarithm: a stream writes few tokens at a time, and with few of them
            # visible units are placed differently than with the whole text at hand.
            longest = 1 + sample["net_input"]["prev_output_tokens"].size(1)
            stride = int(math.exp(rng.uniform(0.0, math.log(longest + 1))))
        return segment, stride

    def forward(
        self, model: torch.nn.Module, sample: dict, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Returns loss, sample size and what is logged; all logged values are sums."""
        segment, stride = self.draw(sample, model.training)
        if not any(bool(t["target_lengths"].any()) for t in self.targets(sample).values()):
            return self.audio_alone(model, sample, segment)
        if model.training and self.task.num_updates < self.cfg.asr_updates:
            return self.recognition(model, sample, segment)
        net_input = sample["net_input"]
        previous = net_input["prev_output_tokens"]
        visible_text = strided_visibility(
            previous.size(1), lagging_k2=max(self.cfg.k2, 0), stride_n2=stride
        )
        with_units = not model.training or self.task.num_updates % self.cfg.unit_interval == 0
        with_units = with_units and bool(sample["target_lengths"].any())
        with autocast(previous.device.type, self.cfg.autocast and model.training):
            out = model(
                **net_input,
                with_units=with_units,
                segment_frames=segment,
                policy=self.policy,
                visible_text=visible_text.to(previous.device),
                hidden=self.needs_hidden,
            )
        inputs = self.input_lengths(out, previous)
        losses = self.losses(out, inputs, sample)
        losses |= self.imitate(sample, out.encoder_out, inputs["asr"], segment)
        spread = utterance_spread(out.encoder_out["encoder_out"][0], inputs["asr"])
        errors = None if model.training else self.errors(out, inputs, sample)
        return self.report(sample, losses, spread, errors, model.training)

    def recognition(
        self, model: torch.nn.Module, sample: dict, segment: int | None
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The part of :meth:`forward` that ``--asr-updates`` leaves: the ASR CTC loss."""
        inputs = sample["net_input"]
        with autocast(inputs["src_tokens"].device.type, self.cfg.autocast):
            encoder_out, logits = model(
                **inputs, segment_frames=segment, recognition_only=True, hidden=self.needs_hidden
            )
        lengths = self.encoder_lengths(encoder_out)
        target = self.targets(sample)["asr"]
        ends = self.sentence_ends(sample, lengths, logits.size(0))
        loss = ctc_loss(logits, lengths, **target, blank=Vocabulary.blank, name="asr", ends=ends)
        losses = {"asr": loss, **self.imitate(sample, encoder_out, lengths, segment)}
        spread = utterance_spread(encoder_out["encoder_out"][0], lengths)
        return self.report(sample, losses, spread, None, True)

    def audio_alone(
        self, model: torch.nn.Module, sample: dict, segment: int | None
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The part of :meth:`forward` for a batch without any target: a teacher's loss.

        Raises:
            ValueError: there is no teacher.
        """
        if self.imitation is None:
            raise ValueError(
                f"a batch has neither units nor texts (row {int(sample['id'][0])} of its split, "
                "among others), and without --distill there is nothing to learn from it"
            )
        inputs = sample["net_input"]
        device = inputs["src_tokens"].device.type
        with autocast(device, self.cfg.autocast and model.training):
            encoder_out, _ = model(
                **inputs, segment_frames=segment, encoder_only=True, hidden=self.needs_hidden
            )
        lengths = self.encoder_lengths(encoder_out)
        losses = self.imitate(sample, encoder_out, lengths, segment)
        spread = utterance_spread(encoder_out["encoder_out"][0], lengths)
        return self.report(sample, losses, spread, None, model.training)

    @property
    def needs_hidden(self) -> bool:
        """Whether the outputs of the encoder's layers are looked at."""
        return self.imitation is not None and self.imitation.needs_hidden

    def imitate(
        self,
        sample: dict,
        encoder_out: dict[str, list[Tensor]],
        lengths: Tensor,
        segment: int | None,
    ) -> dict[str, Tensor]:
        """The distillation loss of a batch; nothing without a teacher."""
        if self.imitation is None:
            return {}
        device = lengths.device.type
        with autocast(device, self.cfg.autocast and torch.is_grad_enabled()):
            return {"distill": self.imitation(sample, encoder_out, lengths, segment)}

    def report(
        self,
        sample: dict,
        losses: dict[str, Tensor],
        spread: Tensor | None,
        errors: dict[str, int] | None,
        training: bool,
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """What fairseq takes, from the losses that there are."""
        sample_size = sample["nsentences"] if self.cfg.sentence_avg else sample["ntokens"]
        frames = int(sample["net_input"]["src_lengths"].sum()) // SUBSAMPLING
        # Where no units are known, encoder frames stand for them: there are about as many.
        sample_size = sample_size or frames
        # The teacher's loss is a mean, the others are sums that the trainer divides.
        distance = losses.pop("distill", None)
        loss = sum(self.weights[head] * value for head, value in losses.items())
        if distance is not None:
            loss = loss + self.cfg.distill_weight * sample_size * distance
        logged: dict[str, Any] = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        for head, target in self.targets(sample).items():
            # Every key at every update: distributed runs sum these dictionaries key by key.
            known = head in losses
            logged[f"{head}_loss"] = losses[head].detach() if known else 0.0
            logged[f"{head}_tokens"] = int(target["target_lengths"].sum()) if known else 0
            logged[f"{head}_errors"] = (errors or {}).get(head, 0)
        logged["distill_loss"] = 0.0 if distance is None else float(distance.detach()) * frames
        logged["distill_frames"] = 0 if distance is None else frames
        logged["checked"] = 0 if errors is None else 1
        logged["spread"] = 0.0 if spread is None else float(spread)
        logged["spread_batches"] = 0 if spread is None else 1
        if spread is not None and training:
            self._guard(logged["spread"])
        return loss, sample_size, logged

    @staticmethod
    def encoder_lengths(encoder_out: dict[str, list[Tensor]]) -> Tensor:
        """(B,) encoder frames, whether or not the batch is padded."""
        frames, masks = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"]
        if masks:
            return (~masks[0]).sum(dim=1)
        return torch.full((frames.size(1),), frames.size(0), device=frames.device)

    def input_lengths(self, out, previous: Tensor) -> dict[str, Tensor]:
        """(B,) CTC frames of every head."""
        encoder = self.encoder_lengths(out.encoder_out)
        states = previous.ne(Vocabulary.pad).sum(dim=1)
        unit = states * (out.unit.size(1) // previous.size(1))
        return {"unit": unit, "asr": encoder, "st": encoder}

    @staticmethod
    def sentence_ends(sample: dict, lengths: Tensor, frames: int) -> tuple[int, Tensor] | None:
        """End-of-sentence and the (B, S) frames of streams at which it may be said."""
        sentences = sample["net_input"].get("sentences")
        if sentences is None:
            return None
        windows = sentence_windows(sentences, lengths)
        return Vocabulary.eos, windows.allowed(lengths, frames)

    @staticmethod
    def targets(sample: dict) -> dict[str, dict[str, Tensor]]:
        """Target and lengths of every head."""
        texts = sample["texts"]
        return {
            "unit": {key: sample[key] for key in ("target", "target_lengths")},
            "asr": texts[ASR_TASK],
            "st": texts[ST_TASK],
            "mt": texts[MT_TASK],
        }

    def _ctc_heads(self, out) -> dict[str, tuple[Tensor, int]]:
        """(S, B, V) logits and blank of every CTC head that this pass computed."""
        heads = {"asr": (out.asr, Vocabulary.blank), "st": (out.st, Vocabulary.blank)}
        if out.unit.size(1):
            unit_blank = self.task.config.num_units + UNIT_OFFSET
            heads["unit"] = (out.unit.transpose(0, 1), unit_blank)
        return heads

    def losses(self, out, inputs: dict[str, Tensor], sample: dict) -> dict[str, Tensor]:
        """Unweighted loss of every head, summed over the batch."""
        targets = self.targets(sample)
        ends = self.sentence_ends(sample, inputs["asr"], out.asr.size(0))
        losses = {
            head: ctc_loss(
                logits,
                inputs[head],
                **targets[head],
                blank=blank,
                name=head,
                ends=None if head == "unit" else ends,
            )
            for head, (logits, blank) in self._ctc_heads(out).items()
        }
        log_probs = out.mt.float().log_softmax(dim=-1).flatten(0, 1)
        losses["mt"], _ = label_smoothed_nll_loss(
            log_probs,
            targets["mt"]["target"].flatten(),
            self.smoothing,
            ignore_index=Vocabulary.pad,
        )
        return losses

    @torch.no_grad()
    def errors(self, out, inputs: dict[str, Tensor], sample: dict) -> dict[str, int]:
        """Token errors: edit distance of greedy CTC, wrong teacher-forced predictions of MT."""
        targets = self.targets(sample)
        errors = {}
        for head, (logits, blank) in self._ctc_heads(out).items():
            ignore = tuple(range(UNIT_OFFSET)) if head == "unit" else (Vocabulary.pad,)
            errors[head], _ = ctc_errors(
                logits, inputs[head], **targets[head], blank=blank, never=NEVER, ignore=ignore
            )
        target = targets["mt"]["target"]
        wrong = out.mt.argmax(dim=-1).ne(target) & target.ne(Vocabulary.pad)
        return errors | {"mt": int(wrong.sum())}

    def _guard(self, spread: float) -> None:
        """Warn of an encoder that maps every utterance to one vector."""
        if spread >= self.cfg.collapse_threshold or (
            self.task.num_updates < self.cfg.collapse_after
        ):
            return
        if self.collapsed % WARN_EVERY == 0:
            logger.warning(
                "update %d: the encoder's mean outputs vary by %.2g across utterances (relative, "
                "below %g): it may be collapsing", self.task.num_updates, spread,
                self.cfg.collapse_threshold,
            )  # fmt: skip
        self.collapsed += 1

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Losses in bits per token, error rates in percent, and the encoder's spread."""

        def total(key: str) -> float:
            return float(sum(log.get(key, 0) for log in logging_outputs))

        size = total("sample_size")
        metrics.log_scalar("loss", total("loss") / size / math.log(2), size, round=3)
        for head in HEADS:
            tokens = total(f"{head}_tokens")
            if not tokens:
                continue
            value = total(f"{head}_loss") / tokens / math.log(2)
            metrics.log_scalar(f"{head}_loss", value, tokens, round=3)
            if total("checked"):
                rate = 100 * total(f"{head}_errors") / tokens
                metrics.log_scalar(f"{head}_error", rate, tokens, round=2)
        frames = total("distill_frames")
        if frames:
            metrics.log_scalar("distill_loss", total("distill_loss") / frames, frames, round=4)
        batches = total("spread_batches")
        if batches:
            metrics.log_scalar("encoder_spread", total("spread") / batches, batches, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
