"""How many threads a model computes with, and how they wait."""

import json
import os
import subprocess
import sys

import pytest
import soundfile
import torch
from torch import nn

from echostream import cli, threads
from echostream.precision import convert
from echostream.synthetic import synthetic_clip

SMALL = nn.Linear(10, 10)


class Large(nn.Module):
    """Counts as large, takes no memory."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1).expand(threads.SMALL_PARAMETERS + 1))


@pytest.fixture(autouse=True)
def _chosen_by_the_program(monkeypatch):
    monkeypatch.delenv(threads.THREADS_VARIABLE, raising=False)
    monkeypatch.setattr(threads, "physical_cores", lambda: 6)
    yield
    torch.set_num_threads(1)


def test_small_models_have_one_thread_and_large_ones_the_cores():
    assert threads.choose_threads(SMALL) == 1
    assert threads.choose_threads(Large()) == 6
    assert threads.use_threads(Large()) == torch.get_num_threads() == 6
    assert threads.use_threads(SMALL) == torch.get_num_threads() == 1
    assert threads.use_threads(SMALL, 3) == torch.get_num_threads() == 3


def test_models_on_a_gpu_have_one_thread():
    assert threads.choose_threads(Large().to("meta")) == 1


def test_the_user_decides(monkeypatch):
    monkeypatch.setenv(threads.THREADS_VARIABLE, "2")
    torch.set_num_threads(2)  # as torch does when it is loaded
    assert threads.choose_threads(Large()) == threads.choose_threads(SMALL) == 2
    assert threads.use_threads(SMALL, 3) == 3


def test_weights_in_eight_bits_count():
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(8, 8))
    expected = threads.count_parameters(model)
    quantised = convert(model.eval(), "int8", "cpu")
    assert sum(p.numel() for p in quantised.parameters()) < expected
    assert threads.count_parameters(quantised) >= expected - 512  # all but the bias


def test_physical_cores_keep_to_the_affinity(monkeypatch):
    monkeypatch.undo()
    cores = threads.physical_cores()
    assert 1 <= cores <= (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        code = (
            "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
            "from echostream.threads import physical_cores; print(physical_cores())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "1", done.stderr


def run_fresh(code, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in (*threads.PASSIVE, "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**clean, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


REPORT = """
import os, sys
from echostream import cli, threads
try:
    cli.main(["--version"])
except SystemExit:
    pass
print(*(os.environ.get(name) for name in sorted(threads.PASSIVE)), "torch" in sys.modules)
"""


def test_the_command_says_how_threads_wait_before_torch_is_there():
    assert run_fresh(REPORT) == "0 PASSIVE False"
    assert run_fresh(REPORT, OMP_WAIT_POLICY="ACTIVE", KMP_BLOCKTIME="7") == "7 ACTIVE False"


def test_it_leaves_the_environment_alone_when_it_is_too_late():
    environment = {}
    assert not threads.wait_passively(environment) and not environment


def test_the_number_is_told(model_dir, tmp_path, capsys):
    assert cli.main(["info", str(model_dir)]) == 0
    assert "  threads on this machine      1\n" in capsys.readouterr().out
    soundfile.write(tmp_path / "in.wav", synthetic_clip(0.7, 16000, seed=1), 16000)
    command = ["translate", str(tmp_path / "in.wav"), "--model-dir", str(model_dir), "--json"]
    for asked, expected in (([], 1), (["--threads", "2"], 2)):
        out = tmp_path / f"out{expected}.wav"
        assert cli.main([*command, "--out", str(out), *asked]) == 0
        assert json.loads(out.with_suffix(".json").read_text())["threads"] == expected
    assert (tmp_path / "out1.wav").exists()


def test_no_number_of_threads_is_below_one(capsys):
    with pytest.raises(SystemExit):
        cli.main(["translate", "a.wav", "--out", "b.wav", "--threads", "0"])
    assert "--threads: must be an integer >= 1, got '0'" in capsys.readouterr().err
