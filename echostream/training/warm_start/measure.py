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
from echostream.precision import computes_bfloat16
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
        transcript_wer: the same of the transcripts that the text decoder writes; None: it writes
            none, or there is nothing to compare them with.
        bleu: of the text decoder, greedy, small letters without punctuation.
        examples: the first translations with their references.
    """

    wer: float | None
    transcript_wer: float | None
    bleu: float
    examples: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        heard = "-" if self.wer is None else f"{self.wer:.1f} %"
        if self.transcript_wer is not None:
            heard += f", of transcripts {self.transcript_wer:.1f} %"
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
    heard, said, written = [], [], []
    for start in range(0, len(clips), batch):
        group = clips[start : start + batch]
        silence = torch.zeros(int(RATE * SILENCE_S))
        samples = [torch.cat([clip.samples / 32768.0, silence]) for clip in group]
        lengths = torch.tensor([len(one) for one in samples])
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_bfloat16(device)):
            features, frames = batch_features(
                pad_sequence(samples, batch_first=True).to(device),
                lengths,
                system.config.frontend,
                running=True,
            )
            found = model.encoder(features, frames)
            encoded, (source, _) = found["encoder_out"][0], model.text_source(found)
            logits = model.source_unigram_decoder(encoded).float().cpu()
        counts = [int(count) // 4 for count in frames]
        for row, count in enumerate(counts):
            labels = greedy_labels(logits[:count, row], ())
            tokens, _, _ = label_emissions(labels, CollapseState())
            words = [token for token in tokens if token != Vocabulary.eos]
            heard.append(system.source_vocabulary.decode(words))
        decoder, rows = model.target_unigram_decoder, len(group)
        source = source.float().transpose(0, 1)
        counts = [model.source_frames * count for count in counts]
        state = decoder.read(source, decoder.init_state(rows), lengths=counts)
        texts = decoder.decode_rows(state, [MOST_TOKENS] * rows, True)
        said += [system.target_vocabulary.decode(one.tokens) for one in texts]
        if system.transcript_vocabulary is not None:
            state = decoder.init_state(rows, transcribes=True)
            state = decoder.read(source, state, lengths=counts)
            texts = decoder.decode_rows(state, [MOST_TOKENS] * rows, True)
            first = system.config.target_vocab_size
            written += [
                plain_source(
                    system.transcript_vocabulary.decode(token - first for token in one.tokens)
                )
                for one in texts
            ]
    model.train(training)
    wer, transcript_wer = _error_rate(heard, clips), _error_rate(written, clips)
    targets = [clip.target for clip in clips]
    pairs = zip(map(plain, said[:3]), map(plain, targets[:3]), strict=True)
    return Measured(wer, transcript_wer, plain_bleu(said, targets), tuple(pairs))


def _error_rate(texts: Sequence[str], clips: Sequence[HeldOut]) -> float | None:
    """Of one text for each clip; None where nothing is known or written."""
    known = [(text, clip.source) for text, clip in zip(texts, clips, strict=False) if clip.source]
    wer = plain_word_error_rate([text for text, _ in known], [source for _, source in known])
    return None if math.isnan(wer) else wer
