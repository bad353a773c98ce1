"""Names of models: the table, where models lie, and what is said about wrong names."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from echostream import assets
from echostream.checkpoint import load_model_dir, save_model_dir
from echostream.cli import main
from echostream.config import CardConfig, from_dict, to_dict
from echostream.hub import names, table
from echostream.hub.names import (
    cached_folder,
    find_model,
    name_of,
    nearest_names,
    resolve_model,
)
from tests.reference.recordings import require_whole


@pytest.fixture(autouse=True)
def _models(tmp_path, monkeypatch):
    monkeypatch.setenv(names.CACHE_VARIABLE, str(tmp_path / "models"))


def test_the_table_knows_what_it_names():
    assert set(table.KNOWN) >= {
        "echo-mini",
        "echo-mini-streamspeech",
        *(f"streamspeech-{x}-en{kind}" for x in ("fr", "es", "de") for kind in ("", ":offline")),
    }
    for model in table.RELEASED:
        assert len(model.data) == 7 and all(part.sha256 for part in model.data)
        for part in model.parts:
            assert part.sha256 is None or re.fullmatch("[0-9a-f]{64}", part.sha256)
            # A hash that the table lacks, the Hub must be able to tell.
            assert part.sha256 or any(isinstance(s, table.HubFile) for s in part.sources)
    hashes = [part.sha256 for language in table.LANGUAGES for part in table.data_parts(language)]
    assert len(set(hashes)) == 21


def test_the_french_data_directory_is_the_one_in_the_table():
    from echostream.hub.file_checks import digest_file

    folder = require_whole("streamspeech_fr_en")
    for part in table.KNOWN["streamspeech-fr-en"].data:
        assert digest_file(folder / part.place).sha256 == part.sha256, part.place


def test_shipped_models_have_names():
    assert resolve_model("echo-mini") == assets.model_dir("echostream")
    assert find_model("echo-mini-streamspeech") == assets.model_dir("streamspeech")
    card = load_model_dir("echo-mini").config.card
    known = table.KNOWN["echo-mini"]
    assert (card.title, card.source_language, card.target_language, card.licence) == (
        known.title,
        known.source_language,
        known.target_language,
        known.licence,
    )


def test_a_directory_goes_before_a_name(system, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model_dir(tmp_path / "echo-mini", system)
    assert resolve_model("echo-mini").resolve() == tmp_path / "echo-mini"


def test_fetched_models_lie_in_the_users_cache(system, tmp_path, monkeypatch):
    place = cached_folder("streamspeech-fr-en:offline")
    assert place == tmp_path / "models" / "streamspeech-fr-en-offline"
    with pytest.raises(FileNotFoundError, match="`echostream fetch streamspeech-fr-en:offline`"):
        resolve_model("streamspeech-fr-en:offline")
    save_model_dir(place, system)
    assert resolve_model("streamspeech-fr-en:offline") == place
    monkeypatch.delenv(names.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert names.models_folder() == tmp_path / "xdg" / "echostream" / "models"


def test_shared_names():
    assert cached_folder("hf:me/my-model").name == "hf--me--my-model"
    assert cached_folder("hf:me/my-model@v1").name == "hf--me--my-model@v1"
    for wrong in ("hf:me", "hf:me/../x", "hf:/x", "hf:me/x/y", "hf:.me/x", "hf:me/x@", "hf:a--b/c"):
        with pytest.raises(ValueError, match="hf:owner/name"):
            cached_folder(wrong)
    with pytest.raises(FileNotFoundError, match="`echostream fetch hf:me/x`"):
        resolve_model("hf:me/x")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("streamspech-fr-en", "streamspeech-fr-en"),
        ("StreamSpeech fr en", "streamspeech-fr-en"),
        ("fr-en", "streamspeech-fr-en"),
        ("echo_mini", "echo-mini"),
        ("streamspeech-es-en:ofline", "streamspeech-es-en:offline"),
    ],
)
def test_a_wrong_name_is_told_the_nearest(wrong, nearest):
    assert nearest_names(wrong)[0] == nearest
    with pytest.raises(FileNotFoundError, match=f"did you mean {nearest}"):
        resolve_model(wrong)


def test_nothing_is_near_to_nonsense():
    assert nearest_names("/some/folder/of/mine") == []


@pytest.mark.parametrize(
    "command",
    [
        ["info", "{}"],
        ["translate", "{clip}", "--out", "{out}", "--model-dir", "{}"],
        ["speak", "--model-dir", "{}", "--out", "{out}"],
        ["serve", "--model-dir", "{}"],
        ["bench", "{}"],
        ["soak", "{}", "--output", "{out}", "--sounds", "silence", "--minutes", "0.01"],
        ["convert", "--to-fairseq", "{}", "--out", "{out}"],
    ],
)
def test_every_command_says_how_to_fetch(command, tmp_path, capsys, clip_file):
    filled = [
        part.format("streamspeech-fr-en", clip=clip_file, out=tmp_path / "out") for part in command
    ]
    assert main(filled) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "`echostream fetch streamspeech-fr-en`" in error


@pytest.fixture
def clip_file(tmp_path):
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "clip.wav", np.zeros(1600, np.float32), 16000)
    return tmp_path / "clip.wav"


def test_info_shows_what_a_name_is(capsys):
    assert main(["info", "echo-mini"]) == 0
    out = capsys.readouterr().out
    assert "echo-mini" in out and "es to en" in out and "MIT" in out


def test_a_card_is_read_strictly(system):
    config = replace(system.config, card=CardConfig("A title", "fr", "en", "MIT", ("asr",), 640))
    assert from_dict(type(config), to_dict(config)) == config
    without = to_dict(config)
    del without["card"]
    assert from_dict(type(config), without).card == CardConfig()
    for wrong in ({"source_language": "French!"}, {"chunk_ms": 0}, {"title": "two\nlines"}):
        with pytest.raises(ValueError, match="card"):
            CardConfig(**wrong)
    with pytest.raises(ValueError, match="card: tasks"):
        from_dict(type(config), {**to_dict(config), "card": {"tasks": ["sing"]}})


def test_a_folder_that_ships_has_the_name_of_the_table(tmp_path):
    for name in ("everyday", "echo-mini", "echo-mini-streamspeech"):
        assert name_of(resolve_model(name)) == name
    assert name_of(tmp_path / "model") == "model"
