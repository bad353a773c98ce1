"""``echostream init``: a model directory that loads, from Whisper's folder."""

from __future__ import annotations

import pytest
import torch

from echostream.checkpoint import load_model_dir
from echostream.cli import main
from echostream.whisper.plain_texts import plain_source
from echostream.whisper.system import subword_ratio, train_source_vocabulary
from echostream.whisper.tokens import CutTokenizer, CutVocabulary
from echostream.whisper.weights import read_whisper


@pytest.fixture
def arguments(tmp_path, whisper):
    (tmp_path / "es.txt").write_text("el gato está en la casa\n¿tiene 2 perros?\n" * 4)
    (tmp_path / "en.txt").write_text("the cat sat on a mat\nand it was good\n" * 4)
    return [
        "init",
        str(tmp_path / "model"),
        f"--init-encoder=whisper:{whisper}",
        f"--source-texts={tmp_path / 'es.txt'}",
        f"--target-texts={tmp_path / 'en.txt'}",
        "--source-pieces=18",
        "--decoder-layers",
        "0",
        "2",
    ]


def test_model_directory(arguments, tmp_path, whisper, capsys):
    assert main(arguments) == 0
    assert "not trained yet" in capsys.readouterr().out
    system = load_model_dir(tmp_path / "model")
    weights = read_whisper(whisper)
    own = system.model.encoder.emformer.layers[1].fc1.weight
    torch.testing.assert_close(own, weights.tensors["encoder.layers.1.fc1.weight"])
    assert system.config.mt.layers == 2
    assert system.target_vocabulary.decode(system.config.mt.prompt).startswith("<|startoftrans")
    assert main(["info", str(tmp_path / "model")]) == 0
    assert 0.0 < system.config.policy.target_per_source != 1.0  # counted from the texts


def test_what_is_wrong_is_said(arguments, tmp_path, capsys):
    arguments[5] = "--source-pieces=2000"
    assert main(arguments) == 2
    assert "no vocabulary of 2000 source subwords" in capsys.readouterr().err
    arguments[5] = "--source-pieces=18"
    english = tmp_path / "en.txt"
    english.write_text(english.read_text() + "one more\n")
    assert main(arguments) == 2
    assert "each transcript needs its translation: got 8 and 9" in capsys.readouterr().err
    arguments[2] = "--init-encoder=base.en"
    assert main(arguments) == 2
    assert "whisper:DIR, got 'base.en'" in capsys.readouterr().err
    arguments[2] = "--init-encoder=whisper:/nowhere"
    assert main(arguments) == 2
    assert "no such Whisper model: /nowhere" in capsys.readouterr().err


def test_subword_ratio(tokenizer):
    source = train_source_vocabulary(["el gato", "la casa"] * 3, 10)
    vocabulary = CutVocabulary.of(tokenizer, ["the cat"], language="es")
    targets = CutTokenizer(tokenizer, vocabulary)
    plain, english = ["el gato", "la casa"], ["the cat", "a mat"]
    heard = sum(len(source.encode(text)) for text in plain)
    written = sum(len(targets.encode(text)) for text in english)
    assert subword_ratio(plain, english, source, targets) == round(written / heard, 2)
    with pytest.raises(ValueError, match="no subword"):
        subword_ratio([""], ["a"], source, targets)


def test_transcripts_become_plain():
    assert plain_source("¿Tiene 21 años, Señor?") == "tiene veintiuno años señor"
