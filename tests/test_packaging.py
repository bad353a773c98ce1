"""A wheel, installed away from the checkout, does what the checkout does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import soundfile
import yaml

import echostream

ROOT = Path(__file__).resolve().parents[1]
AUDIO = ROOT / "data/echo_mini/test_audio/test_00001.flac"
SOURCES = ("echostream", "agents", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def run(command: list[object], folder: Path) -> str:
    """What a command prints, run in a folder without this process's paths."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, for a build leaves files behind."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation"], folder)
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """A new environment that holds the wheel, and sees the packages it needs in this one."""
    folder = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A path file adds folders, but does not read the path files in them: what points to the
    # checkout from there stays out.
    packages = [
        entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")
    ]
    (site / "packages.pth").write_text("\n".join(packages) + "\n")
    interpreter = folder / "bin/python"
    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-compile",
        "--no-deps",
        "--ignore-installed",
    ]
    run([interpreter, *install, wheel], folder)
    return interpreter


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_packages(wheel):
    listed = subprocess.run(
        ["git", "ls-files", "echostream", "agents"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("no git checkout, so what belongs to the packages is not known")
    expected = {name for name in listed.stdout.split("\n") if name and (ROOT / name).exists()}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == {
        f"echostream/{name}" if name.startswith("agents/") else name for name in expected
    }


@pytest.mark.slow
def test_an_installed_wheel_translates_beside_no_checkout(python, tmp_path):
    samples, rate = soundfile.read(AUDIO)
    soundfile.write(tmp_path / "x.wav", samples, rate)
    code = (
        "import sys, importlib.util, echostream\n"
        "print(echostream.load('echo-mini').translate('x.wav').text)\n"
        "agent = importlib.util.find_spec('echostream.agents.echostream_s2st')\n"
        "print(echostream.__file__, agent.origin, *sys.path[1:], sep='\\n')"
    )
    text, *places = run([python, "-c", code], tmp_path).splitlines()
    assert text == echostream.load("echo-mini").translate(AUDIO).text != ""
    package, agent, *path = map(Path, places)
    assert package.is_relative_to(python.parents[1])
    assert agent == package.parent / "agents/echostream_s2st.py"
    assert path and not [entry for entry in path if entry.resolve() == ROOT]


@pytest.mark.slow
def test_the_command_line_answers_without_torch(python, tmp_path):
    command = python.parent / "echostream"
    assert run([command, "--version"], tmp_path).split() == ["echostream", echostream.__version__]
    answer = subprocess.run(
        [python, "-X", "importtime", command, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "translate" in answer.stdout
    loaded = {line.rsplit("|", 1)[-1].strip() for line in answer.stderr.splitlines()}
    assert "echostream.cli" in loaded
    assert not {name for name in loaded if name.split(".")[0] in ("torch", "numpy", "simuleval")}


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == echostream.__version__


def test_the_guide_for_contributors_names_what_is_there():
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(r"`([\w.]+(?:/[\w.]+)*/[\w.]*)`", guide)
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / name).exists()]
