"""Training on from a model directory that started from Whisper."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch

from echostream.checkpoint import load_model_dir
from echostream.training.warm_start import train
from echostream.whisper.system import continue_model
from echostream.whisper.tokens import CutVocabulary
from echostream.whisper.weights import read_whisper
from tests.whisper.small_training import SENTENCES, TRANSLATIONS


def test_vocabularies_come_back(model_dir, whisper, tokenizer):
    system, tokens, heard, start = continue_model(model_dir, read_whisper(whisper), tokenizer)
    known = {"language": "es", "least": 4}
    vocabulary = CutVocabulary.of(tokenizer, TRANSLATIONS, **known)
    found = CutVocabulary.of_pieces(
        tokenizer, system.target_vocabulary.pieces, system.config.mt.prompt
    )
    assert found == vocabulary
    for text in (*TRANSLATIONS[:2], "Don't sit on 12 cats"):
        assert "".join(system.target_vocabulary.decode(tokens.encode(text)).split()) == "".join(
            text.split()
        )
    assert heard is not None and heard.encode("gato")
    # The decoder as it was before any training, whatever the model has become.
    fresh = load_model_dir(model_dir).model.target_unigram_decoder.state_dict()
    assert start.keys() == fresh.keys()
    for name, tensor in fresh.items():
        torch.testing.assert_close(start[name], tensor, rtol=0, atol=1e-6)


def test_a_piece_that_whisper_lacks_is_named(model_dir, tokenizer):
    system = load_model_dir(model_dir)
    pieces = list(system.target_vocabulary.pieces)
    pieces[5] = "zzzz"
    with pytest.raises(ValueError, match="does not know 'zzzz'"):
        CutVocabulary.of_pieces(tokenizer, pieces, system.config.mt.prompt)


def test_a_run_goes_on_from_a_model(model_dir, whisper, tmp_path, capsys):
    speech = tmp_path / "speech"
    speech.mkdir()
    generator = np.random.default_rng(0)
    soundfile.write(speech / "0.flac", generator.normal(0, 0.1, 16000).astype("float32"), 16000)
    entry = {"id": "train_0", "text": SENTENCES[0], "file": "0.flac"}
    (speech / "part-0.jsonl").write_text(json.dumps(entry) + "\n")
    (tmp_path / "texts.tsv").write_text(f"train_0\t{SENTENCES[0]}\t{TRANSLATIONS[0]}\n")
    arguments = ["--whisper", str(whisper), "--texts", str(tmp_path / "texts.tsv")]
    arguments += ["--speech", str(speech), "--init", str(model_dir), "--out", str(tmp_path / "run")]
    arguments += ["--minutes", "0.001", "--batch-seconds", "3", "--decoder-share", "1.0"]
    train.main(arguments)
    assert "speech: 0.00 h with text" in capsys.readouterr().out
    before, after = load_model_dir(model_dir), load_model_dir(tmp_path / "run" / "model")
    assert after.config == before.config
    assert after.target_vocabulary.pieces == before.target_vocabulary.pieces
    name = "target_unigram_decoder.layers.0.fc1.weight"
    moved = (after.model.state_dict()[name] - before.model.state_dict()[name]).abs().max()
    assert 0 < moved < 0.01  # began where the model was
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train.main([*arguments, "--init", str(tmp_path / "nowhere")])
