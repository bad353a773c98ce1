"""The plain ``simuleval`` command with EchoStream's own agents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile

from echostream.checkpoint import save_model_dir
from echostream.evaluation.runs.logged_instances import read_log_lines
from echostream.synthetic import random_system
from tests.evaluation.conftest import ROOT, S2S_METRICS, run_command


@pytest.mark.slow
@pytest.mark.parametrize("way", ["agent", "system_dir", "system_dir="])
def test_speech_to_speech_on_real_speech(way: str, tmp_path: Path, clip_48k) -> None:
    pytest.importorskip("pocketsphinx")
    save_model_dir(tmp_path / "system" / "model", random_system())
    samples, rate = clip_48k
    halves = [tmp_path / "first.wav", tmp_path / "second.wav"]
    for path, half in zip(halves, np.array_split(samples, 2), strict=True):
        soundfile.write(path, half, rate)
    (tmp_path / "source.txt").write_text("".join(f"{path}\n" for path in halves))
    (tmp_path / "target.txt").write_text("the first reference\nthe second one\n")
    output = tmp_path / "output"
    if way == "agent":
        system = ["--agent", str(ROOT / "agents" / "echostream_s2st.py")]
        system += ["--model-dir", str(tmp_path / "system" / "model")]
    else:
        shipped = ROOT / "eval_configs" / "s2st" / "main.yaml"
        (tmp_path / "system" / "main.yaml").write_text(shipped.read_text())
        system = ["--system-dir", str(tmp_path / "system")]
        system = ["=".join(system)] if way.endswith("=") else system
    run_command(
        [
            *system,
            *("--source", str(tmp_path / "source.txt"), "--target", str(tmp_path / "target.txt")),
            *("--output", str(output), "--source-segment-size", "640", "--computation-aware"),
            *("--quality-metrics", "ASR_BLEU", "--asr-model", "pocketsphinx"),
            *("--latency-metrics", *S2S_METRICS),
        ]
    )
    scores = pandas.read_csv(output / "scores.tsv", sep="\t").iloc[0]
    assert scores["ASR_MODEL"] == "pocketsphinx" and "ASR_BLEU_NOSIL" in scores
    assert scores["AL_CA"] > scores["AL"] and scores["ATD_CA"] > scores["ATD"]
    assert len(pandas.read_csv(output / "metrics.tsv", sep="\t")) == 2
    for line in read_log_lines(output / "instances.log"):
        assert len(line["elapsed"]) == len(line["delays"]) > 0
        assert all(e > d for e, d in zip(line["elapsed"], line["delays"], strict=True))
    assert len((output / "asr_transcripts.txt").read_text().splitlines()) == 2
    assert json.loads((output / "asr_transcripts.json").read_text())["indices"] == [0, 1]
