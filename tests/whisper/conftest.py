"""A small random Whisper model, made by an independent implementation of its network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

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
