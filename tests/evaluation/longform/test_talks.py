"""Words are put to the sentences they translate; what is lost, repeated or late has its price."""

import dataclasses
import json

import pytest

pytest.importorskip("omnisteval")

from echostream.cli import main  # noqa: E402
from echostream.evaluation.longform.talk_figure import plot_talk  # noqa: E402
from echostream.evaluation.longform.talk_report import (  # noqa: E402
    TalkRun,
    report,
    table,
    talk_figures,
    used_rows,
)
from echostream.evaluation.longform.talk_scores import (  # noqa: E402
    backlog_of_trace,
    read_sentences,
    score_talks,
    words_of_trace,
)
from tests.evaluation.longform.talks import HEADER, SENTENCES, write_run, write_sentences_alone  # noqa: E402


def test_a_perfect_run_is_perfect(tmp_path, listed):
    scores = score_talks(write_run(tmp_path / "run", SENTENCES), read_sentences(listed))
    assert scores.bleu == pytest.approx(100) and scores.word_ratio == 1
    assert scores.sentences == scores.ends == 10
    assert scores.first_tenth_bleu == pytest.approx(100) == scores.last_tenth_bleu
    # Seven words, all written 3 s behind the sentence's beginning, 3/7 s apart in the ideal.
    assert scores.long_yaal_ms == pytest.approx(3000 - 3 * 3000 / 7)
    assert scores.long_yaal_ca_ms == pytest.approx(scores.long_yaal_ms + 10)
    assert scores.final_backlog_ms == scores.highest_backlog_ms == pytest.approx(1000)
    assert scores.first_tenth_ms == scores.last_tenth_ms == 10


def test_late_words_cost_latency_alone(tmp_path, listed):
    talks = read_sentences(listed)
    prompt = score_talks(write_run(tmp_path / "a", SENTENCES), talks)
    late = score_talks(write_run(tmp_path / "b", SENTENCES, lag_ms=700), talks)
    assert late.long_yaal_ms == pytest.approx(prompt.long_yaal_ms + 700)
    assert late.bleu == prompt.bleu


def test_lost_and_repeated_sentences_cost_quality(tmp_path, listed):
    talks = read_sentences(listed)
    lost = [text if i != 4 else "" for i, text in enumerate(SENTENCES)]
    scores = score_talks(write_run(tmp_path / "lost", lost), talks)
    assert scores.word_ratio == pytest.approx(0.9) and 70 < scores.bleu < 95
    assert scores.ends == 9
    # What surrounds the gap still stands where it belongs.
    assert scores.last_tenth_bleu == pytest.approx(100)
    twice = [f"{text} {text}" if i == 9 else text for i, text in enumerate(SENTENCES)]
    scores = score_talks(write_run(tmp_path / "twice", twice), talks)
    assert scores.word_ratio == pytest.approx(1.1)
    # The aligner may put the repetition to the sentence before.
    assert scores.bleu < 95 and scores.first_tenth_bleu == pytest.approx(100)


def test_speech_waits_while_earlier_speech_is_played():
    lines = [
        {"source_ms": 1000.0, "samples": 32000},
        {"source_ms": 2000.0, "samples": 16000},
        {"source_ms": 9000.0, "samples": 0},
        {"source_ms": 9500.0, "samples": 1600},
    ]
    assert backlog_of_trace(lines, 16000)[:, 1].tolist() == [2000, 2000, 0, 100]


def test_words_carry_the_time_of_their_decision():
    lines = [
        {"source_ms": 320.0, "sentence": 0, "translation": "one", "compute_ms": {"a": 400.0}},
        {"source_ms": 640.0, "sentence": 0, "translation": "one two", "compute_ms": {"a": 10.0}},
        {"source_ms": 960.0, "sentence": 1, "translation": "one", "compute_ms": {"a": 10.0}},
    ]
    words = words_of_trace(lines)
    assert [(w.text, w.time_ms, w.elapsed_ms) for w in words] == [
        ("one", 320.0, 720.0), ("two", 640.0, 730.0), ("one", 960.0, 970.0)
    ]  # fmt: skip


