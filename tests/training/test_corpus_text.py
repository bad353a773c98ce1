"""The committed texts of echo-mini, and its speakers."""

import hashlib
from pathlib import Path

import pytest

from echostream.training.corpus.speakers import load_speakers, speakers_of
from echostream.training.corpus.text_files import SPLITS, normalize, read_texts

DATA = Path(__file__).resolve().parents[2] / "data" / "echo_mini"
MIN_WORDS, MAX_WORDS, MIN_TRAIN_COUNT = 4, 16, 4


def words(text):
    return normalize(text).split()


@pytest.fixture(scope="module")
def committed():
    return read_texts(DATA)


def test_committed_texts_are_those_that_weights_were_trained_on():
    sums = dict(reversed(line.split()) for line in (DATA / "SHA256SUMS").read_text().splitlines())
    found = {name: hashlib.sha256((DATA / name).read_bytes()).hexdigest() for name in sums}
    assert found == sums and set(sums) == {f"{split}.tsv" for split in SPLITS}


def test_sizes_and_vocabulary(committed):
    assert {split: len(rows) for split, rows in committed.items()} == {
        "train": 12000,
        "dev": 300,
        "test": 300,
    }
    rows = [row for split in SPLITS for row in committed[split]]
    assert len({word for row in rows for word in words(row.tgt_text)}) >= 600
    for row in rows:
        for text in (row.src_text, row.tgt_text):
            assert MIN_WORDS <= len(words(text)) <= MAX_WORDS, row
            assert "  " not in text and "{" not in text, row
    assert len({row.topic for row in rows}) >= 10


def test_no_sentence_occurs_twice(committed):
    rows = [row for split in SPLITS for row in committed[split]]
    for side in ("src_text", "tgt_text"):
        assert len({normalize(getattr(row, side)) for row in rows}) == len(rows)


def test_splits_share_neither_speakers_nor_unseen_patterns(committed):
    speakers = {split: {row.speaker for row in committed[split]} for split in SPLITS}
    assert not speakers["train"] & (speakers["dev"] | speakers["test"])
    assert not speakers["dev"] & speakers["test"]
    assert len(speakers["train"]) >= 24
    unseen = [row for row in committed["test"] if row.unseen]
    assert len(unseen) == 60
    known = {row.pattern for split in ("train", "dev") for row in committed[split]}
    assert not {row.pattern for row in unseen} & known
    assert not any(row.unseen for split in ("train", "dev") for row in committed[split])


def test_words_of_dev_and_test_are_in_training(committed):
    for side in ("src_text", "tgt_text"):
        counts = {}
        for row in committed["train"]:
            for word in set(words(getattr(row, side))):
                counts[word] = counts.get(word, 0) + 1
        for row in committed["dev"] + committed["test"]:
            for word in words(getattr(row, side)):
                assert counts.get(word, 0) >= MIN_TRAIN_COUNT, (word, row)


def test_speakers_are_distinct():
    speakers = load_speakers()
    assert len({s.voice for s in speakers}) == len(speakers)
    assert {"es", "es-419"} <= {s.voice.split("+")[0] for s in speakers_of("train")}


def copy_texts(target, count):
    """The first lines of every split file, header included."""
    for split in SPLITS:
        lines = (DATA / f"{split}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        (target / f"{split}.tsv").write_text("".join(lines[: count + 1]), encoding="utf-8")


def test_text_files_are_read(tmp_path, committed):
    copy_texts(tmp_path, 2)
    assert read_texts(tmp_path) == {split: rows[:2] for split, rows in committed.items()}


@pytest.mark.parametrize(
    ("line", "message"),
    [("a\tb", "line 3: expected 7 columns"), ("\t".join("abcdefg"), "line 3: expected 7 columns")],
)
def test_malformed_text_files_name_file_and_line(tmp_path, line, message):
    copy_texts(tmp_path, 1)
    with (tmp_path / "train.tsv").open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    with pytest.raises(ValueError, match=f"train.tsv, {message}"):
        read_texts(tmp_path)
    (tmp_path / "train.tsv").write_text("a\tb\n")
    with pytest.raises(ValueError, match="train.tsv, line 1: columns must be"):
        read_texts(tmp_path)
    copy_texts(tmp_path, 1)
    (tmp_path / "dev.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="dev.tsv"):
        read_texts(tmp_path)
