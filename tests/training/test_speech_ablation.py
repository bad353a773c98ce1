"""Every condition of the ablation is what it says it is, and the command lays the figures out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch

from echostream.checkpoint import save_model_dir
from echostream.evaluation.runs.transcripts import remove_inserted_silence
from echostream.synthetic import random_system, synthetic_clip
from echostream.text import Vocabulary
from echostream.training.ablation import report
from echostream.training.ablation.command import main
from echostream.training.ablation.conditions import (
    CONDITIONS,
    Ablation,
    Sentence,
    as_heard,
    cuts,
)
from echostream.training.units.sequences import write_units
from echostream.training.vocoder.data import SpeechWithUnits
from echostream.translator.pipeline import Pipeline

RATE = 16000
TEXT = "ba da fa ga"


@pytest.fixture(scope="module")
def system():
    return random_system()


@pytest.fixture(autouse=True)
def encoding(monkeypatch):
    """The random system has no SentencePiece model: a word is one piece, by its length."""
    monkeypatch.setattr(
        Vocabulary, "encode", lambda self, text: [5 + 2 * len(word) for word in text.split()]
    )


@pytest.fixture(scope="module")
def sentence(system, tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "a.wav"
    soundfile.write(path, synthetic_clip(3.0, RATE, seed=3), RATE, subtype="FLOAT")
    rng = np.random.default_rng(0)
    units = np.repeat(rng.integers(0, system.config.num_units, 12), 2)
    samples = len(units) * system.config.vocoder.unit_samples
    return Sentence(SpeechWithUnits("a", units, np.full(samples, 9000, np.int16)), path, TEXT)


def test_pieces_are_laid_out_as_simuleval_plays_them():
    pieces = [np.full(n, value, np.float32) for n, value in ((1600, 1), (3200, 2), (800, 3))]
    delays = [400.0, 450.0, 1000.0]
    heard = as_heard(pieces, delays, RATE)
    # 100 ms and 200 ms without a pause, then nothing from 700 to 1000 ms.
    expected = [pieces[0], pieces[1], np.zeros(4800), pieces[2]]
    assert np.array_equal(heard, np.concatenate(expected))
    durations = [1000 * len(piece) / RATE for piece in pieces]
    joined = remove_inserted_silence(heard, RATE, delays, durations)
    assert np.array_equal(joined, np.concatenate(pieces))
    assert len(as_heard([], [], RATE)) == 0


def test_cuts_divide_everything_in_growing_shares():
    assert cuts([0.25, 0.5, 1.0], 8) == [2, 4, 8]
    assert cuts([0.01, 0.4, 0.98], 5) == [0, 2, 5]
    assert cuts([1.0], 3) == [3]


@torch.no_grad()
def test_conditions_are_what_they_say(system, sentence):
    ablation = Ablation(system)
    spoken = ablation.speak(sentence)
    assert set(spoken.sounds) == set(CONDITIONS)
    sounds, model = spoken.sounds, system.model
    np.testing.assert_array_equal(sounds["real"], sentence.target.waveform)
    units = sentence.target.reduced[0].tolist()
    np.testing.assert_array_equal(sounds["units"], model.vocoder.generate(units)[0].numpy())
    # Reference text in one piece: what the model says teacher-forced, all at once.
    samples, rate = soundfile.read(sentence.source, dtype="float32")
    features, _ = system.frontend().step(samples, rate, system.frontend().init_state(), final=True)
    tokens = [Vocabulary.eos, *system.target_vocabulary.encode(TEXT)]
    whole = model(
        features,
        torch.tensor([features.size(1)]),
        torch.tensor([tokens]),
        segment_frames=8,
        waveform=True,
    )
    np.testing.assert_allclose(sounds["text"], whole.waveform[0].numpy(), atol=1e-5)
    # The system as a pipeline of its own says it.
    pipeline = Pipeline(system)
    outputs, _ = pipeline.step(samples, rate, pipeline.init_state(), final=True)
    pieces = [output.waveform for output in outputs if len(output.waveform)]
    assert len(pieces) == len(spoken.delays_ms) >= 2
    np.testing.assert_array_equal(sounds["system_joined"], np.concatenate(pieces))
    removed = remove_inserted_silence(sounds["system"], RATE, spoken.delays_ms, spoken.durations_ms)
    np.testing.assert_array_equal(removed, sounds["system_joined"])
    assert spoken.translation == " ".join(w for o in outputs for w in o.translation)
    # Reference units keep their number of frames; they are only moved apart.
    assert (
        len(sounds["units_pauses"]) >= len(sounds["units"]) - 4 * model.config.vocoder.unit_samples
    )
    assert len(sounds["units_pauses"]) - np.count_nonzero(sounds["units_pauses"]) > 0
    # One sentence leaves nothing behind for the next.
    again = ablation.speak(sentence)
    assert all(np.array_equal(again.sounds[name], sounds[name]) for name in CONDITIONS)


class Constant:
    """Hears real speech, which is constant here, and half of everything else."""

    sample_rate = RATE

    def __init__(self, name):
        self.name = name

    def transcribe(self, samples):
        real = len(samples) and np.allclose(samples, samples[0], atol=1e-3)
        return "One, two three four!" if real else f"one two {self.name}"


def test_command_scores_every_condition(system, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "load_recognizer", Constant)
    config = system.config.vocoder
    save_model_dir(tmp_path / "model", system)
    rng = np.random.default_rng(1)
    units = {name: rng.integers(0, config.num_embeddings, 20).tolist() for name in "abc"}
    for name in units:
        for folder, sound in (
            ("real", np.full(20 * config.unit_samples, 0.5)),
            ("source", synthetic_clip(2.0, RATE, seed=ord(name))),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            soundfile.write(tmp_path / folder / f"{name}.wav", sound, RATE)
    write_units(tmp_path / "x.km", units)
    rows = ["id\ttgt_text", *(f"{name}\tOne two three four." for name in "ab")]
    (tmp_path / "x.tsv").write_text("\n".join(rows) + "\n")
    arguments = ["--model-dir", str(tmp_path / "model"), "--units", str(tmp_path / "x.km"),
                 "--audio", str(tmp_path / "real"), "--sources", str(tmp_path / "source"),
                 "--texts", str(tmp_path / "x.tsv"), "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "out" / "table.md").read_text()
    assert shown.startswith("| | pocketsphinx | moonshine |")
    assert "| real target speech | 100.0 | 100.0 |" in shown and "2 sentences" in shown
    figures = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert figures["sentences"] == 2 and set(figures["asr_bleu"]) == set(CONDITIONS)
    assert all(
        figures["asr_bleu"][name]["moonshine"] < 100 for name in CONDITIONS if name != "real"
    )
    lines = (tmp_path / "out" / "heard.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert len(lines) == 2 and first["reference"] == "one two three four"
    assert first["heard"]["pocketsphinx"]["system"] == "one two pocketsphinx"
    for wrong, message in (
        (["--recognizers", "kaldi"], "--asr-model takes one of"),
        (["--sources", str(tmp_path / "gone")], "no sound of utterance 'a'"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, *wrong])
        assert message in capsys.readouterr().err


def test_a_text_is_forced_as_text_targets_are(system):
    ablation = Ablation(system)
    samples = synthetic_clip(1.0, RATE, seed=3)
    written, plain = (
        ablation.teacher_forced(samples, RATE, text) for text in ("Say, THIS one.", "say this one")
    )
    assert torch.equal(written, plain)
