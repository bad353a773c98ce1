"""Words are put to the sentences they translate; what is lost, repeated or late has its price."""

import dataclasses
import json

import pytest

pytest.importorskip("omnisteval")

from echostream.evaluation.longform.command import ROWS, table  # noqa: E402
from echostream.evaluation.longform.figure import plot_talk  # noqa: E402
from echostream.evaluation.longform.talks import (  # noqa: E402
    backlog_of_trace,
    read_sentences,
    score_talks,
    words_of_trace,
)
from echostream.evaluation.runs.run_folder import load_run  # noqa: E402

SENTENCES = [f"the {a} {b} sees one {c} today" for a, b, c in zip(
    "red blue green old new tall small big fast slow".split(),
    "dog cat bird horse cow fish mouse sheep goat duck".split(),
    "tree house car river road table chair window door lamp".split(), strict=True,
)]  # fmt: skip
HEADER = "talk\tindex\tutterance\tstart_ms\tend_ms\tsrc_text\ttgt_text"


@pytest.fixture
def listed(tmp_path):
    rows = [
        f"talk_01\t{i + 1}\tu{i}\t{4000 * i}\t{4000 * i + 3000}\tfuente\t{text}"
        for i, text in enumerate(SENTENCES)
    ]
    path = tmp_path / "sentences.tsv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def write_run(folder, said, *, lag_ms=0.0, samples=16000, compute_ms=10.0):
    """A run on one talk: each sentence is written whole when it ends."""
    folder.mkdir(parents=True)
    lines = [
        {
            "index": 0, "source_ms": 4000.0 * i + 3000 + lag_ms, "write": True,
            "finished": i + 1 == len(said), "sentence": i, "transcript": "x", "translation": text,
            "samples": samples, "backlog_ms": 0.0, "compute_ms": {"mt": compute_ms},
        }
        for i, text in enumerate(said)
    ]  # fmt: skip
    (folder / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = " ".join(said)
    entry = {
        "index": 0, "prediction": words, "delays": [1.0] * len(words.split()),
        "elapsed": [1.0] * len(words.split()), "prediction_length": len(words.split()),
        "reference": " ".join(SENTENCES), "source": ["talk_01.wav", "samplerate: 16000"],
        "source_length": 40000.0,
    }  # fmt: skip
    (folder / "instances.log").write_text(json.dumps(entry) + "\n")
    return load_run(f"system={folder}")


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


def test_tables_and_pictures(tmp_path, listed):
    run = write_run(tmp_path / "run", SENTENCES)
    scores = dataclasses.asdict(score_talks(run, read_sentences(listed)))
    printed = table(["system"], [scores])
    assert len(printed.splitlines()) == 2 + len(ROWS)
    assert "| text BLEU, re-segmented | 100.0 |" in printed
    assert plot_talk([run], tmp_path / "talk.png").stat().st_size > 5000
