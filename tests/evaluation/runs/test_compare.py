"""Comparison of finished runs: latency beyond SimulEval's, tables, pictures, significance."""

from __future__ import annotations

import argparse
import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from echostream.evaluation.figures.curves import plot_curves, representatives
from echostream.evaluation.figures.timeline import plot_timeline, words_from_trace
from echostream.evaluation.grid_commands import add_compare_parser, add_evaluate_parser
from echostream.evaluation.runs import comparison, run_latency, tables, yaal
from echostream.evaluation.runs.run_folder import (
    check_same_utterances,
    keep_common,
    keep_listed,
    load_run,
)
from tests.evaluation.runs.written import REFERENCES, write_speech_run

RATE = 16000


def write_text_run(folder: Path, words_at: list[list[tuple[str, float]]]) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for index, words in enumerate(words_at):
        delays = [time for _, time in words]
        lines.append(
            {
                "index": index,
                "prediction": " ".join(word for word, _ in words),
                "delays": delays,
                "elapsed": [d + 50.0 * (i + 1) for i, d in enumerate(delays)],
                "source_length": 4000.0,
                "reference": REFERENCES[index],
                "source": [f"/data/talk{index}.wav", "rate"],
            }
        )
    (folder / "instances.log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run_cli(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    add_compare_parser(commands)
    add_evaluate_parser(commands)
    args = parser.parse_args(list(arguments))
    return args.func(args)


def recognize_always(text: str, name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put a recogniser that hears ``text`` in everything; returns the specifications loaded."""
    from echostream.evaluation.runs import transcripts

    recognizer = SimpleNamespace(name=name, sample_rate=RATE, transcribe=lambda samples: text)
    loaded: list[str] = []

    def load_recognizer(spec: str, **options: str) -> SimpleNamespace:
        loaded.append(spec)
        return recognizer

    monkeypatch.setattr(transcripts, "load_recognizer", load_recognizer)
    return loaded


# --- latency ---------------------------------------------------------------------------------


def test_overlapped_emissions_follow_a_queue() -> None:
    """Against a slow, separate simulation in steps of 1 ms."""
    generator = np.random.default_rng(4)
    for _ in range(20):
        count = int(generator.integers(1, 8))
        delays = np.cumsum(generator.integers(0, 900, count)).astype(float)
        compute = generator.integers(0, 1500, count).astype(float)
        elapsed = (delays + np.cumsum(compute)).tolist()
        clock, expected = 0, []
        for delay, work in zip(delays, compute, strict=True):
            while clock < delay:
                clock += 1
            for _ in range(int(work)):
                clock += 1
            expected.append(float(clock))
        assert run_latency.overlapped_emissions(delays.tolist(), elapsed) == expected
        assert all(a <= b + 1e-9 for a, b in zip(expected, elapsed, strict=True))


def test_a_system_that_keeps_up_does_not_fall_behind() -> None:
    delays = [320.0 * (i + 1) for i in range(50)]
    elapsed = [delay + 100.0 * (i + 1) for i, delay in enumerate(delays)]
    out = run_latency.overlapped_emissions(delays, elapsed)
    assert elapsed[-1] - delays[-1] == 5000.0
    assert [o - d for o, d in zip(out, delays, strict=True)] == pytest.approx([100.0] * 50)


def test_backlog_is_what_is_written_and_not_played() -> None:
    points = run_latency.backlog([1000.0, 1500.0, 4000.0], [2000.0, 1000.0, 300.0])
    assert [point.queued_ms for point in points] == [2000.0, 2500.0, 300.0]


def test_latency_scores_of_a_speech_run(tmp_path: Path) -> None:
    run = load_run(write_speech_run(tmp_path / "chunk_320"))
    scores = run_latency.latency_scores(run)
    assert scores["StartOffset"] == 960.0 and scores["StartOffset_CA"] == 1060.0
    assert scores["StartOffset_CA_FIXED"] == 1060.0
    assert scores["AL"] < scores["AL_CA_FIXED"] < scores["AL_CA"]
    assert scores["ComputeRTF"] == pytest.approx(300.0 / 4000.0)
    assert scores["EndOffset"] == 3420.0 + 700.0 - 4000.0
    # The pieces: 960-1460, 1920-3420, then 2880 must wait until 3420.
    assert scores["Backlog"] == scores["BacklogMax"] == 1500.0
    assert run.system == tmp_path.name and run.chunk_ms == 320


def test_a_log_without_elapsed_falls_back_to_the_reported_scores(tmp_path: Path) -> None:
    folder = write_speech_run(tmp_path / "chunk_size=960", elapsed=False)
    (folder / "scores.tsv").write_text("ASR_BLEU\tAL\tAL_CA\n15.4\t1724.9\t2913.5\n")
    run = load_run(folder)
    scores = run_latency.latency_scores(run)
    assert run.chunk_ms == 960 and not run.has_elapsed
    assert scores["AL_CA"] == 2913.5 and np.isnan(scores["ATD_CA"])
    assert np.isnan(scores["ComputeRTF"])
    (result,) = comparison.compare_runs([run])
    assert any("no elapsed times" in note for note in result.notes)


def test_words_are_spread_over_played_speech() -> None:
    ends = yaal.spread_words(4, [1000.0, 3000.0], [1000.0, 3000.0])
    assert ends == [(0, 2000.0), (1, 4000.0), (1, 5000.0), (1, 6000.0)]
    assert yaal.spread_words(0, [1.0], [1.0]) == []


def test_yaal_is_omnistevals(tmp_path: Path) -> None:
    omnisteval = pytest.importorskip("omnisteval")
    words = [
        [("one", 500.0), ("two", 1500.0), ("four", 4000.0)],
        [("the", 900.0), ("cat", 1000.0), ("sat", 2000.0), ("mat", 3000.0)],
        [("she", 4000.0)],
    ]
    run = load_run(write_text_run(tmp_path / "run", words))
    scores = yaal.yaal_scores(run)
    # By hand for the first: gamma = 4 words / 4000 ms, the word at the end does not count.
    by_hand = [(500.0 + (1500.0 - 1000.0)) / 2]
    gamma = 6 / 4000
    by_hand.append(sum(t - i / gamma for i, (_, t) in enumerate(words[1])) / 4)
    assert scores["YAAL"] == pytest.approx(np.mean(by_hand))
    instances = [
        omnisteval.Instance(
            prediction=item.prediction,
            reference=item.reference,
            source_length=item.source_length,
            emission_cu=item.delays,
        )
        for item in run.utterances
    ]
    assert scores["YAAL"] == omnisteval.YAALScorer()(instances)


def test_a_degenerate_policy_is_called_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("omnisteval")
    # One early word, everything else after the end: low lag on paper, no translation in time.
    late = [[("w", 100.0)] + [("w", 4000.0)] * 5 for _ in REFERENCES]
    run = load_run(write_text_run(tmp_path / "late", late))
    (result,) = comparison.compare_runs([run])
    assert result.latency["Degenerate"] == 1.0
    assert any("degenerate" in note for note in result.notes)
    assert "likely a degenerate policy" in caplog.text
    steady = [[("w", 600.0 * (i + 1)) for i in range(6)] for _ in REFERENCES]
    run = load_run(write_text_run(tmp_path / "steady", steady))
    assert yaal.yaal_scores(run)["Degenerate"] == 0.0


def test_long_yaal_of_one_recording(tmp_path: Path) -> None:
    pytest.importorskip("omnisteval")
    words = "one two three four the cat sat on the mat".split()
    timed = [(word, 500.0 * (i + 1)) for i, word in enumerate(words)]
    folder = write_text_run(tmp_path / "run", [timed])
    segmentation = tmp_path / "segments.yaml"
    segmentation.write_text(
        yaml.safe_dump(
            [
                {"wav": "talk0.wav", "offset": 0.0, "duration": 2.0},
                {"wav": "talk0.wav", "offset": 2.0, "duration": 3.0},
            ]
        )
    )
    (tmp_path / "refs.txt").write_text("one two three four\nthe cat sat on the mat\n")
    scores = yaal.long_yaal_scores(load_run(folder), segmentation, tmp_path / "refs.txt")
    # Each word comes 500 ms after the one before, in both sentences from their offset on.
    assert scores["LongYAAL"] == pytest.approx(500.0)
    assert scores["LongBLEU"] == pytest.approx(100.0)
    segmentation.write_text(segmentation.read_text().replace("talk0", "other"))
    with pytest.raises(ValueError, match="not about the same recordings"):
        yaal.long_yaal_scores(load_run(folder), segmentation, tmp_path / "refs.txt")


# --- comparison ------------------------------------------------------------------------------


def three_runs(root: Path) -> list[Path]:
    worse = ["one two three for", "the cat sat the mat", "she has been a preacher"]
    return [
        write_speech_run(root / "ours" / "chunk_320"),
        write_speech_run(root / "ours" / "chunk_640", lag_ms=320.0),
        write_speech_run(root / "theirs" / "chunk_320", lag_ms=640.0, texts=worse),
    ]


def test_the_command_writes_tables_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folders = [str(folder) for folder in three_runs(tmp_path / "runs")]
    output = tmp_path / "out"
    options = ("--timeline", "1", "--bootstrap", "50", "--output", str(output))
    assert run_cli("compare", *folders, *options) == 0
    names = {path.name for path in output.iterdir()}
    pictures = {
        f"{name}.{kind}" for name in ("curves", "backlog", "timeline_1") for kind in ("png", "svg")
    }
    assert names == {"table.md", "table.tex", "table.csv", "table.json"} | pictures
    for name in pictures:
        content = (output / name).read_bytes()
        if name.endswith("png"):
            assert content.startswith(b"\x89PNG") and len(content) > 10_000
        else:
            ElementTree.fromstring(content)
    markdown = (output / "table.md").read_text()
    assert capsys.readouterr().out == markdown
    assert "| ours | 320 | 100.00 | 100.00 |" in markdown
    assert "Recogniser: pocketsphinx. Times in milliseconds." in markdown
    assert "Paired bootstrap on ASR_BLEU" in markdown
    rows = list(csv.DictReader((output / "table.csv").open()))
    assert [row["system"] for row in rows] == ["ours", "ours", "theirs"]
    document = json.loads((output / "table.json").read_text())
    assert document["runs"][0]["AL"] == pytest.approx(float(rows[0]["AL"]))
    baseline, same, other = document["significance"]
    assert baseline["p_value"] is None
    assert same["p_value"] == 1.0  # the same texts
    assert other["p_value"] < 0.2
    latex = (output / "table.tex").read_text()
    assert latex.count(r"\\") == 4 and r"\toprule" in latex


def test_bootstrap_equals_sacrebleus_command(tmp_path: Path) -> None:
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    runs = [load_run(folder) for folder in three_runs(tmp_path)[1:]]
    (_, row) = comparison.compare_paired(comparison.compare_runs(runs), samples=80)
    systems = [(str(i), run.hypotheses()) for i, run in enumerate(runs)]
    test = PairedTest(systems, {"BLEU": BLEU()}, [REFERENCES], test_type="bs", n_samples=80)
    expected = test()[1]["BLEU"][1]
    assert row.p_value == expected.p_value and row.score == round(expected.score, 3)


def test_runs_about_other_sentences_are_refused(tmp_path: Path) -> None:
    first = load_run(write_speech_run(tmp_path / "a"))
    fewer = load_run(write_speech_run(tmp_path / "b", references=REFERENCES[:2]))
    with pytest.raises(ValueError, match="do not cover the same utterances: 2 and 3.*has is 2"):
        check_same_utterances([first, fewer])
    other = load_run(write_speech_run(tmp_path / "c", references=[*REFERENCES[:2], "else"]))
    with pytest.raises(ValueError, match="utterance 2 has another reference, 'else'"):
        check_same_utterances([first, other])
    keep_common([first, fewer])
    check_same_utterances([first, fewer])
    assert len(first.utterances) == 2


def test_only_listed_sources_are_compared(tmp_path: Path) -> None:
    """Transcripts follow the utterances that stay, and the folder's own scores are not used."""
    full, _ = full_and_partial_run(tmp_path)
    listed = tmp_path / "wav_list.txt"
    listed.write_text("elsewhere/source1.wav\n")
    status = run_cli("compare", str(full), "--only", str(listed), "--output", str(tmp_path / "out"))
    (record,) = json.loads((tmp_path / "out" / "table.json").read_text())["runs"]
    assert status == 0 and record["utterances"] == 1
    assert record["ASR_BLEU"] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/source1.wav\nb/source1.wav\n", "names 'source1.wav' twice"),
        ("\n", "names no file"),
        ("source1.wav\nsource9.wav\n", "has no utterance from source9.wav"),
    ],
)
def test_lists_that_do_not_fit_the_run_are_refused(tmp_path: Path, text, message) -> None:
    run = load_run(write_speech_run(tmp_path / "a"))
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        keep_listed([run], tmp_path / "list.txt")
    assert len(run.utterances) == 3


