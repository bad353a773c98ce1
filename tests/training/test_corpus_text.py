"""The grammar, the pairs and the committed texts of echo-mini."""

import subprocess
import sys
from pathlib import Path

import pytest

from echostream.training.corpus import english, pairs, spanish
from echostream.training.corpus.grammar import Filler, Pattern, Realizer, Slot, load_patterns
from echostream.training.corpus.lexicon import load_lexicon
from echostream.training.corpus.pairs import (
    MAX_WORDS,
    MIN_TRAIN_COUNT,
    MIN_WORDS,
    SPLITS,
    CorpusSizes,
    candidates,
    normalize,
    words,
)
from echostream.training.corpus.speakers import load_speakers, speakers_of
from echostream.training.corpus.text_files import (
    make_utterances,
    read_texts,
    text_digests,
    write_texts,
)

DATA = Path(__file__).resolve().parents[2] / "data" / "echo_mini"
SMALL = CorpusSizes(train=3000, dev=30, test=30, unseen=8)


@pytest.fixture(scope="module")
def committed():
    return read_texts(DATA)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("estación", "estaciones"),
        ("autobús", "autobuses"),
        ("lápiz", "lápices"),
        ("lunes", "lunes"),
        ("mes", "meses"),
        ("sofá", "sofás"),
        ("pared", "paredes"),
    ],
)
def test_spanish_plurals(word, expected):
    assert spanish.plural(word) == expected


@pytest.mark.parametrize(
    ("adjective", "feminine", "plural"),
    [
        ("rojo", "roja", "rojos"),
        ("azul", "azul", "azules"),
        ("gris", "gris", "grises"),
        ("marrón", "marrón", "marrones"),
        ("trabajador", "trabajadora", "trabajadores"),
        ("inglés", "inglesa", "ingleses"),
        ("joven", "joven", "jóvenes"),
        ("español", "española", "españoles"),
    ],
)
def test_spanish_adjectives(adjective, feminine, plural):
    assert spanish.inflect_adjective(adjective, "f", "s") == feminine
    assert spanish.inflect_adjective(adjective, "m", "p") == plural


@pytest.mark.parametrize(
    ("verb", "tense", "forms"),
    [
        ("hablar", "pres", "hablo hablas habla hablamos hablan"),
        ("dormir", "pret", "dormí dormiste durmió dormimos durmieron"),
        ("dormir", "subj", "duerma duermas duerma durmamos duerman"),
        ("pedir", "pres", "pido pides pide pedimos piden"),
        ("elegir", "subj", "elija elijas elija elijamos elijan"),
        ("jugar", "pres", "juego juegas juega jugamos juegan"),
        ("jugar", "subj", "juegue juegues juegue juguemos jueguen"),
        ("buscar", "pret", "busqué buscaste buscó buscamos buscaron"),
        ("organizar", "subj", "organice organices organice organicemos organicen"),
        ("tener", "fut", "tendré tendrás tendrá tendremos tendrán"),
        ("traducir", "pres", "traduzco traduces traduce traducimos traducen"),
        ("enviar", "pres", "envío envías envía enviamos envían"),
        ("leer", "pret", "leí leíste leyó leímos leyeron"),
        ("ver", "imperf", "veía veías veía veíamos veían"),
        ("escribir", "perf", "he escrito|has escrito|ha escrito|hemos escrito|han escrito"),
        ("acostarse", "pres", "me acuesto|te acuestas|se acuesta|nos acostamos|se acuestan"),
        ("vestirse", "inf", "vestirme vestirte vestirse vestirnos vestirse"),
        ("servir", "ger", "sirviendo " * 4 + "sirviendo"),
    ],
)
def test_conjugation(verb, tense, forms):
    conjugate = load_lexicon().conjugate
    expected = forms.split("|") if "|" in forms else forms.split()
    assert [conjugate(verb, tense, person) for person in spanish.PERSONS] == expected


def test_conjugation_names_what_is_wrong():
    conjugate = load_lexicon().conjugate
    with pytest.raises(ValueError, match="end in -ar, -er or -ir, got 'mesa'"):
        conjugate("mesa", "pres", "1s")
    with pytest.raises(ValueError, match="unknown Spanish tense 'future'"):
        conjugate("hablar", "future", "1s")


def test_contractions_and_articles():
    assert spanish.contract("voy a el mercado de el pueblo") == "voy al mercado del pueblo"
    assert spanish.contract("pan y higos o huevos") == "pan e higos o huevos"
    assert english.choose_articles("a apple and a university in a hour") == (
        "an apple and a university in an hour"
    )


