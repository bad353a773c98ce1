"""The script for a borrowed GPU, on a CPU: packed, unpacked, trained, and a model brought back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echostream.checkpoint import load_model_dir
from echostream.training import pieces
from tests.whisper.small_training import SENTENCES, TRANSLATIONS

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_training.sh"
# In place of make_everyday.py: Pico's folder is there at once, Kokoro's process never ends.
STUB = """#!/bin/bash
case "$*" in
*make_everyday.py*--kokoro*) echo $$ > {speaking}; exec sleep 600 ;;
*make_everyday.py*) exec cp -r {spoken}/. "$3" ;;
esac
exec {python} "$@"
"""


@pytest.fixture
def work(tmp_path, whisper):
    """What is packed."""
    folder = tmp_path / "work"
    (folder / "everyday").mkdir(parents=True)
    (folder / "kokoro").mkdir()
    (folder / "whisper").symlink_to(whisper)
    rows = enumerate(zip(SENTENCES, TRANSLATIONS, strict=True))
    table = "".join(f"train_{n}\t{es}\t{en}\n" for n, (es, en) in rows)
    (folder / "everyday" / "translations.tsv").write_text(table)
    return folder


@pytest.fixture
def spoken(tmp_path, work):
    """What make_everyday.py would make."""
    folder = tmp_path / "spoken" / "pico"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).normal(0, 0.1, 24000)
    soundfile.write(folder / "a.flac", noise, 16000)
    entries = [{"id": f"train_{n}", "text": es, "file": "a.flac"} for n, es in enumerate(SENTENCES)]
    (folder / "part-0.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    (folder / "translations.tsv").write_text((work / "everyday/translations.tsv").read_text())
    return folder.parent


def run(*arguments, **environment):
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "PYTHON": sys.executable, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_whole_way(work, spoken, model_dir, tmp_path):
    run("pack", work, tmp_path / "pieces")
    speaking, stub = tmp_path / "speaking", tmp_path / "python"
    stub.write_text(STUB.format(speaking=speaking, spoken=spoken, python=sys.executable))
    stub.chmod(0o755)
    options = ["0.01", "--batch-seconds", "2"]
    places = {"INIT": str(model_dir), "PYTHON": str(stub), "DEVICE": "cpu"}
    # The layers stay as they are: compiling them for a CPU takes minutes.
    environment = {**places, "TORCHDYNAMO_DISABLE": "1"}
    printed = run("run", tmp_path / "pieces", tmp_path / "there", *options, **environment)
    assert "speech: 0.00 h with text" in printed
    with pytest.raises(ProcessLookupError):
        os.kill(int(speaking.read_text()), 0)
    assert pieces.unpack(tmp_path / "there" / "results", tmp_path / "back") == ["model"]
    trained, first = map(load_model_dir, (tmp_path / "back" / "model", model_dir))
    assert trained.target_vocabulary.pieces == first.target_vocabulary.pieces
