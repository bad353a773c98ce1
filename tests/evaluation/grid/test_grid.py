"""Grids: the strict loader, and runs that are killed, sharded and spread over workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from echostream.cli import main
from echostream.evaluation.grid import runner as grid_runner
from echostream.evaluation.grid.definition import (
    Cell,
    FileOption,
    Grid,
    cells,
    change_settings,
    load_grid,
    source_paths,
)
from echostream.evaluation.grid.runner import is_finished, run_grid
from echostream.evaluation.grid.shards import CellError, shards
from echostream.evaluation.recognizers.recognizer import split_spec
from tests.evaluation.conftest import ROOT, Corpus, build_corpus
from tests.evaluation.grid.grids import grid_content, write_grid

SCRIPTS = [
    [(10, 0), (20, 8000), (5, 1600)],
    [(40, 1600), (90, 0), (5, 0), (250, 16000), (40, 0), (5, 320), (90, 0), (40, 4800)],
    [(10, 0), (20, 0), (30, 320), (700, 0), (5, 900)],
    [(1, 4000), (1, 4000), (1, 4000), (1, 4000)],
]
REFERENCES = ["one two three", "a b c d e f g h", "nothing at all", "four words are here"]
TABLES = ("table.md", "table.tex", "table.csv", "table.json")

COMMAND = """
import argparse, sys
from echostream.evaluation.grid_commands import add_compare_parser, add_evaluate_parser
parser = argparse.ArgumentParser()
commands = parser.add_subparsers(required=True)
add_evaluate_parser(commands)
add_compare_parser(commands)
args = parser.parse_args()
sys.exit(args.func(args))
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", COMMAND, *arguments]


def environment() -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return build_corpus(tmp_path / "corpus", SCRIPTS, REFERENCES)


def results(folder: Path) -> dict[str, str]:
    """Scores of every cell."""
    found = sorted(folder.rglob("scores.tsv")) + sorted(folder.rglob("utterances.tsv"))
    return {str(path.relative_to(folder)): path.read_text() for path in found}


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "demo" / name).read_bytes() for name in TABLES}


def test_paths_are_relative_to_the_grid_file(corpus: Corpus, tmp_path: Path) -> None:
    grid = load_grid(write_grid(corpus))
    assert grid.output == str(corpus.folder / "results")
    assert grid.systems[0].agent == str(corpus.agent)
    assert grid.test_sets[0].source == str(corpus.source_list)
    assert load_grid(write_grid(corpus), tmp_path / "else").output == str(tmp_path / "else")
    names = [cell.name for cell in cells(grid)]
    assert len(names) == 6 and names[0] == "demo/fast/chunk_320"


def test_settings_of_a_system_become_flags_of_its_agent(corpus: Corpus) -> None:
    content = grid_content(corpus)
    plain = load_grid(write_grid(corpus))
    fingerprint = next(cells(plain)).settings()["fingerprint"]
    settings = {"policy": "wait_k", "policy.stride_n": 2, "endpoint": False}
    content["systems"][0]["settings"] = settings
    grid = load_grid(write_grid(corpus, systems=content["systems"]))
    cell = next(cells(grid))
    assert cell.settings()["fingerprint"] != fingerprint
    (shard,) = shards(cell, threads=2)
    flags = {"--policy": "wait_k", "--stride-n": "2", "--endpoint": "off", "--threads": "2"}
    given = [part for part in shard.arguments if part != "--computation-aware"][-8:]
    assert dict(zip(given[::2], given[1::2], strict=True)) == flags
    # From the command line for all systems, which says the same as the file would.
    changed = change_settings(plain, {"policy.stride_n": 2})
    assert all(system.settings == {"policy.stride_n": "2"} for system in changed.systems)
    content["systems"][0]["settings"] = {"stride_n": 2}
    written = load_grid(write_grid(corpus, systems=content["systems"]))
    assert next(cells(written)).settings() == next(cells(changed)).settings()
    assert next(cells(change_settings(plain, {}))).settings()["fingerprint"] == fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {
                "systems": [
                    {
                        "name": "a",
                        "agent": "a",
                        "files": [],
                        "options": [],
                        "trace": False,
                        "settings": {"stride_n": 0},
                    }
                ]
            },
            "systems: a: settings: policy.stride_n must be an integer >= 1, got '0'",
        ),
        ({"chunk_ms": [320, 320]}, "chunk_ms must be positive and differ"),
        ({"chunk_ms": []}, "chunk_ms must not be empty"),
        ({"chunks": [1]}, "unknown key 'chunks'"),
        ({"computation_aware": "yes"}, "computation_aware: expected bool, got 'yes'"),
        ({"device": None}, "device: expected str"),
        (
            {"test_sets": [{"name": "a/b", "source": "s", "target": "t", "shard_size": None}]},
            "name must be letters",
        ),
        (
            {"test_sets": [{"name": "a", "source": "s", "target": "t", "shard_size": 0}]},
            "shard_size must be positive or null",
        ),
    ],
)
def test_mistakes_in_a_grid_are_named(
    corpus: Corpus, change: dict[str, object], message: str
) -> None:
    path = write_grid(corpus, **change)
    with pytest.raises(ValueError, match=message) as error:
        load_grid(path)
    assert "grid.yaml" in str(error.value)