def test_sources_of_one_name_cannot_be_told_apart(tmp_path: Path) -> None:
    run = load_run(write_speech_run(tmp_path / "a"))
    run.utterances.append(run.utterances[1])
    (tmp_path / "list.txt").write_text("source1.wav\n")
    with pytest.raises(ValueError, match="several utterances from files called source1.wav"):
        keep_listed([run], tmp_path / "list.txt")


def test_text_behind_the_speech_is_scored_from_the_trace(tmp_path: Path) -> None:
    folder = write_speech_run(tmp_path / "a", texts=["", "", ""])
    rows = [{"index": i, "translation": text} for i, text in enumerate(REFERENCES)]
    trace = folder / "trace.jsonl"

    def text_bleu() -> float | None:
        (result,) = comparison.compare_runs([load_run(folder)])
        assert result.quality["ASR_BLEU"] == 0.0
        return result.quality.get("TEXT_BLEU")

    assert text_bleu() is None
    # The last line of an utterance counts; a trace that lacks one is not used.
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert text_bleu() is None
    wrong = [{"index": i, "translation": "nothing of it"} for i in range(3)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in wrong + rows))
    assert text_bleu() == pytest.approx(100.0)
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows + wrong))
    assert text_bleu() < 1.0


def full_and_partial_run(root: Path) -> tuple[Path, Path]:
    """A run of three utterances, the second recognised exactly, and one of the second alone.

    The full run's own ``scores.tsv`` is about all three, and its log has lost ``elapsed``.
    """
    texts = ["nothing", REFERENCES[1], "of it"]
    full = write_speech_run(root / "full", texts=texts, elapsed=False)
    (full / "scores.tsv").write_text("ASR_BLEU\tASR_BLEU_NOSIL\tAL_CA\n1.5\t1.5\t2913.5\n")
    partial = write_speech_run(root / "partial")
    log = partial / "instances.log"
    log.write_text(log.read_text().splitlines(keepends=True)[1])
    for path in partial.glob("asr_transcripts*.txt"):
        path.write_text(REFERENCES[1] + "\n")
    return full, partial