def test_bad_lists_and_missing_traces_are_named(tmp_path, listed):
    run = write_run(tmp_path / "run", SENTENCES)
    with pytest.raises(ValueError, match="no sentences of talk 'talk_01'"):
        sentences = read_sentences(listed)["talk_01"]
        score_talks(run, {"one": sentences, "other": sentences})
    (run.path / "trace.jsonl").unlink()
    with pytest.raises(ValueError, match="run the agent with --trace"):
        score_talks(run, read_sentences(listed))
    with pytest.raises(FileNotFoundError, match="no such list"):
        read_sentences(tmp_path / "nothing.tsv")
    broken = tmp_path / "broken.tsv"
    broken.write_text(HEADER + "\na\t1\tu\tsoon\t2\tx\ty\n")
    with pytest.raises(ValueError, match="line 2: times must be numbers"):
        read_sentences(broken)


def test_talks_stand_beside_their_sentences_one_at_a_time(tmp_path, listed, capsys):
    lost = [text if i != 4 else "" for i, text in enumerate(SENTENCES)]
    run = write_run(tmp_path / "system", lost)
    alone = write_sentences_alone(tmp_path / "alone", SENTENCES, lag_ms=200)
    both = TalkRun(
        run, read_sentences(listed), (alone, read_sentences(alone.path / "sentences.tsv"))
    )
    figures = talk_figures(both)
    assert figures["alone_bleu"] == pytest.approx(100)
    assert figures["bleu_ratio"] == pytest.approx(figures["bleu"] / 100) and figures["bleu"] < 95
    assert figures["alone_long_yaal_ms"] == pytest.approx(3200 - 3 * 3000 / 7)
    # AL as SimulEval has it: over the whole file, up to the first word behind its end.
    assert figures["alone_al_ms"] == pytest.approx(3700 - 3 * 4000 / 7)
    assert figures["asr_bleu"] is None is figures["asr_bleu_ratio"]
    command = ["talks", f"system={run.path}", "--sentences", str(listed), "--alone"]
    assert main([*command, str(alone.path)]) == 0
    printed = capsys.readouterr().out
    assert "| text BLEU, one at a time | 100.0 |" in printed and "ASR" not in printed
    assert main([*command, str(alone.path), str(alone.path)]) == 2
    assert "one folder for each run: 1 runs, 2 given" in capsys.readouterr().err


def test_other_sentences_are_no_comparison(tmp_path, listed):
    run = write_run(tmp_path / "run", SENTENCES)
    alone = write_sentences_alone(tmp_path / "alone", SENTENCES)
    path = alone.path / "sentences.tsv"
    path.write_text(path.read_text().replace(SENTENCES[3], "something else"))
    both = TalkRun(run, read_sentences(listed), (alone, read_sentences(path)))
    with pytest.raises(ValueError, match="'something else' is said 0 times in the talks and 1"):
        talk_figures(both)


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_speech_of_any_rate_takes_its_time(tmp_path, listed, rate):
    run = write_run(tmp_path / "run", SENTENCES, rate=rate)
    scores = score_talks(run, read_sentences(listed))
    assert scores.final_backlog_ms == scores.highest_backlog_ms == pytest.approx(1000)


def test_speech_that_the_log_does_not_know_is_named(tmp_path, listed):
    run = write_run(tmp_path / "run", SENTENCES)
    run.utterances[0].durations = []
    with pytest.raises(ValueError, match="has 160000 samples of speech, the log has none"):
        score_talks(run, read_sentences(listed))


def test_text_has_no_backlog(tmp_path, listed):
    scores = score_talks(
        write_run(tmp_path / "run", SENTENCES, speaks=False), read_sentences(listed)
    )
    assert scores.final_backlog_ms is None is scores.highest_backlog_ms
    assert scores.bleu == pytest.approx(100)


