"""How good a vocoder is on held-out units: spectra, durations, and recognised words."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import sacrebleu
import soundfile
import torch
from torchaudio.functional import resample

from echostream.files import atomic_path
from echostream.models.decoders.vocoder_protocol import Vocoder
from echostream.training.corpus.text_files import normalize
from echostream.training.vocoder.data import SpeechWithUnits
from echostream.training.vocoder.spectral_losses import MelLoss

logger = logging.getLogger(__name__)

LISTENING_RATE = 16000  # of pocketsphinx, Hz


def recogniser_is_installed() -> bool:
    """Whether pocketsphinx is there."""
    return importlib.util.find_spec("pocketsphinx") is not None


def transcribe(sounds: Sequence[np.ndarray]) -> list[str]:
    """What pocketsphinx transcribes from 16 kHz speech."""
    # SimulEval's metrics live beside the recognisers; training alone needs neither.
    from echostream.evaluation.recognizers.recognizer import load_recognizer

    recognizer = load_recognizer("pocketsphinx")
    return [recognizer.transcribe(sound) for sound in sounds]


def asr_bleu(
    sounds: Sequence[np.ndarray], references: Sequence[str], sample_rate: int = LISTENING_RATE
) -> float:
    """Corpus BLEU of the transcripts against the texts, both lower case without punctuation."""
    if sample_rate != LISTENING_RATE:
        tensors = [torch.from_numpy(np.ascontiguousarray(sound)) for sound in sounds]
        sounds = [resample(tensor, sample_rate, LISTENING_RATE).numpy() for tensor in tensors]
    heard = [normalize(text) for text in transcribe(sounds)]
    return sacrebleu.corpus_bleu(heard, [[normalize(text) for text in references]]).score


@torch.inference_mode()
def validate(
    vocoder: Vocoder,
    utterances: Sequence[SpeechWithUnits],
    *,
    texts: Mapping[str, str] | None = None,
    sample_folder: Path | None = None,
    samples: int = 4,
) -> dict[str, float]:
    """Resynthesise held-out utterances.

    Args:
        texts: what the utterances say; with pocketsphinx installed it is asked to confirm.
        sample_folder: where to leave the first few as WAV.

    Returns:
        ``mel``: log-mel distance with the true durations; ``duration_error``: mean absolute
        error in frames per unit, ``length_ratio``: predicted to true length; and ``asr_bleu`` of
        speech from reduced units with predicted durations, as in translation.
    """
    mel_loss = MelLoss(vocoder.sample_rate)
    mel, errors, lengths, sounds = [], [], [], []
    for utterance in utterances:
        copied, _ = vocoder.generate(utterance.units.tolist(), dur_prediction=False)
        real = torch.from_numpy(utterance.waveform)
        mel.append(float(mel_loss(copied[None, None], real[None, None])))
        reduced, frames = utterance.reduced
        if not vocoder.predicts_durations:
            sounds.append(copied.numpy())
            continue
        waveform, predicted = vocoder.generate(reduced.tolist())
        errors.append(np.abs(predicted.numpy() - frames))
        lengths.append((int(predicted.sum()), int(frames.sum())))
        sounds.append(waveform.numpy())
    report = {"mel": float(np.mean(mel))}
    if errors:
        report["duration_error"] = float(np.concatenate(errors).mean())
        report["length_ratio"] = sum(a for a, _ in lengths) / sum(b for _, b in lengths)
    if sample_folder is not None:
        for utterance, sound in list(zip(utterances, sounds, strict=True))[:samples]:
            with atomic_path(sample_folder / f"{utterance.id}.wav") as temporary:
                soundfile.write(temporary, sound, vocoder.sample_rate, subtype="PCM_16")
    if texts and recogniser_is_installed():
        known = [i for i, utterance in enumerate(utterances) if utterance.id in texts]
        references = [texts[utterances[i].id] for i in known]
        rate = vocoder.sample_rate
        recorded = [utterances[i].waveform for i in known]
        report["asr_bleu"] = asr_bleu([sounds[i] for i in known], references, rate)
        report["asr_bleu_real"] = asr_bleu(recorded, references, rate)
    return report
