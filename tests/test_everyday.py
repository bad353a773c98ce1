"""The shipped model `everyday`: floors on recordings of a real person and on synthetic voices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from echostream.assets import EVERYDAY, model_dir
from echostream.checkpoint import KNOWN_FILES, load_model_dir
from echostream.evaluation.text_scores import bleu, plain, plain_word_error_rate
from echostream.samples import read_audio
from echostream.session import Session
from echostream.text import read_lines
from echostream.translator.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[1]
REAL, VOICES = ROOT / "data/everyday/real", ROOT / "data/everyday/voices"


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(load_model_dir(model_dir("everyday")), chunk_ms=640, task="s2tt")


def translate(pipeline, samples, rate):
    """Transcript and translation of a stream that comes in chunk by chunk."""
    session, decisions = Session(pipeline), []
    for start in range(0, len(samples), rate // 2):
        decisions += session.push(samples[start : start + rate // 2], rate)
    decisions += session.push(samples[:0], rate, final=True)
    heard = " ".join(word for decision in decisions for word in decision.transcript)
    return heard, " ".join(word for decision in decisions for word in decision.translation)


def measured(pipeline, folder, count):
    """WER and BLEU of a folder's first recordings."""
    names = read_lines(folder / "wav_list.txt", "list")[:count]
    found = [translate(pipeline, *read_audio(ROOT / name)) for name in names]
    sources = read_lines(folder / "src.txt", "texts")[:count]
    targets = read_lines(folder / "target.txt", "texts")[:count]
    score = bleu([plain(text) for _, text in found], [plain(text) for text in targets])
    return plain_word_error_rate([text for text, _ in found], sources), score


def test_the_box():
    files = [path for path in EVERYDAY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 75e6
    assert max(path.stat().st_size for path in files) < 50e6
    assert {path.name for path in model_dir("everyday").iterdir()} <= KNOWN_FILES
    for weights in model_dir("everyday").glob("*.safetensors"):
        stored = load_file(weights)
        numbers = sum(tensor.numel() for tensor in stored.values())
        assert sum(t.numel() for t in stored.values() if t.itemsize == 1) > 0.98 * numbers
    assert "WER" in (EVERYDAY / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_real_person_is_understood_in_part(pipeline):
    """The model card has the figures on all 216 recordings."""
    wer, score = measured(pipeline, REAL, 12)
    assert wer < 30.0
    assert score > 14.0


@pytest.mark.slow
def test_unseen_voices_are_understood(pipeline):
    wer, score = measured(pipeline, VOICES, 10)
    assert wer < 10.0
    assert score > 36.0


@pytest.mark.slow
def test_nobody_speaks(pipeline):
    """Silence, noise and chords are not answered."""
    generator, rate = np.random.default_rng(0), 16000
    time = np.arange(8 * rate) / rate
    chords = sum(np.sin(2 * np.pi * f * time) for f in (220.0, 277.2, 329.6)).astype(np.float32)
    for samples in (
        np.zeros(8 * rate, np.float32),
        generator.normal(0, 0.003, 8 * rate).astype(np.float32),
        0.05 * chords,
    ):
        assert translate(pipeline, samples, rate) == ("", "")