def test_references_without_words_are_no_division_by_zero(tmp_path, listed):
    text = listed.read_text()
    for sentence in SENTENCES:
        text = text.replace(sentence, "")
    listed.write_text(text)
    talks = read_sentences(listed)
    for name, said in (("talking", SENTENCES), ("silent", [""] * len(SENTENCES))):
        scores = score_talks(write_run(tmp_path / name, said), talks)
        assert scores.bleu is None is scores.word_ratio
        assert scores.sentences == 10 and (scores.long_yaal_ms is None) == (name == "silent")


def test_a_silent_run_has_no_latency(tmp_path, listed):
    scores = score_talks(write_run(tmp_path / "run", [""] * 10), read_sentences(listed))
    assert scores.bleu == 0 == scores.word_ratio and scores.long_yaal_ms is None
    json.dumps(dataclasses.asdict(scores), allow_nan=False)


def test_lists_that_make_no_sense_are_refused(tmp_path):
    path = tmp_path / "sentences.tsv"
    path.write_text(HEADER + "\na\t1\tu\t200\t200\tx\ty\n")
    with pytest.raises(ValueError, match="line 2: a sentence must end after it begins, got 200"):
        read_sentences(path)
    path.write_text(HEADER + "\n")
    with pytest.raises(ValueError, match="lists no sentence"):
        read_sentences(path)


def test_tables_and_pictures(tmp_path, listed):
    run = write_run(tmp_path / "run", SENTENCES)
    figures = talk_figures(TalkRun(run, read_sentences(listed)))
    printed = table(["system"], [figures])
    assert len(printed.splitlines()) == 2 + len(used_rows([figures]))
    assert "| text BLEU, re-segmented | 100.0 |" in printed
    assert plot_talk([run], tmp_path / "talk.png").stat().st_size > 5000


def test_a_report_is_written_once_for_every_name(tmp_path, listed):
    talks = read_sentences(listed)
    runs = [TalkRun(write_run(tmp_path / name, SENTENCES), talks) for name in ("one", "two")]
    text = report(runs, tmp_path / "tables")
    assert (tmp_path / "tables" / "talks.md").read_text() == text + "\n"
    assert list(json.loads((tmp_path / "tables" / "talks.json").read_text())) == ["one", "two"]
    with pytest.raises(ValueError, match="runs must have different names, got one, one"):
        report([runs[0], runs[0]], None)


def test_runs_on_talks_are_compared_sentence_by_sentence(tmp_path, listed, capsys):
    lost = [*SENTENCES[:4], "something else was said here today", *SENTENCES[5:9], "the cow"]
    runs = {"one": lost, "same": lost, "other": SENTENCES}
    for name, said in runs.items():
        write_run(tmp_path / name, said)
    command = ["talks", *(f"{name}={tmp_path / name}" for name in runs)]
    command += ["--sentences", str(listed), "--output", str(tmp_path / "tables")]
    assert main([*command, "--bootstrap", "100"]) == 0
    assert "| 1: one | 82.36 | " in (printed := capsys.readouterr().out) and "baseline" in printed
    document = json.loads((tmp_path / "tables" / "talks.json").read_text())
    (baseline,), (same,), (other,) = (document[name]["significance"] for name in runs)
    assert baseline["metric"] == "text BLEU" and baseline["p_value"] is None
    assert same["p_value"] == 1 and same["score"] == baseline["score"]
    assert other["score"] == pytest.approx(100) and other["p_value"] < 0.1
    assert main(command) == 0
    assert "bootstrap" not in capsys.readouterr().out


def test_runs_on_other_talks_are_not_compared_sentence_by_sentence(tmp_path, listed):
    talks = read_sentences(listed)
    runs = [TalkRun(write_run(tmp_path / name, SENTENCES), talks) for name in ("one", "two")]
    others = {"talk_01": talks["talk_01"][::-1]}
    with pytest.raises(ValueError, match="two and .*one are not on the same talks"):
        report([runs[0], dataclasses.replace(runs[1], talks=others)], None, None, 10)
