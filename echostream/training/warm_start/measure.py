"""What a student understands of held-out clips, each in one go: no policy, no latency."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echostream.checkpoint import System
from echostream.evaluation.text_scores import plain, plain_bleu, plain_word_error_rate
from echostream.models.decoders.ctc_collapse import CollapseState, label_emissions
from echostream.models.decoders.ctc_decoder import greedy_labels
from echostream.text import Vocabulary
from echostream.training.warm_start.clips import RATE, read_speech
from echostream.training.warm_start.trainer import batch_features
from echostream.whisper.plain_texts import plain_source

SILENCE_S = 0.5  # behind each clip
MOST_TOKENS = 60  # of one translation


@dataclass(frozen=True)
class HeldOut:
    """One clip: (T,) int16 samples, plain transcript and translation; empty if not known."""

    samples: Tensor
    source: str
    target: str


@dataclass(frozen=True)
class Measured:
    """Over all clips.

    Attributes:
        wer: of the recognition head, greedy, accents ignored, in percent; None without transcripts.
        bleu: of the text decoder, greedy, small letters without punctuation.
        examples: the first translations with their references.
    """

    wer: float | None
    bleu: float
    examples: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        heard = "-" if self.wer is None else f"{self.wer:.1f} %"
        examples = " | ".join(f"{said} <- {meant}" for said, meant in self.examples)
        return f"WER {heard}, BLEU {self.bleu:.1f}; {examples}"


def read_clips(table: Path, limit: int = 60, *, language: str = "es") -> list[HeldOut]:
    """The first clips of a table with a header and columns ``file`` (beside it), ``source`` and
    ``target``; numbers are spelled in ``language``."""
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        HeldOut(
            torch.from_numpy(read_speech(table.parent / row["file"])),
            plain_source(row["source"], language),
            row["target"],
        )
        for row in rows[:limit]
    ]


@torch.no_grad()
def measure(system: System, clips: Sequence[HeldOut], *, batch: int = 8) -> Measured:
    """Listen to clips in the encoder's segments and translate each when it was read."""
    model, training = system.model, system.model.training
    model.eval()
    device = next(model.parameters()).device
    heard, said = [], []
    for start in range(0, len(clips), batch):
        group = clips[start : start + batch]
        silence = torch.zeros(int(RATE * SILENCE_S))
        samples = [torch.cat([clip.samples / 32768.0, silence]) for clip in group]
        lengths = torch.tensor([len(one) for one in samples], device=device)
        with torch.autocast(device.type, torch.bfloat16):
            features, frames = batch_features(
                pad_sequence(samples, batch_first=True).to(device),
                lengths,
                system.config.frontend,
                running=True,
            )
            encoded = model.encoder(features, frames)["encoder_out"][0]
            logits = model.source_unigram_decoder(encoded).float().cpu()
        counts = [int(count) // 4 for count in frames]
        for row, count in enumerate(counts):
            labels = greedy_labels(logits[:count, row], ())
            tokens, _, _ = label_emissions(labels, CollapseState())
            words = [token for token in tokens if token != Vocabulary.eos]
            heard.append(system.source_vocabulary.decode(words))
        decoder = model.target_unigram_decoder
        state = decoder.init_state(len(group))
        state = decoder.read(encoded.float().transpose(0, 1), state, lengths=counts)
        found = decoder.decode_rows(state, [MOST_TOKENS] * len(group), True)
        said += [system.target_vocabulary.decode(one.tokens) for one in found]
    model.train(training)
    known = [(text, clip.source) for text, clip in zip(heard, clips, strict=True) if clip.source]
    wer = plain_word_error_rate([text for text, _ in known], [source for _, source in known])
    targets = [clip.target for clip in clips]
    pairs = zip(map(plain, said[:3]), map(plain, targets[:3]), strict=True)
    return Measured(None if math.isnan(wer) else wer, plain_bleu(said, targets), tuple(pairs))
