"""A stand-in of the released models' exact shapes: fetched, and run wherever models run."""

from __future__ import annotations

import shutil
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from simuleval.data.segments import SpeechSegment

from echostream import cli
from echostream.agents.echostream_asr import EchoStreamASRAgent
from echostream.agents.echostream_s2st import EchoStreamS2STAgent
from echostream.agents.echostream_s2tt import EchoStreamS2TTAgent
from echostream.agents.streamspeech_asr import StreamSpeechASRAgent
from echostream.agents.streamspeech_s2st import StreamSpeechS2STAgent
from echostream.agents.streamspeech_s2tt import StreamSpeechS2TTAgent
from echostream.checkpoint import System, load_model_dir
from echostream.synthetic import synthetic_clip
from tests.hub.measured import fetch_measured
from tests.hub.server import serving
from tests.hub.stand_in import as_released, build_release, full_streamspeech, publish

pytestmark = pytest.mark.slow
RATE = 16000
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The model directory, what fetching it took, and the checkpoint's size."""
    folder = tmp_path_factory.mktemp("full")
    release = build_release(full_streamspeech(), folder / "release")
    model = as_released(release, name="full-fr-en")
    with serving() as hub:
        publish(release, hub)
        found = fetch_measured(model, hub, folder / "models", folder / "hub")
    size = release.checkpoint.stat().st_size
    for large in (folder / "release", folder / "hub"):
        shutil.rmtree(large)
    return folder / "models" / model.name, found, size


@pytest.fixture(scope="module")
def model_dir(measured) -> Path:
    return measured[0]


@pytest.fixture(scope="module")
def system(model_dir) -> System:
    """It, loaded once."""
    return load_model_dir(model_dir)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    soundfile.write(path, synthetic_clip(1.0, RATE, 0), RATE)
    return path


def test_it_has_the_released_size_and_needs_little_memory(measured, system):
    _, found, size = measured
    parameters = sum(p.numel() for p in system.model.parameters())
    assert 0.95 * 862e6 < size < 1.05 * 862e6  # the released file's
    assert 83e6 < parameters < 86e6  # 70.6 M, and 13.5 M of the vocoder
    assert (found.peak_mib - found.idle_mib) * 2**20 < 1.5 * 4 * parameters


@pytest.mark.parametrize(
    ("agent", "flags"),
    [
        (StreamSpeechS2STAgent, []),
        (StreamSpeechS2STAgent, ["--recompute"]),
        (StreamSpeechS2TTAgent, []),
        (StreamSpeechASRAgent, []),
        (EchoStreamS2STAgent, []),
        (EchoStreamS2TTAgent, []),
        (EchoStreamASRAgent, []),
    ],
)
def test_it_runs_in_every_agent(model_dir, system, agent, flags, monkeypatch):
    monkeypatch.setattr("echostream.agents.base.load_model_dir", lambda *path, **options: system)
    parser = ArgumentParser()
    agent.add_args(parser)
    # Random weights would write to the longest length, which recomputing has of its own.
    bound = [] if flags else ["--max-len", "8"]
    flags = ["--chunk-ms", "480", *bound, *flags]
    built = agent(parser.parse_args(["--model-dir", str(model_dir), *flags]))
    samples = synthetic_clip(0.96, RATE, 0)
    outputs = [
        built.pushpop(SpeechSegment(content=part.tolist(), sample_rate=RATE, finished=bool(last)))
        for last, part in enumerate(np.split(samples, 2))
    ]
    assert outputs[-1].finished


def test_it_translates(model_dir, clip, tmp_path, capsys):
    out = tmp_path / "out.wav"
    assert cli.main(["translate", str(clip), "--model-dir", str(model_dir), "--out", str(out)]) == 0
    assert out.is_file() and "of speech from 1.00 s of source" in capsys.readouterr().out


def test_it_is_timed(model_dir, capsys):
    command = ["bench", str(model_dir), "--seconds", "2", "--repeats", "1", "--chunk-ms", "640"]
    assert cli.main(command) == 0
    assert "compute RTF" in capsys.readouterr().out


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_it_runs_on_the_page(model_dir, clip):
    sync_api = pytest.importorskip("playwright.sync_api", reason="no extra 'browser'")
    from echostream.live.catalog import Catalog
    from tests.live.conftest import running

    with (
        running(Catalog.load([model_dir])) as address,
        sync_api.sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        page = browser.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://{address}/")

        def until(condition: str) -> None:
            for _ in range(2400):
                if page.evaluate(condition):
                    return
                page.wait_for_timeout(100)
            pytest.fail(f"{condition}: the page says {page.inner_text('#state')!r}")

        until("document.querySelector('#model').options.length > 0")
        assert page.locator("#model option").all_inner_texts() == [
            "Stand-in French to English",
            "Stand-in French to English, recomputing",
        ]
        assert "Speak French; hear and read English" in page.inner_text("#about")
        assert "weights: none stated" in page.inner_text("#licence")
        page.check("input[value=file]")
        page.set_input_files("#file", str(clip))
        page.click("#start")
        until("document.querySelector('#state').textContent === 'Done'")
        assert not complaints
        browser.close()
