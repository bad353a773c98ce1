"""A fetched model by its name: translated with, served, scored, timed."""

from __future__ import annotations

import asyncio
import json
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import yaml

from echostream import cli
from echostream.agents.echostream_s2st import EchoStreamS2STAgent
from echostream.agents.streamspeech_s2st import StreamSpeechS2STAgent
from echostream.evaluation.grid.definition import check_files, load_grid
from echostream.evaluation.soak.soak_command import named_systems
from echostream.hub.fetch import fetch_released
from echostream.hub.names import cached_folder, resolve_model
from echostream.synthetic import synthetic_clip

ROOT = Path(__file__).resolve().parents[2]
NAME = "stand-in-fr-en"
RATE = 16000


@pytest.fixture
def fetched(model, store) -> str:
    fetch_released(model)
    return NAME


@pytest.fixture
def clip(tmp_path) -> Path:
    soundfile.write(tmp_path / "clip.wav", synthetic_clip(2.0, RATE, 0), RATE)
    return tmp_path / "clip.wav"


def test_translate(fetched, clip, tmp_path, capsys):
    by_name, by_folder = tmp_path / "name.wav", tmp_path / "folder.wav"
    for out, model in ((by_name, fetched), (by_folder, str(cached_folder(fetched)))):
        assert cli.main(["translate", str(clip), "--model-dir", model, "--out", str(out)]) == 0
    assert by_name.read_bytes() == by_folder.read_bytes()


def test_agents(fetched):
    for agent in (EchoStreamS2STAgent, StreamSpeechS2STAgent):
        parser = ArgumentParser()
        agent.add_args(parser)
        built = agent(parser.parse_args(["--model-dir", fetched]))
        assert built.pipeline.system.config.card.title == "Stand-in French to English"


def test_serve(fetched):
    pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
    from echostream.live.catalog import Catalog
    from echostream.live.client import LiveClient
    from tests.live.conftest import running

    catalog = Catalog.load([Path(fetched), Path("echo-mini")])
    assert list(catalog.models) == [NAME, f"{NAME}:recompute", "echo-mini"]
    told = catalog.models[NAME].describe()
    assert told["title"] == "Stand-in French to English"
    assert (told["source_language"], told["target_language"]) == ("fr", "en")
    assert told["licence"] == "weights: none stated" and told["recommended_chunk_ms"] == 320

    async def scenario(address):
        async with LiveClient(f"ws://{address}") as client:
            ready = await client.start(RATE, model=NAME)
            return ready, await client.translate(synthetic_clip(1.0, RATE, 0), RATE, speed=0)

    with running(catalog) as address:
        ready, heard = asyncio.run(asyncio.wait_for(scenario(address), 60))
    assert ready["model"] == NAME and heard.messages[-1]["type"] == "done"


def grid_file(folder: Path, clip: Path, model: str) -> Path:
    (folder / "source.txt").write_text(f"{clip}\n")
    (folder / "target.txt").write_text("a reference\n")
    grid = {
        "output": "out",
        "systems": [
            {
                "name": "named",
                "agent": str(ROOT / "agents" / "streamspeech_s2tt.py"),
                "files": [{"flag": "--model-dir", "path": model}],
                "options": [],
                "trace": False,
            }
        ],
        "chunk_ms": [640],
        "test_sets": [
            {"name": "one", "source": "source.txt", "target": "target.txt", "shard_size": None}
        ],
        "quality_metrics": ["BLEU"],
        "latency_metrics": ["AL"],
        "computation_aware": False,
        "target_speech_lang": "en",
        "asr_model": "pocketsphinx",
        "device": "cpu",
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    return folder / "grid.yaml"


def test_grid_says_how_to_fetch(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("ECHOSTREAM_MODELS", str(tmp_path / "models"))
    grid = load_grid(grid_file(tmp_path, clip, "streamspeech-fr-en"))
    with pytest.raises(FileNotFoundError, match="`echostream fetch streamspeech-fr-en`"):
        check_files(grid)


@pytest.mark.slow
def test_grid_scores(fetched, clip, tmp_path):
    path = grid_file(tmp_path, clip, fetched)
    assert cli.main(["evaluate", str(path)]) == 0
    scores = pandas.read_csv(
        tmp_path / "out" / "one" / "named" / "chunk_640" / "scores.tsv", sep="\t"
    )
    assert np.isfinite(scores["AL"].iloc[0]) and "BLEU" in scores


def test_bench_takes_names(fetched):
    from echostream.bench.systems import load_system

    assert load_system(f"{fetched}:bf16").config.card.source_language == "fr"


def test_soak_takes_names(fetched):
    systems = named_systems([fetched, "other=echo-mini"])
    assert systems == {NAME: resolve_model(fetched), "other": resolve_model("echo-mini")}


def test_the_provenance_of_a_fetched_model_is_shown(fetched, capsys):
    assert cli.main(["info", fetched]) == 0
    out = capsys.readouterr().out
    told = json.loads((cached_folder(fetched) / "provenance.json").read_text())
    for file in told["files"]:
        assert file["source"] in out and file["sha256"] in out
