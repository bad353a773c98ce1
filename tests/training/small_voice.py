"""A voice of three letters: aligned speech and a small trainer of its prosody."""

import json

import numpy as np
import soundfile

from echostream.models.decoders.phone_prosody import PhoneProsodyConfig
from echostream.training.voice import prosody
from echostream.training.voice.material import make_inventory, read_utterances
from echostream.training.voice.prosody import ProsodyTrainer, ProsodyTrainingConfig

RATE, FRAME = 16000, 200
LENGTHS = {"a": 4, "b": 2, "c": 1, " ": 1}
PITCHES = {"a": 110, "b": 220, "c": 0, " ": 0}


def record(name, phonemes):
    """Every letter has a length and a pitch of its own."""
    durations = [3, *(LENGTHS[c] for c in phonemes), 2]
    pitch = [0, *(PITCHES[c] for c in phonemes), 0]
    f0 = [hz for hz, length in zip(pitch, durations, strict=True) for _ in range(2 * length)]
    return {
        "id": name,
        "text": phonemes,
        "file": f"audio/{name}.flac",
        "phonemes": phonemes,
        "durations": durations,
        "f0": f0,
    }


def write_speech(folder, count=12):
    rng = np.random.default_rng(0)
    lines = []
    for split, number in (("train", count), ("dev", 3), ("test", 2)):
        for index in range(number):
            letters = "".join(rng.choice(list("abc "), 12))
            line = record(f"{split}_{index}", letters)
            frequency = np.repeat(np.array(line["f0"], dtype=float), FRAME)
            sound = 0.3 * np.sin(2 * np.pi * np.cumsum(frequency) / RATE) * (frequency > 0)
            path = folder / line["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, sound, RATE)
            lines.append(json.dumps(line))
    (folder / "part-0.jsonl").write_text("\n".join(lines) + '\n{"id": "train_cut')
    return folder


def make_trainer(speech, updates=80, inventory=None):
    utterances = list(read_utterances(speech))
    inventory = inventory or make_inventory(utterances, 2)
    network = PhoneProsodyConfig(
        num_symbols=6, embed_dim=16, layers=1, attention_heads=2, ffn_dim=32, context_symbols=8
    )
    config = ProsodyTrainingConfig(
        network=network, updates=updates, batch_size=8, learning_rate=1e-2, warmup_updates=5
    )
    symbols = [prosody.spoken_symbols(u, inventory) for u in utterances]
    held = [s for s, u in zip(symbols, utterances, strict=True) if u.split == "dev"]
    return ProsodyTrainer(config, symbols[:12]), held
