"""The demonstration behind ``scripts/demo.sh``: what to translate, and what came out.

No trained weights ship yet, so the model is a small one with seeded random weights: everything
runs as it will (features, encoder, policy, decoders, vocoder, scoring), the words mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import soundfile

from echostream.audio import CMVN
from echostream.checkpoint import System, save_model_dir
from echostream.config import preset
from echostream.models.echostream_model import seeded_model
from echostream.text import SPECIALS, WORD_START, Vocabulary

SEED = 1
CLIP_SECONDS = 4
CLIP_RATE = 48000
# Speech-like filterbank statistics, so that random weights see inputs of order one.
CMVN_MEAN, CMVN_STD = 12.0, 4.0


def syllables(count: int) -> list[str]:
    """``count`` distinct pieces, every second one starting a word."""
    pieces = [consonant + vowel for vowel in "aeiou" for consonant in "bdfgklmnprstv"]
    return [(WORD_START if i % 2 == 0 else "") + piece for i, piece in enumerate(pieces[:count])]


def random_system() -> System:
    """A tiny system with seeded random weights."""
    config = preset("tiny")
    bins = config.frontend.num_mel_bins
    mean, std = CMVN.identity(bins).mean + CMVN_MEAN, CMVN.identity(bins).std * CMVN_STD
    return System(
        config,
        seeded_model(config, SEED),
        Vocabulary(syllables(config.source_vocab_size - len(SPECIALS))),
        Vocabulary(syllables(config.target_vocab_size - len(SPECIALS))),
        CMVN(mean, std),
    )


def synthetic_clip(seconds: float, rate: int, seed: int) -> np.ndarray:
    """A vowel-like clip: a gliding pulse train through three moving resonances, in syllables."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    pitch = 120 * 2 ** (0.3 * np.sin(2 * np.pi * 0.7 * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    wave = np.zeros_like(time)
    for centre, width, speed in ((600, 200, 1.1), (1500, 400, 1.7), (2600, 500, 2.3)):
        formant = centre + width * np.sin(2 * np.pi * speed * time + generator.uniform(0, 6))
        for harmonic in range(1, 30):
            gain = np.exp(-(((harmonic * pitch - formant) / 150) ** 2))
            wave += gain * np.sin(harmonic * phase)
    envelope = np.clip(np.sin(2 * np.pi * 2.2 * time) + 0.4, 0, 1)
    wave = wave * envelope + 0.002 * generator.standard_normal(len(time))
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


def clips(output: Path) -> list[Path]:
    """The reference clips if the checkout has them beside it, else a synthetic one."""
    reference = Path(__file__).resolve().parents[2] / "shared" / "reference" / "audio"
    found = sorted(reference.glob("*.wav"))
    if found:
        return found
    clip = output / "synthetic.wav"
    soundfile.write(clip, synthetic_clip(CLIP_SECONDS, CLIP_RATE, SEED), CLIP_RATE)
    return [clip]


def prepare(output: Path) -> None:
    """Write the model directory and SimulEval's source and target lists."""
    output.mkdir(parents=True, exist_ok=True)
    save_model_dir(output / "model", random_system())
    sources = clips(output)
    text = "".join(f"{clip}\n" for clip in sources)
    (output / "source.txt").write_text(text, encoding="utf-8")
    # There is no reference translation to compare random words with; the latency metrics need
    # the length of one.
    (output / "target.txt").write_text("this is a stand in reference\n" * len(sources))
    print(f"model:   {output / 'model'} (random weights: scores show that it runs, not quality)")
    print(f"sources: {', '.join(clip.name for clip in sources)}")


def report(output: Path) -> None:
    """Say what came out."""
    names, values = (
        line.split("\t") for line in (output / "s2st" / "scores.tsv").read_text().splitlines()
    )
    print("\nscores (times in ms; _CA adds the computation)")
    for name, value in zip(names, values, strict=True):
        print(f"  {name:16s} {value}")
    print("\ntranslated speech")
    for line in (output / "s2st" / "instances.log").read_text().splitlines():
        instance = json.loads(line)
        path = Path(instance["prediction"])
        seconds = soundfile.info(path).duration if path.is_file() else 0.0
        writes = len(instance["delays"])
        source = Path(str(instance["source"])).name
        print(f"  {path}: {seconds:.2f} s in {writes} writes, from {source}")
    print(f"policy trace: {output / 'trace.jsonl'}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m echostream.demo", description=__doc__)
    parser.add_argument("command", choices=["prepare", "report"])
    parser.add_argument("output", type=Path)
    args = parser.parse_args(argv)
    {"prepare": prepare, "report": report}[args.command](args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