@pytest.mark.parametrize(
    ("adjective", "expected"),
    [
        ("tall", "taller"),
        ("brave", "braver"),
        ("funny", "funnier"),
        ("big", "bigger"),
        ("shy", "shyer"),
        ("friendly", "more friendly"),
        ("modern", "more modern"),
        ("honest", "more honest"),
    ],
)
def test_english_comparatives(adjective, expected):
    assert english.comparative(adjective) == expected


def test_agreement_and_pro_drop():
    lexicon = load_lexicon()
    slots = {"S": Slot("any"), "X": Slot("wear"), "A": Slot("colour")}
    pattern = Pattern(
        "p",
        "t",
        "{S} {pret comprar S} {un X} {X} {adj A X}.",
        "{S} {past buy S} {a X} {A} {X}.",
        slots,
    )

    def realise(subject, noun, adjective):
        chosen = {}
        for name, text in (("S", subject), ("X", noun), ("A", adjective)):
            chosen[name] = next(
                filler
                for filler in candidates(slots[name], lexicon)
                if filler.entry.english == text
            )
        return Realizer(lexicon)(pattern, chosen)

    assert realise("I", "boots", "red") == ("Compré unas botas rojas.", "I bought some red boots.")
    assert realise("she", "coat", "blue")[0] == "Ella compró un abrigo azul."


def test_water_takes_el_and_stays_feminine():
    water = next(e for e in load_lexicon().entries("drink") if e.en == "water")
    pattern = Pattern(
        "p", "t", "{el B} {B} está {adj =frío B}.", "The {B} is cold.", {"B": Slot("drink")}
    )
    es, _ = Realizer(load_lexicon())(pattern, {"B": Filler(water)})
    assert es == "El agua está fría."


def test_every_slot_of_every_pattern_can_be_filled():
    lexicon = load_lexicon()
    for pattern in load_patterns():
        for slot in pattern.slots.values():
            assert candidates(slot, lexicon), pattern.name


def test_unknown_names_in_a_slot_are_errors():
    lexicon = load_lexicon()
    with pytest.raises(ValueError, match="no entry tagged 'colour' is called 'beige'"):
        candidates(Slot("colour", only=frozenset({"beige"})), lexicon)
    with pytest.raises(ValueError, match="no lexicon entry has the tag 'colours'"):
        candidates(Slot("colours"), lexicon)


def test_two_runs_give_the_same_texts_and_splits():
    first, second = (text_digests(make_utterances(3, SMALL)) for _ in range(2))
    assert first == second
    assert first != text_digests(make_utterances(4, SMALL))


def test_another_process_gives_the_same_texts():
    """Hash randomisation differs between processes; the texts must not."""
    code = (
        "from echostream.training.corpus.pairs import CorpusSizes\n"
        "from echostream.training.corpus.text_files import make_utterances, text_digests\n"
        "print(text_digests(make_utterances(3, CorpusSizes(3000, 30, 30, 8))))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(text_digests(make_utterances(3, SMALL)))


def test_committed_texts_are_what_the_seed_gives(committed):
    sums = dict(reversed(line.split()) for line in (DATA / "SHA256SUMS").read_text().splitlines())
    generated = text_digests(make_utterances())
    assert {f"{split}.tsv": value for split, value in generated.items()} == sums
    assert generated == text_digests(committed)


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


def test_text_files_round_trip(tmp_path, committed):
    write_texts(committed, tmp_path)
    assert read_texts(tmp_path) == committed


@pytest.mark.parametrize(
    ("line", "message"),
    [("a\tb", "line 3: expected 7 columns"), ("\t".join("abcdefg"), "line 3: expected 7 columns")],
)
def test_malformed_text_files_name_file_and_line(tmp_path, committed, line, message):
    write_texts({split: committed[split][:1] for split in SPLITS}, tmp_path)
    with (tmp_path / "train.tsv").open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    with pytest.raises(ValueError, match=f"train.tsv, {message}"):
        read_texts(tmp_path)
    (tmp_path / "dev.tsv").unlink()
    write_texts({"train": committed["train"][:1]}, tmp_path)
    with pytest.raises(FileNotFoundError, match="dev.tsv"):
        read_texts(tmp_path)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="unseen at most test"):
        CorpusSizes(train=10, dev=1, test=2, unseen=3)
    with pytest.raises(ValueError, match="the training patterns hold 0 pairs, 5 were asked for"):
        pairs._level([[], []], 5, "training")