def compare_common(output: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    options = ("--common-only", "--output", str(output))
    assert run_cli("compare", *map(str, arguments), *options) == 0
    return json.loads((output / "table.json").read_text())["runs"]


@pytest.mark.parametrize("indices", [None, [2, 1, 0], [1, 2, 0]])
def test_common_utterances_are_scored_alone(indices: list[int] | None, tmp_path: Path) -> None:
    full, partial = full_and_partial_run(tmp_path)
    if indices is not None:  # the transcripts in another order than the log
        texts = (full / "asr_transcripts.txt").read_text().splitlines()
        for path in full.glob("asr_transcripts*.json"):
            path.write_text(json.dumps({"recognizer": "pocketsphinx", "indices": indices}))
            path.with_suffix(".txt").write_text("".join(texts[i] + "\n" for i in indices))
    before = {path.name: path.read_bytes() for path in full.glob("*.*") if path.is_file()}
    ours, theirs = compare_common(tmp_path / "out", full, partial)
    assert ours["utterances"] == theirs["utterances"] == 1
    for name in ("ASR_BLEU", "ASR_BLEU_NOSIL"):
        assert ours[name] == theirs[name] == pytest.approx(100.0)
    # The full run's figure is about utterances that are not compared.
    assert ours["AL_CA"] is None and theirs["AL_CA"] > 0
    assert any("so there are no _CA figures" in note for note in ours["notes"])
    assert before == {path.name: path.read_bytes() for path in full.glob("*.*") if path.is_file()}


def test_reported_quality_of_other_utterances_is_not_shown(tmp_path: Path) -> None:
    full, partial = full_and_partial_run(tmp_path)
    for path in full.glob("asr_transcripts*"):
        path.unlink()
    ours, theirs = compare_common(tmp_path / "out", full, partial)
    assert "ASR_BLEU" not in ours and "ASR_BLEU_NOSIL" not in ours and theirs["ASR_BLEU"] > 99
    assert any("ASR-BLEU needs --asr-model" in note for note in ours["notes"])
    (alone,) = compare_common(tmp_path / "alone", full)
    assert alone["ASR_BLEU"] == 1.5 and alone["AL_CA"] == 2913.5


def test_rescoring_common_utterances_keeps_the_transcripts_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, partial = full_and_partial_run(tmp_path)
    recognize_always(REFERENCES[1], "whisper:base", monkeypatch)
    arguments = (full, partial, "--asr-model", "whisper:base")
    ours, theirs = compare_common(tmp_path / "out", *arguments)
    assert ours["ASR_BLEU"] == theirs["ASR_BLEU"] == pytest.approx(100.0)
    for name in ("asr_transcripts", "asr_transcripts.nosil"):
        assert (full / f"{name}.txt").read_text() == 3 * (REFERENCES[1] + "\n")
        assert json.loads((full / f"{name}.json").read_text())["indices"] == [0, 1, 2]
        assert json.loads((partial / f"{name}.json").read_text())["indices"] == [1]


def test_runs_of_different_recognisers_are_refused(tmp_path: Path) -> None:
    runs = [load_run(write_speech_run(tmp_path / name)) for name in "ab"]
    report = runs[1].path / "asr_transcripts.json"
    report.write_text(json.dumps({"recognizer": "whisper:base"}))
    with pytest.raises(ValueError, match="recognised by pocketsphinx, whisper:base"):
        comparison.compare_runs(runs)


def test_rescoring_uses_the_recogniser_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognize_always("The CAT sat on the mat", "whisper:base", monkeypatch)
    run = load_run(write_speech_run(tmp_path / "a"))
    (result,) = comparison.compare_runs([run], comparison.Rescoring("whisper:base"))
    assert result.recognizer == "whisper:base"
    assert run.hypotheses() == ["the cat sat on the mat"] * 3
    assert result.quality["ASR_BLEU"] == result.quality["ASR_BLEU_NOSIL"] < 100.0


def test_recognisers_of_one_name_in_two_folders_are_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [f"wav2vec2:{tmp_path / name / 'model.pt'}" for name in "ab"]
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pt").touch()
    loaded = recognize_always("the cat", "wav2vec2:model.pt", monkeypatch)
    first, second = (load_run(write_speech_run(tmp_path / f"run_{name}")) for name in "ab")
    comparison.compare_runs([first], comparison.Rescoring(specs[0]))
    # The same file by another path is the same recogniser.
    monkeypatch.chdir(tmp_path / "b")
    for again in (specs[0], "wav2vec2:../a/model.pt"):
        comparison.compare_runs([first], comparison.Rescoring(again))
    assert set(loaded) == {specs[0]}
    comparison.compare_runs([second], comparison.Rescoring(specs[1]))
    with pytest.raises(ValueError, match="recognised by .*/a/model.pt, .*/b/model.pt, whose"):
        comparison.compare_runs([first, second])
    results = comparison.compare_runs([first, second], comparison.Rescoring("wav2vec2:model.pt"))
    assert [result.recognizer for result in results] == ["wav2vec2:model.pt"] * 2
    assert {result.recognizer_spec for result in results} == {specs[1]}


def test_names_of_systems_and_chunks(tmp_path: Path) -> None:
    folder = write_speech_run(tmp_path / "res" / "simul-s2st" / "chunk_size=320")
    assert load_run(folder).name == "simul-s2st 320 ms"
    assert load_run(f"NAST={folder}").name == "NAST 320 ms"
    (folder / "cell.json").write_text(json.dumps({"system": "s", "chunk_ms": 640}))
    assert load_run(folder).name == "s 640 ms"
    with pytest.raises(FileNotFoundError, match="no such output folder"):
        load_run(tmp_path / "absent")
    runs = [load_run(write_speech_run(tmp_path / f"r{i}" / "chunk_320")) for i in range(5)]
    assert len(representatives(runs)) == 5 and representatives(runs[:3]) == runs[:3]


def test_utterances_without_output_are_noted(tmp_path: Path) -> None:
    folder = write_text_run(tmp_path / "run", [[("one", 100.0)], [], [("she", 100.0)]])
    (result,) = comparison.compare_runs([load_run(folder)])
    assert any("1 of 3 utterances have no output" in note for note in result.notes)
    assert result.quality["WER"] == pytest.approx(100 * 13 / 15)


def test_latex_is_escaped() -> None:
    assert tables.latex_escape(r"a_b & 50 % \ {x}") == r"a\_b \& 50 \% \textbackslash{} \{x\}"


# --- pictures --------------------------------------------------------------------------------


def svg_texts(path: Path) -> str:
    """Text of an SVG; matplotlib keeps what it drew as glyphs in comments."""
    return path.read_text(encoding="utf-8")


def test_curves_carry_labels_units_and_legend(tmp_path: Path) -> None:
    results = comparison.compare_runs([load_run(folder) for folder in three_runs(tmp_path)])
    plot_curves(results, tmp_path / "curves")
    drawn = svg_texts(tmp_path / "curves.svg")
    for text in (
        "Average Lagging, AL (s)",
        "Average Token Delay, ATD (s)",
        "ASR-BLEU (pocketsphinx)",
        "ours",
        "theirs",
        "computation-aware, raw",
        "320",
        "640",
    ):
        assert f"<!-- {text} -->" in drawn, text


def test_curves_of_recognition_show_word_errors(tmp_path: Path) -> None:
    words = [[("one", 500.0), ("two", 1500.0)] for _ in REFERENCES]
    folder = write_text_run(tmp_path / "asr" / "chunk_320", words)
    output = tmp_path / "out"
    run_cli("compare", str(folder), "--output", str(output), "--plot-quality", "WER")
    assert "<!-- WER % -->" in svg_texts(output / "curves.svg")


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    results = comparison.compare_runs([load_run(folder) for folder in three_runs(tmp_path)])
    first, second = (plot_curves(results, tmp_path / name / "c") for name in "ab")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_the_timeline_shows_the_trace(tmp_path: Path) -> None:
    folder = write_speech_run(tmp_path / "run")
    lines = [
        {"index": 1, "source_ms": 960.0, "transcript": "le chat", "translation": "the"},
        {"index": 1, "source_ms": 1920.0, "transcript": "le chat assis", "translation": "the cat"},
    ]
    assert words_from_trace(lines, "translation") == [(0.96, "the"), (1.92, "cat")]
    (folder / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_timeline([load_run(folder)], 1, tmp_path / "timeline")
    drawn = svg_texts(tmp_path / "timeline.svg")
    for text in ("le chat", "assis", "cat", "source", "transcript", "speech"):
        assert f"<!-- {text} -->" in drawn, text
    with pytest.raises(ValueError, match="has no utterance 9"):
        plot_timeline([load_run(folder)], 9, tmp_path / "timeline")


def test_a_text_run_has_a_timeline(tmp_path: Path) -> None:
    folder = write_text_run(tmp_path / "run", [[("one", 100.0), ("two", 900.0)], [], []])
    plot_timeline([load_run(folder)], 0, tmp_path / "timeline")
    assert "<!-- two -->" in svg_texts(tmp_path / "timeline.svg")


def test_options_that_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="belong together"):
        run_cli("compare", "a", "--output", str(tmp_path), "--segmentation", "s.yaml")
    assert not list(tmp_path.iterdir())
