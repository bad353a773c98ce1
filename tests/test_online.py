"""The released French model itself, where there is a connection; asked for with
``ECHOSTREAM_ONLINE=1``.

StreamSpeech's README prints what its agent says and scores on its two example clips. The clips, the
references and the model are fetched, and our agent, recomputing as published, must give that log.
ASR-BLEU needs StreamSpeech's recogniser: ``ECHOSTREAM_ASR_MODEL=wav2vec2:wav2vec_vox_960h_pl.pt``.
Fetching accepts the licences of the model: weights without one, vocoder CC-BY-NC-4.0.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import torch

from echostream.hub.fetch import FetchOptions, fetch_released
from echostream.hub.file_checks import Expected, check_file
from echostream.hub.remote import HubStore, download_web
from echostream.hub.table import CONFIG_COMMIT, CONFIG_REPO, KNOWN, VOCODER, WebFile

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("ECHOSTREAM_ONLINE") != "1", reason="set ECHOSTREAM_ONLINE=1 to download"
    ),
]
ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = {
    "wavs/common_voice_fr_17767732.mp3": (
        "bc28897d9173963fa4e0ebf7a98b3edfdb808fb0501d9b3de7e827471a2dec89"
    ),
    "wavs/common_voice_fr_17301936.mp3": (
        "5c694c7b965c3ab01c8d32f2bb18038221fe3ffe16e6933843c153ef4f6d4f7f"
    ),
    "target.txt": "421ccecd18f8cfcb79bb40815283dc2a569e947aac14e27d0de8fda42439c97b",
}
# StreamSpeech's README, "Simultaneous Speech-to-Speech Translation", chunks of 320 ms.
SAID = (
    "i would like to submit this idea to the reflection of the national assembly",
    "i therefore have an experience of last years i will tell a word later",
)
SCORES = {
    "AL": 1724.895,
    "StartOffset": 1280.0,
    "EndOffset": 1366.0,
    "ATD": 1440.146,
    "NumChunks": 9.5,
}
ASR_BLEU = 15.448


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """The released model in float32, as it was published."""
    options = FetchOptions(keep=True, dtype=torch.float32, cache=tmp_path_factory.mktemp("models"))
    return fetch_released(KNOWN["streamspeech-fr-en"], options)


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    for name, sha256 in EXAMPLE.items():
        file = WebFile("github", f"{CONFIG_REPO}/{CONFIG_COMMIT}/example/{name}")
        download_web(file, folder / name, most_bytes=1 << 20)
        check_file(folder / name, Expected(sha256=sha256, told_by="this test"))
    names = [name for name in EXAMPLE if name.startswith("wavs/")]
    (folder / "source.txt").write_text("".join(f"{folder / name}\n" for name in names))
    return folder


@pytest.fixture(scope="module")
def output(model_dir, example, tmp_path_factory) -> Path:
    """Both clips through our agent, as SimulEval runs it."""
    out = tmp_path_factory.mktemp("run")
    recogniser = os.environ.get("ECHOSTREAM_ASR_MODEL")
    quality = ["--quality-metrics", "ASR_BLEU", "--asr-model", recogniser] if recogniser else []
    subprocess.run(
        [
            *(sys.executable, "-m", "simuleval.cli"),
            *("--agent", ROOT / "agents" / "streamspeech_s2st.py", "--recompute"),
            *("--model-dir", model_dir, "--output", out, "--trace", out / "trace.jsonl"),
            *("--source", example / "source.txt", "--target", example / "target.txt"),
            *("--source-segment-size", "320", *quality),
            *("--latency-metrics", *SCORES),
        ],
        check=True,
    )
    return out


def test_the_model_says_what_the_readme_shows(output):
    traced = pandas.read_json(output / "trace.jsonl", lines=True)
    last = traced.groupby("index").last()
    assert tuple(last["translation"]) == SAID


def test_the_scores_are_the_readmes(output):
    scores = pandas.read_csv(output / "scores.tsv", sep="\t").iloc[0]
    found = {name: float(scores[name]) for name in SCORES}
    assert found == pytest.approx(SCORES, abs=0.01)
    if os.environ.get("ECHOSTREAM_ASR_MODEL"):
        assert float(scores["ASR_BLEU"]) == pytest.approx(ASR_BLEU, abs=0.01)


def test_half_the_bytes_say_the_same(model_dir, example, tmp_path):
    """Weights stored in float16, as `echostream fetch` does by default."""
    from echostream.checkpoint import load_model_dir, save_model_dir
    from echostream.live.translate_files import translate_file
    from echostream.streamspeech.recompute import RecomputePipeline

    save_model_dir(tmp_path / "half", load_model_dir(model_dir), dtype=torch.float16)
    pipeline = RecomputePipeline(load_model_dir(tmp_path / "half"), chunk_ms=320)
    for name, said in zip(EXAMPLE, SAID, strict=False):
        *_, last = translate_file(pipeline, example / name, tmp_path / "out.wav")
        assert pipeline.system.target_vocabulary.decode(last.mt_tokens) == said


def test_both_places_of_the_vocoder_hold_the_same_bytes(tmp_path):
    store = HubStore.from_environment()
    for source in VOCODER.sources:
        if isinstance(source, WebFile):
            path = tmp_path / source.name
            download_web(source, path, most_bytes=VOCODER.size)
        else:
            path = store.download(source)
        check_file(path, Expected(VOCODER.size, VOCODER.sha256, None, "EchoStream's table"))
