"""Vocabularies and incremental detokenisation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostream.synthetic import syllables
from echostream.text import WORD_START, Detokenizer, Vocabulary
from tests.reference.recordings import require_whole

VOCABULARY = Vocabulary(syllables(20))


def test_special_ids():
    assert (VOCABULARY.bos, VOCABULARY.pad, VOCABULARY.eos, VOCABULARY.unk) == (0, 1, 2, 3)
    assert VOCABULARY.blank == 0 and len(VOCABULARY) == 24
    assert VOCABULARY.starts_word(4) and not VOCABULARY.starts_word(5)
    assert all(VOCABULARY.is_special(i) == (i < 4) for i in range(24))


def test_decoding_drops_specials_and_keeps_underscores():
    vocabulary = Vocabulary([WORD_START + "a_b", "c", WORD_START + "d"])
    assert vocabulary.decode([0, 4, 5, 2, 6, 1]) == "a_bc d"
    assert vocabulary.decode([4, 3]) == "a_b\u2047"


@given(st.lists(st.integers(0, 23), max_size=30), st.lists(st.integers(0, 30), max_size=5))
def test_words_do_not_depend_on_the_cut(tokens, cuts):
    detokenizer = Detokenizer(VOCABULARY)
    bounds = [0, *sorted(min(c, len(tokens)) for c in cuts), len(tokens)]
    state, words = detokenizer.init_state(), []
    spans = list(zip(bounds[:-1], bounds[1:], strict=True))
    for index, (start, end) in enumerate(spans):
        new, state = detokenizer.step(tokens[start:end], state, final=index == len(spans) - 1)
        words += new
    assert " ".join(words) == VOCABULARY.decode(tokens)


def test_dictionary_round_trip(tmp_path):
    VOCABULARY.save(tmp_path / "dict.txt")
    assert Vocabulary.load(tmp_path / "dict.txt").pieces == VOCABULARY.pieces


def test_released_sentencepiece_vocabulary(tmp_path):
    folder = require_whole("streamspeech_fr_en/tgt_unigram6000")
    vocabulary = Vocabulary.load(folder / "spm_unigram_fr.txt", folder / "spm_unigram_fr.model")
    assert len(vocabulary) == 6000
    text = "this is a sentence about the weather"
    tokens = vocabulary.encode(text)
    assert vocabulary.unk not in tokens and vocabulary.decode(tokens) == text
    detokenizer = Detokenizer(vocabulary)
    state, words = detokenizer.init_state(), []
    for token in tokens:
        new, state = detokenizer.step([token], state)
        words += new
    assert words == text.split()[:-1], "the last word may still grow"
    vocabulary.save(tmp_path / "dict.txt", tmp_path / "spm.model")
    again = Vocabulary.load(tmp_path / "dict.txt", tmp_path / "spm.model")
    assert again.encode(text) == tokens


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a 1\nb\n", r"line 2: expected 'piece count', got 'b'"),
        ("a x\n", r"line 1: expected 'piece count'"),
        (" 1\n", r"line 1: expected"),
        ("a 1\na 1\n", "lists the piece 'a' twice"),
        ("<s> 1\n", "lists the piece '<s>' twice"),
    ],
)
def test_bad_dictionaries(tmp_path, content, message):
    (tmp_path / "dict.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        Vocabulary.load(tmp_path / "dict.txt")


def test_missing_and_corrupt_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such dictionary"):
        Vocabulary.load(tmp_path / "dict.txt")
    (tmp_path / "dict.txt").write_text("a 1\n")
    (tmp_path / "spm.model").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        Vocabulary.load(tmp_path / "dict.txt", tmp_path / "spm.model")
    with pytest.raises(ValueError, match="needs a SentencePiece model"):
        Vocabulary(["a"]).encode("a")
