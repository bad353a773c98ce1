"""The ``echostream`` command."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from echostream import cli
from echostream.synthetic import synthetic_clip


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "in.wav"
    soundfile.write(path, synthetic_clip(2.3, 44100, seed=1), 44100)
    return path


def test_info(model_dir, capsys):
    assert cli.main(["info", str(model_dir)]) == 0
    printed = capsys.readouterr().out
    for part in ("emformer, 2 layers", "320 ms", "memory bank", "target", "64", "16000 Hz"):
        assert part in printed
    assert "convolution                  none\n" in printed


def test_translate(model_dir, wav, tmp_path, capsys):
    out = tmp_path / "new" / "out.wav"
    flags = ["--model-dir", str(model_dir), "--out", str(out)]
    assert cli.main(["translate", str(wav), *flags, "--text"]) == 0
    samples, rate = soundfile.read(out)
    assert rate == 16000 and len(samples) and np.abs(samples).max() > 0
    printed = capsys.readouterr()
    assert "transcript" in printed.out + printed.err
    assert f"{len(samples) / rate:.2f} s of speech from 2.30 s of source" in printed.out
    assert [path.name for path in out.parent.iterdir()] == ["out.wav"]
    again = tmp_path / "again.wav"
    assert (
        cli.main(["translate", str(wav), "--model-dir", str(model_dir), "--out", str(again)]) == 0
    )
    assert again.read_bytes() == out.read_bytes(), "translation is deterministic"


def test_mistakes_are_one_line_and_leave_nothing(model_dir, wav, tmp_path, capsys):
    out = str(tmp_path / "out.wav")
    text = tmp_path / "text.wav"
    text.write_text("not audio")
    broken = shutil.copytree(model_dir, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"")
    for command, message in (
        (["info", str(tmp_path / "nowhere")], "no such model directory"),
        (["info", str(broken)], "not a whole safetensors file"),
        (
            ["translate", str(wav), "--model-dir", str(model_dir), "--out", out, "--device", "x"],
            "device must be cpu, cuda or cuda:N, got 'x'",
        ),
        (
            ["translate", "missing.wav", "--model-dir", str(model_dir), "--out", out],
            "no such sound",
        ),
        (["translate", str(text), "--model-dir", str(model_dir), "--out", out], "not a readable"),
        (
            ["translate", str(wav), "--model-dir", str(model_dir), "--out", out, "--chunk-ms", "1"],
            "chunk_ms must lie between",
        ),
    ):
        assert cli.main(command) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "Traceback" not in error
    assert not any(path.suffix == ".wav" for path in tmp_path.iterdir() if path != text)
    assert not any("partial" in path.name for path in tmp_path.iterdir())


def test_importing_loads_neither_simuleval_nor_fairseq():
    code = (
        "import sys, echostream.translator.pipeline, echostream.cli, echostream.checkpoint\n"
        "heavy = [m for m in sys.modules if m.split('.')[0] in ('simuleval', 'fairseq')]\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command_is_installed():
    done = subprocess.run(
        [sys.executable, "-m", "echostream.cli", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("echostream ")
