"""A streaming translator out of Whisper: distillation, recognition and translation at once.

The student is an :class:`~echostream.models.echostream_model.EchoStreamModel` whose encoder and
text decoder start from Whisper. Its encoder sees blocks and a bounded past; frame by frame it
learns to say what Whisper's own encoder says of the clean clip with all of it in view (relative
squared distance of the last layer, half of that of two layers between). That needs audio alone. On
speech with text the recognition head, the head that counts words of the translation and the text
decoder learn beside it.

Clips hold several utterances and stand at random places of a stream, since positions come round
again and a stream has no beginning that matters.

Everything is computed where the speech lies, and losses are read back only where they are reported.
Batches have few shapes, so the layers of encoder and text decoder can be compiled.

Shapes: B clips, T log-mel frames, S frames of the stack (20 ms), N sentences.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.audio import log_mel, running_peak, scale_log_mel
from echostream.checkpoint import System
from echostream.config import FrontendConfig
from echostream.files import atomic_path
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder
from echostream.precision import computes_bfloat16
from echostream.streaming import from_host, valid_mask
from echostream.text import Vocabulary
from echostream.training.warm_start.augment import augment
from echostream.training.warm_start.clips import RATE, Batch, Clip, SpeechPool, draw_batch, sound
from echostream.training.warm_start.parallel import Ranks
from echostream.whisper.tokens import CutTokenizer

FRAME_SAMPLES = RATE * 40 // 1000  # of one encoder frame
WARM_UP_UPDATES = 40
LEAST_RATE = 0.03  # of the learning rate at the end
RANK_SEEDS = 7_777_777  # between the draws of two processes
# Lengths are padded to a multiple of these, so that few shapes occur: oneDNN compiles every product
# for each shape of its own, which took a third of an update.
SAMPLES_STEP, SOURCE_STEP, TOKENS_STEP = 40 * FRAME_SAMPLES, 40, 8


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        minutes: how long in all, resumed runs included; learning rates fall to it.
        batch_seconds: of audio in one update.
        encoder_rate, head_rate, decoder_rate: learning rates; heads are what is new. At an encoder
            rate of 0 nobody teaches the encoder, and heads and text decoder learn in less time.
        asr_weight, st_weight, mt_weight, transcript_weight: of the losses beside distillation; the
            last two are of the text decoder.
        st_share: of batches that teach the head that counts words of the translation, whose many
            subwords cost a seventh of an update.
        transcript_share: of batches that teach the text decoder to write transcripts.
        sounds_share: of batches without text.
        long_segments: share of batches in segments of 640 instead of 320 ms.
        speed: clips are played up to this much faster or slower, and so higher or deeper: more
            voices than were recorded.
        offset_frames: most frames of the stack that a clip stands behind a stream's beginning.
        alone: share of the time, at the start, in which heads and text decoder do not teach the
            encoder: fresh heads know nothing yet.
        augmented: share of batches that the student gets through :func:`augment`.
        seed: of all that is drawn.
    """

    minutes: float = 60.0
    batch_seconds: float = 64.0
    encoder_rate: float = 2e-4
    head_rate: float = 1e-3
    decoder_rate: float = 5e-5
    asr_weight: float = 0.2
    st_weight: float = 0.05
    mt_weight: float = 0.2
    transcript_weight: float = 0.2
    st_share: float = 0.3
    transcript_share: float = 1.0
    sounds_share: float = 0.3
    long_segments: float = 0.2
    speed: float = 0.12
    offset_frames: int = 1500
    alone: float = 0.12
    augmented: float = 0.8
    seed: int = 1


@dataclass
class Progress:
    """What a run has come to.

    Attributes:
        updates: optimiser steps.
        spent_s: wall time of all runs together.
        audio_s: audio read, of all processes.
    """

    updates: int = 0
    spent_s: float = 0.0
    audio_s: float = 0.0


