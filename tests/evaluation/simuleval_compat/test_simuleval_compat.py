"""Each repair to SimulEval, by what it changes."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
import yaml

from echostream.evaluation import simuleval_compat
from echostream.evaluation.runs.logged_instances import read_instances, read_log_lines
from echostream.evaluation.simuleval_compat import quality, quality_metrics
from tests.evaluation.conftest import (
    ROOT,
    TEXT_AGENT,
    Corpus,
    build_corpus,
    run_command,
    run_in_process,
)

BLEU = ("--quality-metrics", "BLEU")


def scores(output: Path) -> dict[str, float]:
    return pandas.read_csv(output / "scores.tsv", sep="\t").iloc[0].to_dict()


def test_patches_are_applied_once_and_named() -> None:
    names = [patch.name for patch in simuleval_compat.PATCHES]
    assert len(names) == len(set(names))
    assert {"speech_elapsed", "plain_metrics", "typed_log"} <= set(names)
    assert set(simuleval_compat.apply()) <= set(names)
    assert simuleval_compat.apply() == []


def test_importing_agents_changes_nothing() -> None:
    code = (
        "from simuleval.evaluator.evaluator import SentenceLevelEvaluator as E\n"
        "before = dict(vars(E))\n"
        "import echostream.agents.echostream_s2st as agents\n"
        "from echostream.evaluation import simuleval_compat\n"
        "from echostream.evaluation.runs import run_latency\n"
        "assert dict(vars(E)) == before\n"
        "from argparse import ArgumentParser\n"
        "agents.EchoStreamS2STAgent.add_args(ArgumentParser())\n"
        "assert dict(vars(E)) != before and simuleval_compat.apply() == []\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_patch_stays_away_where_upstream_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = []
    patches = (
        simuleval_compat.Patch(lambda: applied.append("right"), lambda: False),
        simuleval_compat.Patch(lambda: applied.append("wrong"), lambda: True),
    )
    monkeypatch.setattr(simuleval_compat, "PATCHES", patches)
    simuleval_compat.apply()
    assert applied == ["wrong"]


def test_elapsed_is_kept_and_plain_metrics_differ_from_computation_aware(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    run_in_process(small_corpus.arguments(output, *BLEU), monkeypatch)
    lines = read_log_lines(output / "instances.log")
    # Read steps compute too: 10 + 20 ms before the first write of the first utterance.
    assert lines[0]["delays"][0] == 640.0
    assert lines[0]["elapsed"][0] == pytest.approx(640.0 + 30.0)
    result = scores(output)
    for name in ("AL", "LAAL", "AP", "DAL", "ATD", "StartOffset"):
        assert result[f"{name}_CA"] > result[name]
    for name in ("EndOffset", "RTF", "NumChunks", "DiscontinuitySum"):
        assert result[f"{name}_CA"] == result[name]


def test_an_utterance_without_output_has_length_zero_no_wav_and_no_latency(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    stale = output / "wavs" / "2_pred.wav"
    stale.parent.mkdir(parents=True)
    stale.write_bytes((small_corpus.sources[0]).read_bytes())
    run_in_process(small_corpus.arguments(output, *BLEU), monkeypatch)
    silent = read_log_lines(output / "instances.log")[2]
    assert str(silent["prediction_length"]) == "0.0"
    assert silent["delays"] == silent["elapsed"] == silent["intervals"] == []
    assert not stale.exists()
    table = pandas.read_csv(output / "utterances.tsv", sep="\t")
    assert table["AL"].isna().tolist() == [False, False, True]
    assert math.isfinite(scores(output)["AL_CA"])


def test_a_run_without_any_output_scores_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = build_corpus(tmp_path / "corpus", [[(5, 0), (5, 0)]] * 2, ["a", "b"])
    output = tmp_path / "out"
    run_in_process(corpus.arguments(output, *BLEU), monkeypatch)
    assert math.isnan(scores(output)["AL"]) and math.isnan(scores(output)["ATD_CA"])


def test_utterance_table_keeps_plain_and_computation_aware_apart(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    run_in_process(small_corpus.arguments(output, *BLEU), monkeypatch)
    table = pandas.read_csv(output / "utterances.tsv", sep="\t")
    fork_table = pandas.read_csv(output / "metrics.tsv", sep="\t")
    assert table["AL_CA"].equals(fork_table["AL"])
    result = scores(output)
    for name in ("AL", "AL_CA", "ATD", "ATD_CA", "DiscontinuitySum"):
        assert table[name].mean() == pytest.approx(result[name], abs=2e-3)


def test_resuming_after_a_torn_line_equals_an_uninterrupted_run(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_in_process(small_corpus.arguments(whole, *BLEU), monkeypatch)
    run_in_process(small_corpus.arguments(broken, *BLEU), monkeypatch)
    log = broken / "instances.log"
    lines = log.read_text().split("\n")
    log.write_text(lines[0] + "\n" + lines[1][:50])
    resume = (*BLEU, "--continue-unfinished")
    run_in_process(small_corpus.arguments(broken, *resume), monkeypatch)
    for name in ("scores.tsv", "metrics.tsv", "utterances.tsv"):
        assert (broken / name).read_text() == (whole / name).read_text()
    # Nothing left to do is not an error either: SimulEval then counted from the end.
    run_in_process(small_corpus.arguments(broken, *resume), monkeypatch)
    assert (broken / "scores.tsv").read_text() == (whole / "scores.tsv").read_text()


def test_the_log_is_written_utterance_by_utterance(tmp_path: Path) -> None:
    from simuleval.evaluator import evaluator

    with evaluator.open(tmp_path / "instances.log", "a") as file:
        file.write("{}\n")
        assert (tmp_path / "instances.log").read_text() == "{}\n"


def test_a_shard_is_scored_like_the_same_utterances_alone(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, shard = tmp_path / "whole", tmp_path / "shard"
    run_in_process(small_corpus.arguments(whole, *BLEU), monkeypatch)
    window = ("--start-index", "1", "--end-index", "2")
    run_in_process(small_corpus.arguments(shard, *BLEU, *window), monkeypatch)
    expected = pandas.read_csv(whole / "utterances.tsv", sep="\t").iloc[[1]].reset_index(drop=True)
    actual = pandas.read_csv(shard / "utterances.tsv", sep="\t")
    pandas.testing.assert_frame_equal(actual, expected, check_dtype=False)


def test_score_only_repeats_the_scores_and_writes_them(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    run_in_process(small_corpus.arguments(output, *BLEU), monkeypatch)
    expected = {name: (output / name).read_text() for name in ("scores.tsv", "metrics.tsv")}
    for name in expected:
        (output / name).unlink()
    # As a run of 1.1.4 leaves it: the source type twice, which is wrong for text output only.
    (output / "config.yaml").write_text("source_type: speech\ntarget_type: text\n")
    rest = small_corpus.arguments(output, *BLEU)[6:]
    run_in_process(["--score-only", *rest], monkeypatch)
    assert {name: (output / name).read_text() for name in expected} == expected
    types = yaml.safe_load((output / "config.yaml").read_text())
    assert types == {"source_type": "speech", "target_type": "speech"}


def test_user_dir_brings_the_repairs_where_no_agent_is_loaded(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    run_in_process(small_corpus.arguments(output, *BLEU), monkeypatch)
    expected = (output / "scores.tsv").read_text()
    (output / "scores.tsv").unlink()
    module = ROOT / "echostream" / "evaluation" / "simuleval_compat"
    rest = small_corpus.arguments(output, *BLEU)[6:]
    run_command(["--user-dir", str(module), "--score-only", *rest])
    assert (output / "scores.tsv").read_text() == expected


def test_text_output_names_its_type_and_joins_sentencepiece_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = build_corpus(tmp_path / "c", [[(0, 0)] * 3], ["word1 word2 end"], agent=TEXT_AGENT)
    latency = ["AL", "ATD", "RTF"]
    quality = ("--quality-metrics", "BLEU", "WER")
    plain, pieces = tmp_path / "plain", tmp_path / "pieces"
    run_in_process(corpus.arguments(plain, *quality, latency=latency), monkeypatch)
    run_in_process(corpus.arguments(pieces, *quality, "--pieces", latency=latency), monkeypatch)
    types = yaml.safe_load((plain / "config.yaml").read_text())
    assert types == {"source_type": "speech", "target_type": "text"}
    for output in (plain, pieces):
        line = read_log_lines(output / "instances.log")[0]
        assert line["prediction"] == "word1 word2 end"
        assert scores(output)["WER"] == 0.0
    assert len(read_log_lines(pieces / "instances.log")[0]["delays"]) == 6


def test_sources_are_loaded_one_at_a_time(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simuleval.data.dataloader.s2t_dataloader import SpeechToTextDataloader
    from simuleval.evaluator.evaluator import SentenceLevelEvaluator

    loaded = []
    read = SpeechToTextDataloader.preprocess_source
    monkeypatch.setattr(
        SpeechToTextDataloader,
        "preprocess_source",
        lambda self, source: loaded.append(source) or read(self, source),
    )
    before_run = []
    run = SentenceLevelEvaluator.__call__
    monkeypatch.setattr(
        SentenceLevelEvaluator,
        "__call__",
        lambda self, system: before_run.append(len(loaded)) or run(self, system),
    )
    run_in_process(small_corpus.arguments(tmp_path / "out", *BLEU), monkeypatch)
    assert before_run == [0]
    assert list(dict.fromkeys(loaded)) == [str(path) for path in small_corpus.sources]


def test_a_moved_run_finds_its_wavs(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in_process(small_corpus.arguments(tmp_path / "out", *BLEU), monkeypatch)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    first = read_instances(moved / "instances.log")[0]
    assert first.wav_path == moved / "wavs" / "0_pred.wav"
    assert first.wav_path.is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"index": 0}\n{"index"', "line 2: not a JSON object"),
        ('{"index": 0}\n{"index": 0}\n', "utterance 0 is there twice"),
        ("[]\n", "expected an object with 'index'"),
    ],
)
def test_a_damaged_log_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "instances.log").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_log_lines(tmp_path / "instances.log")
    with pytest.raises(FileNotFoundError, match="no SimulEval log"):
        read_log_lines(tmp_path / "other.log")


def test_log_lines_are_plain_json(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    run_in_process(small_corpus.arguments(output, *BLEU), monkeypatch)
    for line in (output / "instances.log").read_text().splitlines():
        assert {"delays", "elapsed", "durations", "intervals"} <= set(json.loads(line))


@pytest.mark.slow
def test_a_remote_agent_scores_like_a_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simuleval.utils.functional import find_free_port

    references = ["word1 word2 end", "word1 end"]
    corpus = build_corpus(tmp_path / "c", [[(0, 0)] * 3, [(0, 0)] * 2], references, TEXT_AGENT)
    local, remote = tmp_path / "local", tmp_path / "remote"
    metrics = ("--quality-metrics", "BLEU", "--latency-metrics", "AL", "LAAL")
    run_in_process(corpus.arguments(local, *metrics), monkeypatch)
    port = str(find_free_port())
    module = [sys.executable, "-m", "echostream.evaluation.grid.simuleval_main"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    serve = ["--standalone", "--remote-port", port, "--agent", str(corpus.agent)]
    server = subprocess.Popen([*module, *serve], env=environment, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("localhost", int(port))):
                break
            time.sleep(0.2)
        arguments = ["--remote-eval", "--remote-port", port, "--output", str(remote)]
        arguments += ["--source", str(corpus.source_list), "--target", str(corpus.target_list)]
        arguments += ["--source-type", "speech", "--target-type", "text"]
        arguments += ["--source-segment-size", "320", "--dataloader", "speech-to-text", *metrics]
        subprocess.run([*module, *arguments], env=environment, check=True)
    finally:
        server.kill()
        server.wait()
    for name in ("BLEU", "AL", "LAAL"):
        assert scores(remote)[name] == scores(local)[name]


@pytest.mark.parametrize("system", [["--system-dir", "folder"], ["--system-dir=folder"]])
def test_a_system_folder_takes_the_recogniser_off_the_command_line(
    system: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--asr-model", "whisper:base", "--asr-device=cpu", "--output", "out"]
    monkeypatch.setattr(sys, "argv", ["simuleval", *system, *arguments])
    hook = quality_metrics.agent_module.add_command_helper_arg
    monkeypatch.setattr(quality_metrics.agent_module, "add_command_helper_arg", hook)
    options = argparse.Namespace(asr_model="pocketsphinx", asr_device="auto")
    monkeypatch.setattr(quality, "_default_options", options)
    quality_metrics.patch_asr_options()
    assert sys.argv == ["simuleval", *system, "--output", "out"]
    assert (options.asr_model, options.asr_device) == ("whisper:base", "cpu")
