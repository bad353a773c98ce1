"""A small Whisper in training: what is said, and a trainer of it."""

from __future__ import annotations

import torch

from echostream.models.echostream_encoder import EchoStreamSpeechEncoder
from echostream.text import Vocabulary
from echostream.training.warm_start.trainer import TrainingOptions, WarmStartTrainer
from echostream.whisper.system import start_from_whisper
from echostream.whisper.tokens import CutTokenizer, CutVocabulary
from echostream.whisper.warm_start import start_encoder
from echostream.whisper.weights import read_whisper

RATE = 16000
SOURCES = ("el gato", "era bueno", "la casa")
TARGETS = ("the cat sat", "it was good", "a mat")
SENTENCES = ["el gato está en la casa", "¿tiene dos perros?"] * 4
TRANSLATIONS = ["the cat sat on a mat", "and it was good"] * 4
LOSSES_OF_TEXT = {"asr", "st", "mt", "transcript"}


def build(hugging_face_folder, tokenizer, pool, compile_options=None, **options):
    torch.manual_seed(0)
    weights = read_whisper(hugging_face_folder)
    vocabulary = CutVocabulary.of(tokenizer, TARGETS, language="es")
    letters = sorted({c for text in SOURCES for c in text if c != " "})
    source = Vocabulary(["\u2581", *letters])
    source.encode = lambda text: [source._ids[c] for c in text.replace(" ", "\u2581")]
    heard = CutVocabulary.of(tokenizer, SOURCES, language="es", task="transcribe")
    system = start_from_whisper(weights, vocabulary, source, transcripts=heard, head_layers=1)
    teacher = EchoStreamSpeechEncoder(system.config.encoder)
    start_encoder(teacher, weights)
    settings = {"batch_seconds": 2.0, "minutes": 1e6, "alone": 0.0, "seed": 4} | options
    tokens, transcripts = (CutTokenizer(tokenizer, part) for part in (vocabulary, heard))
    settings = TrainingOptions(**settings)
    return WarmStartTrainer(
        system, teacher, tokens, transcripts, pool, settings, compile_options=compile_options
    )