def batch_features(
    waveforms: Tensor, lengths: Tensor, config: FrontendConfig, *, running: bool
) -> tuple[Tensor, Tensor]:
    """(B, T) waveforms to (B, frames, bins) log-mel and (B,) valid frames, a multiple of four.

    Args:
        lengths: (B,) samples, on the host, where the valid frames will be too.
        running: scaled by the loudest so far, as in a stream, and not by the loudest of all.
    """
    half = config.window_samples // 2
    size = -(-waveforms.size(1) // FRAME_SAMPLES) * FRAME_SAMPLES
    padded = F.pad(waveforms, (half, half + size - waveforms.size(1)))
    features = log_mel(padded, config)[:, : size // config.shift_samples]
    frames = (lengths + FRAME_SAMPLES - 1) // FRAME_SAMPLES * 4
    if running:
        return scale_log_mel(features, running_peak(features)), frames
    hidden = ~valid_mask(frames.tolist(), features.size(1), features.device)
    peak = features.amax(dim=2).masked_fill(hidden, -torch.inf).amax(dim=1)
    return scale_log_mel(features, peak[:, None, None]), frames


def stack_outputs(
    encoder: EchoStreamSpeechEncoder,
    features: Tensor,
    frames: Tensor,
    *,
    segment_frames: int | Sequence[int],
    offsets: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """Every layer's (B, S, D) outputs, the last normalised, and the (B, S / 2, D) encoder
    frames."""
    out = encoder(
        features,
        frames,
        segment_frames=segment_frames,
        return_all_hiddens=True,
        position_offsets=offsets,
    )
    states = [state.transpose(0, 1) for state in out["encoder_states"]]
    states[-1] = encoder.layer_norm(states[-1])
    return states, out["encoder_out"][0].transpose(0, 1)


def padded_rows(rows: Sequence[Sequence[int]], step: int, value: int) -> Tensor:
    """(B, T) of B rows, where T is a multiple of ``step``."""
    size = -(-max(map(len, rows)) // step) * step
    return torch.tensor([[*row, *[value] * (size - len(row))] for row in rows])


def relative_distance(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Squared distance over the teacher's squared length, averaged over valid frames.

    Args:
        student, teacher: (B, S, D).
        valid: (B, S).
    """
    squared = (student.float() - teacher.float()).square().sum(dim=-1)
    relative = squared / teacher.float().square().sum(dim=-1).clamp(min=1.0)
    return (relative * valid).sum() / valid.sum()


class WarmStartTrainer:
    """One update after another.

    Args:
        system: the student; its encoder starts from the teacher.
        teacher: an encoder of the same shape with Whisper's own weights.
        tokens: of the translations.
        transcripts: of the transcripts, where the text decoder writes them too.
        pool: speech.
        options: see there.
        ranks: which of several processes this one is.
        compile_options: of :func:`torch.compile`, for the layers of encoders and text decoder;
            None: they are not compiled.

    All compute where the pool's samples lie, in bfloat16 where that is faster.
    """

    def __init__(
        self,
        system: System,
        teacher: EchoStreamSpeechEncoder,
        tokens: CutTokenizer,
        transcripts: CutTokenizer | None,
        pool: SpeechPool,
        options: TrainingOptions,
        ranks: Ranks | None = None,
        compile_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.ranks = Ranks() if ranks is None else ranks
        self.device = pool.samples.device
        self.half = computes_bfloat16(self.device)
        system.model.to(self.device)
        teacher.to(self.device)
        self.system, self.model, self.pool, self.options = system, system.model, pool, options
        self.teacher = teacher.eval().requires_grad_(False)
        self.tokens, self.transcripts = tokens, transcripts
        self.model.train().requires_grad_(True)
        encoder = self.model.encoder
        if not isinstance(encoder, EchoStreamSpeechEncoder):
            raise ValueError("only a system with an Emformer can start from Whisper")
        self.encoder = encoder
        encoder.subsample.requires_grad_(False)
        layers = encoder.config.layers
        self.taps = (layers // 3 - 1, 2 * layers // 3 - 1, layers - 1)
        self.progress = Progress()
        merge = list(encoder.merge.parameters())
        old = [
            parameter
            for name, parameter in encoder.named_parameters()
            if parameter.requires_grad and not name.startswith("merge.")
        ]
        heads = [
            *self.model.source_unigram_decoder.parameters(),
            *self.model.ctc_target_unigram_decoder.parameters(),
        ]
        decoder = list(self.model.target_unigram_decoder.parameters())
        self.groups = [(merge + heads, options.head_rate), (decoder, options.decoder_rate)]
        if options.encoder_rate:
            self.groups.insert(0, (old, options.encoder_rate))
        else:
            encoder.requires_grad_(False)
        self.compiled = compile_options is not None
        if compile_options is not None:
            # Layer by layer: all layers of a stack share one graph, and all shapes. One for each
            # shape would take longer to make than is left to train.
            for layer in (
                *encoder.emformer.layers,
                *self.teacher.emformer.layers,
                *self.model.target_unigram_decoder.layers,
            ):
                layer.compile(dynamic=True, **compile_options)
        self.optimizer = torch.optim.AdamW(
            [{"params": parameters} for parameters, _ in self.groups],
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=True,
        )

    @property
    def share(self) -> float:
        """Of the time that is over."""
        return self.progress.spent_s / (60.0 * self.options.minutes)

    def update(self) -> dict[str, Tensor]:
        """One batch; returns its losses by name, on the device."""
        started, options, progress = time.time(), self.options, self.progress
        # Drawn from the number of the update, so that a resumed run goes on as one that was not.
        seed = options.seed * 1_000_003 + progress.updates + self.ranks.rank * RANK_SEEDS
        rng = random.Random(seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        batch = draw_batch(
            self.pool,
            options.batch_seconds,
            rng,
            sounds=options.sounds_share,
            speed=options.speed,
            step=SAMPLES_STEP,
        )
        losses = self.losses(batch, rng, generator)
        rise = min(1.0, (progress.updates + 1) / WARM_UP_UPDATES)
        fall = max(LEAST_RATE, 1.0 - self.share)
        for group, (_, rate) in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = rate * rise * fall
        weights = {
            "asr": options.asr_weight,
            "st": options.st_weight,
            "mt": options.mt_weight,
            "transcript": options.transcript_weight,
        }
        total: Any = sum(weights.get(name, 1.0) * loss for name, loss in losses.items())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        for parameters, _ in self.groups:
            self.ranks.average_gradients(parameters)
            nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        progress.updates += 1
        # All see the same time, so that all stop at the same update.
        progress.spent_s = self.ranks.largest(progress.spent_s + time.time() - started)
        heard = sum(clip.length for clip in batch.clips) / RATE
        progress.audio_s += heard * self.ranks.size
        return {name: loss.detach() for name, loss in losses.items()}

    def losses(
        self, batch: Batch, rng: random.Random, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """``distance`` and ``hidden`` where the encoder learns, and with text ``asr``, ``st``,
        ``mt`` and ``transcript``."""
        options, config, clips = self.options, self.system.config.frontend, batch.clips
        clean = sound(self.pool.samples, batch)
        # Lengths and offsets stay on the host, which would have to wait to read them back.
        lengths = torch.tensor([clip.length for clip in clips])
        offsets = torch.tensor([rng.randint(0, options.offset_frames) for _ in clips])
        heard = clean
        if rng.random() < options.augmented:
            heard = augment(clean, from_host(lengths, self.device), generator)
        segment = 16 if rng.random() < options.long_segments else 8
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            features, frames = batch_features(heard, lengths, config, running=True)
            own, encoded = stack_outputs(
                self.encoder, features, frames, segment_frames=segment, offsets=offsets
            )
            losses: dict[str, Tensor] = {}
            if options.encoder_rate:
                losses = self._distances(clean, lengths, own, offsets)
            if clips[0].speech[0].source is not None:
                read = encoded if self.model.source_frames == 1 else own[-1]
                if self.share < options.alone:
                    encoded, read = encoded.detach(), read.detach()
                losses |= self._text_losses(clips, encoded, read, rng)
        return losses

    def _distances(
        self, clean: Tensor, lengths: Tensor, own: list[Tensor], offsets: Tensor
    ) -> dict[str, Tensor]:
        """Of the student's (B, S, D) layers from those of the teacher, who hears everything."""
        with torch.no_grad():
            features, frames = batch_features(
                clean, lengths, self.system.config.frontend, running=False
            )
            goals, _ = stack_outputs(
                self.teacher,
                features,
                frames,
                segment_frames=[features.size(1) // 4],
                offsets=offsets,
            )
        valid = valid_mask((frames // 2).tolist(), own[-1].size(1), self.device)
        first, second, last = self.taps
        width = (own[-1].size(-1),)
        hidden: Any = sum(
            relative_distance(
                F.layer_norm(own[tap].float(), width),
                F.layer_norm(goals[tap].float(), width),
                valid,
            )
            for tap in (first, second)
        )
        return {
            "distance": relative_distance(own[last], goals[last], valid),
            "hidden": 0.5 * hidden,
        }

    def _text_losses(
        self,
        clips: Sequence[Clip],
        encoded: Tensor,
        read: Tensor,
        rng: random.Random,
    ) -> dict[str, Tensor]:
        """Of the heads and the text decoder; encoder frames (B, S, D), and what the text decoder
        sees of them, (B, k S, D)."""
        source = self.system.source_vocabulary
        frames = [-(-clip.length // FRAME_SAMPLES) for clip in clips]
        asr: list[list[int]] = []
        st: list[list[int] | None] = []
        translations: list[tuple[int, int, int, list[int]]] = []
        transcripts: list[tuple[int, int, int, list[int]]] = []
        scale = self.model.source_frames
        for row, clip in enumerate(clips):
            transcript: list[int] = []
            translation: list[int] | None = []
            for (start, end), speech in zip(clip.parts, clip.speech, strict=True):
                assert speech.source is not None  # of a batch all have a text, or none
                transcript += [*source.encode(speech.source), Vocabulary.eos]
                first = start // FRAME_SAMPLES
                final = min(-(-end // FRAME_SAMPLES) + rng.randint(2, 12), frames[row])
                place = row, scale * first, scale * final
                if self.transcripts is not None:
                    written = self.transcripts.encode(speech.text or speech.source)
                    shift = self.model.config.target_vocab_size
                    transcripts.append((*place, [shift + token for token in written]))
                if speech.target is None:
                    translation = None
                    continue
                words = self.tokens.encode(speech.target)
                if translation is not None:
                    translation += [*words, Vocabulary.eos]
                translations.append((*place, words))
            asr.append(transcript)
            st.append(translation)
        losses: dict[str, Tensor] = {}
        if translations:
            losses["mt"] = self._decoder_loss(read, translations, rng)
        if transcripts and rng.random() < self.options.transcript_share:
            losses["transcript"] = self._decoder_loss(read, transcripts, rng, transcribes=True)
        # PyTorch's CTC waits for a GPU, so all else is started before.
        time_major = encoded.transpose(0, 1)
        losses["asr"] = _ctc(self.model.source_unigram_decoder(time_major), frames, asr)
        whole = [one for one in st if one is not None]
        if len(whole) == len(st) and rng.random() < self.options.st_share:
            losses["st"] = _ctc(self.model.ctc_target_unigram_decoder(time_major), frames, whole)
        return losses

    def _decoder_loss(
        self,
        encoded: Tensor,
        rows: list[tuple[int, int, int, list[int]]],
        rng: random.Random,
        *,
        transcribes: bool = False,
    ) -> Tensor:
        pad, eos = Vocabulary.pad, Vocabulary.eos
        counts = [end - start for _, start, end, _ in rows]
        words = [tokens for *_, tokens in rows]
        goals = from_host(padded_rows([[*w, eos] for w in words], TOKENS_STEP, pad), self.device)
        inputs = from_host(padded_rows([[eos, *w] for w in words], TOKENS_STEP, pad), self.device)
        size = -(-max(counts) // SOURCE_STEP) * SOURCE_STEP
        visible = torch.stack(
            [
                _visible(len(w) + 1, goals.size(1), n, rng, self.model.source_frames)
                for w, n in zip(words, counts, strict=True)
            ]
        )
        visible = from_host(visible, self.device)
        place = from_host([(row, start) for row, start, _, _ in rows], self.device)
        at = torch.arange(size, device=self.device)
        hidden = ~valid_mask(counts, size, self.device)
        frame = (place[:, 1:] + at).clamp(max=encoded.size(1) - 1)
        source = encoded[place[:, :1], frame].transpose(0, 1).masked_fill(hidden.T[..., None], 0.0)
        logits, _ = self.model.target_unigram_decoder(inputs, source, hidden, visible, transcribes)
        return _smoothed(logits.float().flatten(0, 1), goals.flatten(), pad)

    def save(self, path: Path) -> None:
        """Write all that a run needs to go on."""
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        with atomic_path(path) as temporary:
            torch.save(content, temporary)

    def load(self, path: Path) -> None:
        """Go on where a run stopped."""
        content: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.progress = Progress(**content["progress"])

    def load_weights(self, path: Path) -> None:
        """Start from the weights of another run's checkpoint. Where its text decoder wrote no
        transcripts, the subwords of transcripts stay as they are.

        Raises:
            RuntimeError: they are of another shape.
        """
        content: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        weights = dict(content["model"])
        own = self.model.target_unigram_decoder
        name, table = "target_unigram_decoder.embed_tokens.weight", own.embed_tokens.weight
        if len(weights[name]) == own.vocab_size < len(table):
            weights[name] = torch.cat([weights[name], table[own.vocab_size :].detach().cpu()])
        self.model.load_state_dict(weights)


def _ctc(logits: Tensor, frames: Sequence[int], goals: list[list[int]]) -> Tensor:
    """Of (S, B, V) logits, per target token."""
    lengths = torch.tensor([len(goal) for goal in goals])
    loss = F.ctc_loss(
        logits.float().log_softmax(dim=-1),
        from_host([token for goal in goals for token in goal], logits.device),
        torch.tensor(frames),
        lengths,
        blank=Vocabulary.blank,
        reduction="none",
        zero_infinity=True,
    )
    return (loss / from_host(lengths.clamp(min=1), logits.device)).mean()


def _smoothed(logits: Tensor, goals: Tensor, pad: int) -> Tensor:
    """Cross-entropy of (N, V) logits, a twentieth of which goes to all subwords of the task; those
    of the other are minus infinity."""
    log_probs = logits.log_softmax(dim=-1)
    kept = goals.ne(pad)
    named = -log_probs.gather(1, goals[:, None])[:, 0]
    own = log_probs.isfinite()
    spread = -log_probs.masked_fill(~own, 0.0).sum(dim=1) / own.sum(dim=1)
    losses = 0.95 * named + 0.05 * spread
    # Padding may be a subword that the task lacks, and minus infinity.
    return losses.masked_fill(~kept, 0.0).sum() / kept.sum()


def _visible(tokens: int, size: int, frames: int, rng: random.Random, scale: int) -> Tensor:
    """(size,) source frames, ``scale`` of them in 40 ms, that each of so many tokens sees: all, or
    along with the speech, some time behind it."""
    if rng.random() < 0.5:
        return torch.full((size,), frames)
    behind = scale * rng.randint(12, 50)
    at = (torch.arange(1, size + 1) * frames / tokens).long() + behind
    at[tokens - 1 :] = frames  # the end of the sentence is known when all was read
    return at.clamp(max=frames)
