"""``echostream models``, ``fetch`` and ``push-to-hub`` as they are typed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

import echostream.hub.hub_commands as commands
from echostream.checkpoint import load_model_dir, read_provenance, save_model_dir
from echostream.cli import main
from echostream.config import SpeechConfig
from echostream.hub.names import cached_folder
from tests.hub.server import Fault
from tests.voice.conftest import voice  # noqa: F401


def errors(capsys) -> str:
    return capsys.readouterr().err


def test_models_are_listed_with_all_that_matters(model, store, capsys):
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    for wanted in ("echo-mini:", "stand-in-fr-en:", "fr to en; asr, s2tt, s2st", "CC-BY-NC-4.0"):
        assert wanted in text
    assert "no: `echostream fetch stand-in-fr-en`" in text
    assert main(["fetch", "stand-in-fr-en", "--accept-licence"]) == 0
    capsys.readouterr()
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["stand-in-fr-en"]["place"] == str(cached_folder("stand-in-fr-en"))
    assert rows["streamspeech-fr-en"]["place"] is None


def test_licences_are_shown_once_and_accepted(model, hub, store, models, capsys, monkeypatch):
    monkeypatch.setattr(commands, "asker", lambda: None)
    assert main(["fetch", "stand-in-fr-en"]) == 2
    told = capsys.readouterr()
    assert "weights: none stated (nowhere)" in told.out and "--accept-licence" in told.err
    assert not hub.log and not models.exists()
    monkeypatch.setattr(commands, "asker", lambda: lambda prompt: "n")
    assert main(["fetch", "stand-in-fr-en"]) == 2 and not hub.log
    monkeypatch.setattr(commands, "asker", lambda: lambda prompt: "y")
    assert main(["fetch", "stand-in-fr-en"]) == 0
    capsys.readouterr()
    # Accepted before: neither shown nor asked, even after the model is gone.
    monkeypatch.setattr(commands, "asker", lambda: None)
    (models / "stand-in-fr-en" / "provenance.json").unlink()
    assert main(["fetch", "stand-in-fr-en"]) == 0
    assert "none stated" not in capsys.readouterr().out


def test_a_shipped_model_needs_no_fetching(capsys):
    assert main(["fetch", "echo-mini"]) == 0
    assert "echo_mini" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stremspeech-fr-en"], "did you mean streamspeech-fr-en"),
        (["stand-in-fr-en", "--unverified"], "--unverified is for files of --from"),
        (["hf:no-owner"], "hf:owner/name"),
        (["hf:me/x", "--from", "."], "--from is for released models"),
        (["hf:me/x"], "no such repository"),
        (["stand-in-fr-en", "--from", "nowhere", "--accept-licence"], "no such folder"),
    ],
)
def test_mistakes_are_one_line(model, store, capsys, arguments, message):
    assert main(["fetch", *arguments]) == 2
    error = errors(capsys)
    assert message in error and error.count("\n") == 1


def test_what_goes_wrong_on_the_way_is_one_line(model, hub, store, capsys):
    hub.faults.append(Fault("GET /linked", spoil=7))
    assert main(["fetch", "stand-in-fr-en", "--accept-licence"]) == 2
    lines = errors(capsys).splitlines()
    assert sum("sha256 must be" in line for line in lines) == 1


@pytest.fixture
def writer(hub, monkeypatch) -> None:
    hub.writers.add("mine")
    monkeypatch.setenv("HF_TOKEN", "mine")


def test_a_model_directory_goes_to_the_hub_and_back(system, model_dir, hub, store, writer, capsys):
    assert main(["push-to-hub", str(model_dir), "me/mine"]) == 0
    assert "echostream fetch hf:me/mine" in capsys.readouterr().out
    repo = hub.repos["me/mine"]
    files = repo.commits[repo.head]
    assert set(files) == {path.name for path in model_dir.iterdir()} | {"README.md"}
    card = files["README.md"].bytes().decode()
    assert card.startswith("---\nlibrary_name: echostream\n")
    assert main(["fetch", "hf:me/mine"]) == 0
    back = load_model_dir("hf:me/mine")
    assert back.config == system.config
    for path in model_dir.iterdir():
        assert (cached_folder("hf:me/mine") / path.name).read_bytes() == path.read_bytes()
    assert read_provenance(cached_folder("hf:me/mine"))["revision"] == repo.head
    # Nothing new there: nothing is downloaded. Something new: it is.
    before = len(hub.asked("GET /linked"))
    assert main(["fetch", "hf:me/mine"]) == 0 and len(hub.asked("GET /linked")) == before
    repo.commit("d" * 40, {"config.yaml": files["config.yaml"].bytes() + b"\n# newer\n"})
    assert main(["fetch", "hf:me/mine"]) == 0
    assert "newer" in (cached_folder("hf:me/mine") / "config.yaml").read_text()


def test_a_voice_of_its_own_goes_with_it(system, voice, tmp_path, hub, store, writer, capsys):  # noqa: F811
    config = replace(system.config, speech=SpeechConfig(voice="own"))
    known = {"own": SimpleNamespace(voice=voice)}
    save_model_dir(tmp_path / "m", replace(system, config=config, voices=known))
    assert main(["push-to-hub", str(tmp_path / "m"), "me/mine"]) == 0
    assert main(["fetch", "hf:me/mine"]) == 0
    folder = cached_folder("hf:me/mine") / "voice"
    assert len(list(folder.iterdir())) == 3
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "m" / "voice" / path.name).read_bytes()
    (tmp_path / "m" / "voice" / "prosody.safetensors").write_bytes(b"x")
    assert main(["push-to-hub", str(tmp_path / "m"), "me/other"]) == 2
    assert "not a prosody file" in errors(capsys)


def test_pushing_needs_a_token_that_may_write(model_dir, hub, store, capsys):
    assert main(["push-to-hub", str(model_dir), "me/mine"]) == 2
    assert "HF_TOKEN" in errors(capsys) and "me/mine" not in hub.repos


def test_only_whole_model_directories_are_pushed(model_dir, hub, store, writer, tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("nothing: 1\n")
    assert main(["push-to-hub", str(tmp_path / "broken"), "me/mine"]) == 2
    assert main(["push-to-hub", str(model_dir), "mine"]) == 2
    assert "me/mine" not in hub.repos


def test_what_others_released_is_not_shared_unasked(model, hub, store, writer, capsys):
    assert main(["fetch", "stand-in-fr-en", "--accept-licence"]) == 0
    assert main(["push-to-hub", "stand-in-fr-en", "me/theirs"]) == 2
    assert "weights: none stated" in errors(capsys) and "me/theirs" not in hub.repos
    assert main(["push-to-hub", "stand-in-fr-en", "me/theirs", "--accept-licence"]) == 0
    assert main(["fetch", "hf:me/theirs"]) == 0
    told = read_provenance(cached_folder("hf:me/theirs"))
    assert told["licences"][0]["name"] == "none stated"


def test_a_shared_directory_is_checked_like_any_other(system, tmp_path, hub, store, writer, capsys):
    save_model_dir(tmp_path / "mine", system)
    assert main(["push-to-hub", str(tmp_path / "mine"), "me/mine"]) == 0
    fault = Fault("GET /linked", spoil=100)
    hub.faults.append(fault)
    assert main(["fetch", "hf:me/mine"]) == 2
    assert "sha256 must be" in errors(capsys)
    assert not cached_folder("hf:me/mine").exists()
    fault.times = 0
    repo = hub.repos["me/mine"]
    repo.commit("c" * 40, {"model.safetensors": b"x" * 20_000})
    assert main(["fetch", "hf:me/mine"]) == 2
    assert "not a whole safetensors file" in errors(capsys)
    weights = repo.commits[list(repo.commits)[1]]["model.safetensors"].bytes()
    config = repo.commits[repo.head]["config.yaml"].bytes()
    for claimed in (b"source_vocab_size: 1000000000", b"num_units: 1000000000"):
        name = claimed.partition(b":")[0]
        hostile = re.sub(rb"(?m)^%s: \d+$" % name, claimed, config)
        assert hostile != config
        repo.commit("e" * 40, {"model.safetensors": weights, "config.yaml": hostile})
        assert main(["fetch", "hf:me/mine"]) == 2
        assert "must" in errors(capsys) or "shape" in errors(capsys)
    del repo.commits[repo.head]["model.safetensors"]
    assert main(["fetch", "hf:me/mine"]) == 2
    assert "is no model directory" in errors(capsys)
    assert not [p for p in cached_folder("hf:me/mine").parent.iterdir() if p.is_dir()]
