"""Small letters, accents and capitals for texts without."""

import pytest

from echostream.training.everyday import spelling

TEXTS = ["¿Qué más? El año", "Más o mas", "más", "aún no", "aun así", "aún no", "El que no", "que"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mas no", "más no"),  # three times with, once without
        ("que", "que"),  # once with, twice without
        ("aun más", "aún más"),
        ("ano", "ano"),  # ñ is a letter, not an accent
        ("mas2 mas", "más2 más"),
        ("lámpara lampara", "lámpara lampara"),  # not known
        ("qué", "qué"),  # has one already
    ],
)
def test_each_word_gets_its_most_frequent_spelling(text, expected):
    assert spelling.with_accents(text, spelling.count_spellings(TEXTS)) == expected


def test_without_texts_nothing_is_guessed():
    assert spelling.with_accents("mas que", spelling.count_spellings([])) == "mas que"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hola", "Hola."),
        ("¿que pasa, igor?", "¿Que pasa, Igor?"),
        ("si. ¡ñam! vale", "Si. ¡Ñam! Vale."),
        ("de... de verdad", "De... de verdad."),
        ('dice "no"', 'Dice "no"'),
        ("igorote y von braun", "Igorote y Von Braun."),
        ("", ""),
    ],
)
def test_sentences_and_names_have_capitals(text, expected):
    assert spelling.in_sentences(text, ("Igor", "Von Braun")) == expected


def test_i_is_a_capital_in_english():
    assert spelling.in_sentences("well, i think i'm in", ("I",)) == "Well, I think I'm in."


def test_texts_are_read_of_plain_files_pairs_and_tables(tmp_path):
    for name, content in {
        "plain.txt": "una línea\r\notra, train_1\n",
        "pairs.tsv": "el perro\tthe dog\t90\ntrain\tel tren\n",
        "table.tsv": "train_00001\tla casa\tthe house\ndev_chat_1\tsí\tyes\n",
    }.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    found = spelling.read_texts(sorted(tmp_path.iterdir()))
    assert found == ["el perro", "train", "una línea", "otra, train_1", "la casa", "sí"]


def test_missing_texts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file of Spanish texts: .*none\.txt"):
        spelling.read_texts([tmp_path / "none.txt"])
