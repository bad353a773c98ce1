"""A tiny voice with random weights, and a phonemizer that spells."""

import importlib.util

import pytest
import torch

from echostream.config import CodeVocosConfig
from echostream.models.decoders.codevocos_vocoder import CodeVocosVocoder
from echostream.models.decoders.phone_prosody import PhoneProsody, PhoneProsodyConfig
from echostream.voice.folder import Voice
from echostream.voice.phone_units import PhoneInventory

if importlib.util.find_spec("num2words") is None:  # the extra "voice" is not installed
    collect_ignore_glob = ["test_*.py"]

SYMBOLS = "^$ .,?!abcdefghijklmnopqrstuvwxyz"


def spell(text):
    return text.lower()


@pytest.fixture(scope="session")
def voice():
    torch.manual_seed(1)
    inventory = PhoneInventory(tuple(SYMBOLS), (150.0, 200.0))
    prosody = PhoneProsody(
        PhoneProsodyConfig(
            num_symbols=len(SYMBOLS),
            embed_dim=16,
            layers=2,
            attention_heads=2,
            ffn_dim=24,
            context_symbols=12,
        )
    )
    vocoder = CodeVocosVocoder(
        CodeVocosConfig(
            num_embeddings=inventory.num_units,
            pitch_classes=3,
            sampling_rate=8000,
            hop_samples=100,
            width=8,
            hidden_width=12,
            blocks=2,
            kernel=3,
            lookahead_frames=2,
            noise_frames=5,
            durations=None,
        )
    )
    for network in (prosody, vocoder):
        network.double().eval().requires_grad_(False)
        for parameter in network.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return Voice(inventory, prosody, vocoder)
