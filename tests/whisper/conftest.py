"""A small random Whisper model, made by an independent implementation of its network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("num2words")

# What these import may not be installed.
from echostream.cli import main  # noqa: E402
from echostream.training.warm_start.clips import SpeechPool  # noqa: E402
from tests.whisper.small_training import (  # noqa: E402
    RATE,
    SENTENCES,
    SOURCES,
    TARGETS,
    TRANSLATIONS,
)

WORDS = " the cat sat on a mat and it was good Don't 12"
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|es|>", "<|translate|>")


@pytest.fixture(scope="session")
def reference():
    """Hugging Face's own network with random weights."""
    torch.manual_seed(3)
    config = transformers.WhisperConfig(
        vocab_size=400,
        num_mel_bins=80,
        d_model=128,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_source_positions=60,
        max_target_positions=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        attn_implementation="eager",
    )
    model = transformers.WhisperForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms, which would be trivial
            torch.nn.init.normal_(parameter, std=0.3)
    # Whisper's encoder positions are sinusoids, and no parameter.
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def hugging_face_folder(reference, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whisper_hf")
    reference.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> tokenizers.Tokenizer:
    """Byte-level subwords in Whisper's way, of a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=390,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[*SPECIAL, "<|transcribe|>", "<|notimestamps|>"],
        show_progress=False,
    )
    made.train_from_iterator([WORDS] * 5, trainer)
    return made


@pytest.fixture
def whisper(hugging_face_folder, tokenizer):
    tokenizer.save(str(hugging_face_folder / "tokenizer.json"))
    return hugging_face_folder


@pytest.fixture
def model_dir(tmp_path, whisper):
    texts = {}
    for name, lines in (("es", SENTENCES), ("en", TRANSLATIONS)):
        texts[name] = tmp_path / f"{name}.txt"
        texts[name].write_text("".join(f"{line}\n" for line in lines))
    out = tmp_path / "model"
    arguments = ["init", str(out), f"--init-encoder=whisper:{whisper}", "--source-pieces=18"]
    arguments += [f"--source-texts={texts['es']}", f"--target-texts={texts['en']}"]
    assert main(arguments) == 0
    return out


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A folder of aligned speech and one of plain sounds."""
    folder, generator = tmp_path_factory.mktemp("speech"), np.random.default_rng(0)
    lines = []
    for index, source in enumerate(SOURCES):
        samples = generator.normal(0, 0.1, RATE + 1600 * index).astype(np.float32)
        soundfile.write(folder / f"{index}.flac", samples, RATE)
        entry = {"id": f"train_{index}", "text": source, "file": f"{index}.flac"}
        lines.append(json.dumps(entry))
    lines.append(json.dumps({"id": "dev_0", "text": "x", "file": "0.flac"}))
    (folder / "part-0.jsonl").write_text("\n".join(lines) + '\n{"id": "train_9", "te')
    sounds = tmp_path_factory.mktemp("sounds")
    soundfile.write(sounds / "a.wav", generator.normal(0, 0.1, (8000, 2)), 8000)
    return folder, sounds


@pytest.fixture
def pool(speech):
    folder, sounds = speech
    translations = {f"train_{index}": text for index, text in enumerate(TARGETS)}
    pool = SpeechPool([folder], [sounds], translations)
    pool.refresh()
    return pool


@pytest.fixture
def held_out(speech):
    table = speech[0] / "held.tsv"
    table.write_text("id\tfile\tsource\ttarget\na\t0.flac\tel gato\tthe cat\nb\t1.flac\t\ta mat\n")
    return table