def test_a_missing_key_is_named(corpus: Corpus) -> None:
    content = grid_content(corpus)
    del content["device"]
    path = corpus.folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="missing key 'device'"):
        load_grid(path)


def test_missing_files_are_found_before_anything_runs(corpus: Corpus) -> None:
    grid = load_grid(write_grid(corpus))
    corpus.target_list.write_text("one\n")
    with pytest.raises(ValueError, match="4 sources but 1 references"):
        run_grid(grid)
    corpus.agent.unlink()
    with pytest.raises(FileNotFoundError, match="system fast: no agent file"):
        run_grid(grid)
    assert not Path(grid.output).exists()


def test_relative_sources_are_relative_to_their_list(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.source_list.write_text("".join(f"{path.name}\n" for path in corpus.sources))
    one = {"systems": grid_content(corpus)["systems"][:1], "chunk_ms": [960]}
    grid = load_grid(write_grid(corpus, **one), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    expected = [str(path) for path in corpus.sources]
    assert source_paths(grid.test_sets[0]) == expected
    below = "".join(f"{corpus.folder.name}/{path.name}\n" for path in corpus.sources)
    corpus.source_list.write_text(below)
    assert source_paths(grid.test_sets[0]) == expected
    (cell,) = run_grid(grid)
    assert len((cell.folder / "instances.log").read_text().splitlines()) == 4
    corpus.sources[2].unlink()
    with pytest.raises(FileNotFoundError, match="line 3 names .*source2.wav"):
        run_grid(grid)


def test_the_recognisers_path_is_relative_to_the_grid_file(corpus: Corpus) -> None:
    for given, expected in (
        ("wav2vec2:models/w2v.pt", f"wav2vec2:{corpus.folder}/models/w2v.pt"),
        ("hf:./fr", f"hf:{corpus.folder}/fr"),
        ("hf:owner/name", "hf:owner/name"),
        ("pocketsphinx", "pocketsphinx"),
    ):
        assert load_grid(write_grid(corpus, asr_model=given)).asr_model == expected


GRIDS = sorted((ROOT / "eval_configs" / "grids").glob("*.yaml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.name)
def test_shipped_grids_load(path: Path) -> None:
    grid = load_grid(path)
    assert list(cells(grid))
    text = path.read_text()
    assert not [line for line in text.splitlines() if ": /" in line], "machine path"
    for system in grid.systems:
        assert Path(system.agent).is_file()
    split_spec(grid.asr_model)


def test_grids_are_shipped() -> None:
    assert {"echo-mini.yaml", "echo-mini-talks.yaml", "side-by-side-fr-en.yaml"} <= {
        path.name for path in GRIDS
    }
    assert {f"streamspeech-cvss-c-{x}-en.yaml" for x in ("fr", "es", "de")} <= {
        path.name for path in GRIDS
    }


def test_shards_cover_the_test_set_once(corpus: Corpus) -> None:
    test_set = {"name": "demo", "source": "source.txt", "target": "target.txt", "shard_size": 3}
    cell = next(cells(load_grid(write_grid(corpus, test_sets=[test_set]))))
    assert [(shard.start, shard.end) for shard in shards(cell)] == [(0, 3), (3, 4)]


def small(grid_path: Path, output: Path) -> Grid:
    return load_grid(grid_path, output)


def test_a_finished_cell_is_kept_and_sharding_changes_nothing(
    corpus: Corpus, tmp_path: Path
) -> None:
    one = {"systems": grid_content(corpus)["systems"][:1], "chunk_ms": [320]}
    whole = small(write_grid(corpus, **one), tmp_path / "whole")
    test_set = {"name": "demo", "source": "source.txt", "target": "target.txt", "shard_size": 3}
    sharded = small(write_grid(corpus, test_sets=[test_set], **one), tmp_path / "sharded")
    (cell,) = run_grid(whole)
    run_grid(sharded, jobs=2)
    assert results(tmp_path / "whole") == results(tmp_path / "sharded")
    for name in ("trace.jsonl", "metrics.tsv"):
        parts = [Path(grid.output) / "demo/fast/chunk_320" / name for grid in (whole, sharded)]
        assert parts[0].read_text() == parts[1].read_text()
    entries = [json.loads(line) for line in (cell.folder / "trace.jsonl").open()]
    assert sorted({entry["index"] for entry in entries}) == [0, 1, 2, 3]

    log = cell.folder / "instances.log"
    before = log.stat().st_mtime_ns
    assert is_finished(cell)
    left = cell.folder / "shards" / "000000"
    left.mkdir(parents=True)  # as by a run that was killed right after it marked the cell
    run_grid(whole)
    assert log.stat().st_mtime_ns == before and not left.parent.exists()

    corpus.target_list.write_text("\n".join(reversed(REFERENCES)) + "\n")
    with pytest.raises(ValueError, match="made with other settings"):
        run_grid(whole)


def test_results_of_other_weights_are_not_taken_for_these(corpus: Corpus, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.yaml").write_text("a")
    weights = model / "model.safetensors"
    weights.write_bytes(b"one")
    grid = load_grid(write_grid(corpus))
    system = replace(grid.systems[0], files=(FileOption("--model-dir", str(model)),))
    cell = next(cells(replace(grid, systems=(system,))))
    first = cell.settings()["fingerprint"]
    assert cell.settings()["fingerprint"] == first
    weights.write_bytes(b"two")
    os.utime(weights, ns=(1, 1))
    second = cell.settings()["fingerprint"]
    assert second != first
    (model / "config.yaml").write_text("b")
    assert cell.settings()["fingerprint"] not in (first, second)


def test_cells_are_scored_side_by_side(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recognising speech takes longer than translating it: ``--jobs`` must hold for both."""
    both = threading.Barrier(2, timeout=300)
    scored = []

    def score(cell: Cell) -> None:
        both.wait()
        scored.append(cell.name)

    monkeypatch.setattr(grid_runner, "run_shard", lambda shard: shard.name)
    monkeypatch.setattr(grid_runner, "finish_cell", score)
    grid = small(write_grid(corpus, chunk_ms=[320, 640]), tmp_path / "out")
    every = run_grid(grid, jobs=2)
    assert sorted(scored) == sorted(cell.name for cell in every) and len(every) == 4


def test_a_failing_agent_is_reported_with_what_it_said(corpus: Corpus, tmp_path: Path) -> None:
    systems = [{**grid_content(corpus)["systems"][0], "options": ["--wait", "never"]}]
    grid = small(write_grid(corpus, systems=systems, chunk_ms=[320]), tmp_path / "out")
    with pytest.raises(CellError, match="(?s)demo/fast/chunk_320.*invalid float value: 'never'"):
        run_grid(grid)


HEADER = "talk\tindex\tutterance\tstart_ms\tend_ms\tsrc_text\ttgt_text"


def with_talks(corpus: Corpus) -> dict[str, object]:
    """The corpus' four sources as four talks of two sentences, and as four single sentences."""
    rows = {"talks.tsv": [HEADER], "single.tsv": [HEADER]}
    for source, reference in zip(corpus.sources, REFERENCES, strict=True):
        words = reference.split()
        for number, part in enumerate((words[:2], words[2:])):
            times = f"{100 * number}\t{100 * number + 90}"
            rows["talks.tsv"].append(f"{source.stem}\t1\tu\t{times}\tx\t{' '.join(part)}")
        rows["single.tsv"].append(f"{source.stem}\t1\tu\t0\t190\tx\t{reference}")
    for name, lines in rows.items():
        (corpus.folder / name).write_text("\n".join(lines) + "\n")
    common = {"source": "source.txt", "target": "target.txt", "shard_size": None}
    return {
        "systems": grid_content(corpus)["systems"][:1],
        "chunk_ms": [320],
        "test_sets": [
            {"name": "demo", **common},
            {"name": "talks", **common, "longform": {"sentences": "talks.tsv", "alone": None}},
            {"name": "single", **common, "longform": {"sentences": "single.tsv", "alone": None}},
        ],
    }


def test_talks_of_a_grid_have_a_table_of_their_own(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("omnisteval")
    changes = with_talks(corpus)
    changes["test_sets"].pop()
    plain = {**changes, "test_sets": changes["test_sets"][:1]}
    before = {c.settings()["fingerprint"] for c in cells(load_grid(write_grid(corpus, **plain)))}
    path = write_grid(corpus, **changes)
    assert before == {
        c.settings()["fingerprint"] for c in cells(load_grid(path)) if c.test_set.name == "demo"
    }, "sets without talks are what they were"
    out = tmp_path / "out"
    assert main(["evaluate", str(path), "--output", str(out), "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "# talks\n\n| | fast 320 ms |" in printed and "| sentences | 8 |" in printed
    folder = out / "talks"
    assert {path.name for path in folder.glob("talk*")} == {"talk.png", "talks.json", "talks.md"}
    assert not (folder / "table.md").exists() and not list(folder.rglob("scores.tsv"))
    assert (out / "demo" / "table.md").is_file()
    run, other = (str(out / name / "fast" / "chunk_320") for name in ("talks", "demo"))
    compare = ["compare", "--output", str(tmp_path / "compared"), f"one={run}"]
    assert main([*compare, f"two={run}"]) == 0
    assert "| | one 320 ms | two 320 ms |" in capsys.readouterr().out
    compared = json.loads((tmp_path / "compared" / "talks.json").read_text())
    [figures] = json.loads((folder / "talks.json").read_text()).values()
    assert list(compared.values()) == [figures, figures]
    assert main([*compare, other]) == 2
    assert "has no sentences.tsv" in capsys.readouterr().err
    assert main([*compare, "--timeline", "1"]) == 2
    assert "--timeline is not for talks" in capsys.readouterr().err
    assert main([*compare, f"two={run}", "--bootstrap", "9"]) == 0
    assert "Paired bootstrap on text BLEU" in capsys.readouterr().out


def test_sentences_one_at_a_time_are_found_beside_the_talks(corpus: Corpus) -> None:
    changes = with_talks(corpus)
    changes["test_sets"][1]["longform"]["alone"] = "single"
    grid = load_grid(write_grid(corpus, **changes, quality_metrics=["ASR_BLEU"]))
    by_name = {cell.name: cell for cell in cells(grid)}
    cell, alone = by_name["talks/fast/chunk_320"], by_name["single/fast/chunk_320"]
    noted = cell.settings()["longform"]
    assert (cell.folder / noted["alone"]).resolve() == alone.folder.resolve()
    assert noted["asr_model"] == "pocketsphinx" and alone.longform()["alone"] is None
    before = cell.settings()["fingerprint"]
    path = corpus.folder / "talks.tsv"
    path.write_text(path.read_text().replace("two", "too"))
    assert cell.settings()["fingerprint"] != before
    path.unlink()
    with pytest.raises(FileNotFoundError, match="test set talks: no list of sentences"):
        run_grid(grid)


def test_mistakes_about_talks_are_named(corpus: Corpus) -> None:
    changes = with_talks(corpus)
    for alone in ("demo", "talks", "nothing"):
        changes["test_sets"][1]["longform"]["alone"] = alone
        with pytest.raises(ValueError, match=f"talks: alone must name another.*got '{alone}'"):
            load_grid(write_grid(corpus, **changes))
    changes["test_sets"][1]["longform"] = {"sentences": "talks.tsv"}
    with pytest.raises(ValueError, match="missing key 'alone'"):
        load_grid(write_grid(corpus, **changes))
    changes = with_talks(corpus)
    system = {**grid_content(corpus)["systems"][0], "trace": False}
    with pytest.raises(ValueError, match="trace must be true for all"):
        load_grid(write_grid(corpus, **{**changes, "systems": [system]}))


@pytest.mark.slow
def test_a_killed_grid_ends_with_the_same_tables(corpus: Corpus, tmp_path: Path) -> None:
    path = write_grid(corpus, chunk_ms=[320, 640])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = ("evaluate", str(path), "--jobs", "2", "--output")
    subprocess.run(command(*arguments, str(whole)), env=environment(), check=True)

    process = subprocess.Popen(command(*arguments, str(killed)), env=environment())
    deadline = time.monotonic() + 300
    # In the middle: some utterance of the second pair of cells is done, and not all cells are.
    while len(list(killed.rglob("scores.tsv"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list(killed.rglob("scores.tsv")))
    assert 2 <= finished < 4
    subprocess.run(command(*arguments, str(killed)), env=environment(), check=True)
    assert results(killed) == results(whole) and len(results(whole)) == 8
    assert tables(killed) == tables(whole)
    assert not list(killed.rglob("shards"))
