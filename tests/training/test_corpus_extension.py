"""The compositional extension: grammar, agreement, texts, build."""

import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import sentencepiece

from echostream.training import data_folder, feature_archive
from echostream.training.corpus import rooms, spanish, synthesis
from echostream.training.corpus.build import BuildOptions, build, sound_path
from echostream.training.corpus.command import DATA, ROOT, main
from echostream.training.corpus.composition import Composer
from echostream.training.corpus.constructions import (
    MAX_DEPTH,
    load_grammar,
    parse,
    sample_tree,
)
from echostream.training.corpus.extended_build import EXTENDED_ZIP, build_extended
from echostream.training.corpus.extended_lexicon import load_extended_lexicon
from echostream.training.corpus.extended_texts import (
    COMBDEV,
    COMBTEST,
    EXTENDED_SPLITS,
    EXTENSION,
    MAX_WORDS,
    MIN_WORDS,
    ExtendedSizes,
    Novelty,
    assign_voices,
    compose,
    compose_training,
    extension_digests,
    generate_extension,
    read_extension,
    withheld_combination,
    withheld_pattern,
    write_extension,
)
from echostream.training.corpus.lexicon import load_lexicon
from echostream.training.corpus.pairs import MIN_TRAIN_COUNT, Chooser, normalize, words
from echostream.training.corpus.phrase_composer import Retry
from echostream.training.corpus.phrases import noun_phrase, number_words
from echostream.training.corpus.speakers import Speaker, speakers_of
from echostream.training.corpus.text_files import read_texts

needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None or shutil.which("flite") is None,
    reason="espeak-ng and flite are not installed",
)


@pytest.fixture(scope="module")
def present():
    return read_texts(DATA)


@pytest.fixture(scope="module")
def committed():
    return read_extension(DATA / EXTENSION)


class Scripted(Chooser):
    """Takes named words where they are among the choices, else the first."""

    def __init__(self, *names, fraction=0.9):
        self.names, self._fraction = list(names), fraction

    def fraction(self):
        return self._fraction

    def choice(self, items):
        for name in self.names:
            for item in items:
                if name in (item, getattr(item, "english", None)):
                    self.names.remove(name)
                    return item
        return items[0]


def realise(pattern, *names, fraction=0.9):
    return Composer(load_extended_lexicon(), Scripted(*names, fraction=fraction))(parse(pattern))


@pytest.mark.parametrize(
    ("pattern", "names", "es", "en"),
    [
        (
            "stmt(past(no(i,thing(the(an)))))",
            ["break", "kettle", "golden"],
            "No rompí la tetera dorada.",
            "I did not break the golden kettle.",
        ),
        (
            "stmt(prog(s(she,wear(that(n)))))",
            ["put on", "blouse"],
            "Ella se está poniendo esa blusa.",
            "She is putting on that blouse.",
        ),
        (
            "stmt(now(s(we,modal(give(a(n),both(name,kin))))))",
            ["want to", "send", "Anna", "grandfather", "text", "novel", "my"],
            "Queremos enviarles una novela a Ana y a mi abuelo.",
            "We want to send a novel to Anna and my grandfather.",
        ),
        (
            "stmt(wishes(i,name,modal(intr)))",
            ["want", "Peter", "learn to", "knit"],
            "Quiero que Pedro aprenda a tejer.",
            "I want Peter to learn to knit.",
        ),
        (
            "stmt(important(the(n),modal(intr)))",
            ["necessary", "pilot", "dare to", "jump"],
            "Es necesario que el piloto se atreva a saltar.",
            "It is necessary for the pilot to dare to jump.",
        ),
        (
            "stmt(whenever(name,move(the(n)),fut(s(they,pro))))",
            ["Martha", "get to", "lighthouse", "me", "hug"],
            "Cuando Marta llegue al faro, ellos me abrazarán.",
            "When Martha gets to the lighthouse, they will hug me.",
        ),
        (
            "stmt(said(name,because(past(s(he,intr)),was(nst(e(the(n)))))))",
            ["admit", "Clara", "cry", "queen", "happy"],
            "Clara admitió que él lloró porque la reina no estaba contenta.",
            "Clara admitted that he cried because the queen was not happy.",
        ),
        (
            "ask(perf(s(the(n),person(kin))))",
            ["judge", "call", "niece", "my"],
            "¿Ha llamado el juez a mi sobrina?",
            "Has the judge called my niece?",
        ),
        (
            "why(is(st(than(the(n),name))))",
            ["king", "rich", "Paul"],
            "¿Por qué es el rey más rico que Pablo?",
            "Why is the king richer than Paul?",
        ),
        (
            "please(to(text(the(n)),intr))",
            ["read", "menu", "rest"],
            "Por favor, lea el menú para descansar.",
            "Please read the menu to rest.",
        ),
        (
            "dont(before(animal(the(n)),food(the(n))))",
            ["chase", "eagle", "wash", "fry", "cut", "food", "salmon"],
            "No persiga el águila antes de cortar el salmón.",
            "Do not chase the eagle before cutting the salmon.",
        ),
        (
            "stmt(past(s(the(n),place(the(n)))))",
            ["mayor", "leave", "palace"],
            "El alcalde salió del palacio.",
            "The mayor left the palace.",
        ),
        (
            "stmt(is(st(loc(my(an),link(the(n))))))",
            ["thing", "piano", "our", "heavy", "in front of", "fountain"],
            "Nuestro piano pesado está delante de la fuente.",
            "Our heavy piano is in front of the fountain.",
        ),
        (
            "stmt(can(no(i,manner(event(which(n,name))))))",
            ["cancel", "race", "organize", "Silvia", "quickly"],
            "No puedo cancelar la carrera que organizó Ana rápidamente.",
            "I cannot cancel the race that Anna organized quickly.",
        ),
    ],
)
def test_constructions(pattern, names, es, en):
    assert realise(pattern, *names) == (es, en)


def test_plural_noun_phrases_agree():
    lexicon = load_extended_lexicon()

    def entry(tag, name):
        return next(one for one in lexicon.entries(tag) if one.english == name)

    made = noun_phrase(
        Scripted(fraction=0.0), "this", entry("thing", "crown"), entry("q", "fake"), plurals=1
    )
    assert (made.es, made.en, made.person) == ("estas coronas falsas", "these fake crowns", "3p")
    flour = entry("food", "flour")
    assert noun_phrase(Scripted(), "num", flour, None, plurals=0) is None
    assert noun_phrase(Scripted(), "a", flour, None, plurals=0).es.strip() == "harina"
    anchor = entry("thing", "anchor")
    assert noun_phrase(Scripted(), "the", anchor, None, plurals=0).es.strip() == "el ancla"


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (7, ("siete", "seven")),
        (25, ("veinticinco", "twenty five")),
        (32, ("treinta y dos", "thirty two")),
        (90, ("noventa", "ninety")),
    ],
)
def test_numbers(number, expected):
    assert number_words(number) == expected


@pytest.mark.parametrize("number", [1, 22, 41, 100])
def test_numbers_that_agree_are_refused(number):
    with pytest.raises(ValueError, match=f"without final 1, got {number}"):
        number_words(number)


@pytest.mark.parametrize(
    ("verb", "tense", "forms"),
    [
        ("construir", "subj", "construya construyas construya construyamos construyan"),
        ("perseguir", "pret", "perseguí perseguiste persiguió perseguimos persiguieron"),
        ("proteger", "subj", "proteja protejas proteja protejamos protejan"),
        ("mover", "subj", "mueva muevas mueva movamos muevan"),
        ("consolar", "pres", "consuelo consuelas consuela consolamos consuelan"),
        ("oler", "pres", "huelo hueles huele olemos huelen"),
        ("mentir", "subj", "mienta mientas mienta mintamos mientan"),
        ("convencer", "subj", "convenza convenzas convenza convenzamos convenzan"),
        ("suponer", "fut", "supondré supondrás supondrá supondremos supondrán"),
        ("tropezar", "pret", "tropecé tropezaste tropezó tropezamos tropezaron"),
        ("huir", "pret", "hui huiste huyó huimos huyeron"),
        ("prohibir", "pres", "prohíbo prohíbes prohíbe prohibimos prohíben"),
        ("conducir", "subj", "conduzca conduzcas conduzca conduzcamos conduzcan"),
    ],
)
def test_conjugation_of_new_verbs(verb, tense, forms):
    conjugate = load_extended_lexicon().conjugate
    assert [conjugate(verb, tense, person) for person in spanish.PERSONS] == forms.split()


@pytest.mark.parametrize(
    ("base", "forms"),
    [
        ("tie", "ties tied tied tying"),
        ("lie", "lies lied lied lying"),
        ("wrap", "wraps wrapped wrapped wrapping"),
        ("prefer", "prefers preferred preferred preferring"),
        ("flee", "flees fled fled fleeing"),
        ("foresee", "foresees foresaw foreseen foreseeing"),
        ("copy", "copies copied copied copying"),
        ("watch", "watches watched watched watching"),
    ],
)
def test_english_forms_of_new_verbs(base, forms):
    inflect = load_extended_lexicon().inflect
    assert [inflect(base, form) for form in ("pres", "past", "pp", "ing")] == forms.split()


def test_present_lexicon_is_untouched():
    tags = {entry.english for tag in ("thing", "prof") for entry in load_lexicon().entries(tag)}
    assert "hammer" not in tags and "astronaut" not in tags
    assert "astronaut" in {one.english for one in load_extended_lexicon().entries("person")}


def test_drawn_trees_are_of_the_grammar_and_parse_back():
    chooser = Chooser(5, "trees")
    seen = set()
    for _ in range(500):
        tree = sample_tree(chooser)
        assert parse(str(tree)) == tree
        seen |= tree.labels()
    labels = {one.label for items in load_grammar().values() for one in items if one.label}
    assert len(seen) > 0.95 * len(labels)

    def depth(tree):
        return 1 + max(map(depth, tree.parts), default=0)

    assert max(depth(sample_tree(chooser)) for _ in range(500)) <= MAX_DEPTH


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stmt(past(s(i,intr))", r"expected '\)' at"),
        ("stmt(past(s(i,intr))))", "text left at"),
        ("stmt(,)", "expected a name at 5"),
        ("stmt(past(s(i,sing)))", "is no TEXT of the grammar"),
        ("past(s(i,intr))", "is no TEXT of the grammar"),
    ],
)
def test_wrong_patterns_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_useless_draws_are_left_out():
    with pytest.raises(Retry):
        realise("stmt(past(s(i,pro)))", "me", "help")
    with pytest.raises(Retry, match="negation"):
        realise("stmt(past(no(nobody,intr)))")
    with pytest.raises(Retry, match="present or preterite"):
        realise("stmt(past(s(we,intr)))", "sing")
    assert compose(parse("stmt(past(s(i,intr)))"), Scripted("sing")) is None  # two words


def test_a_seed_gives_the_committed_texts(present, committed):
    sums = dict(
        reversed(line.split())
        for line in (DATA / EXTENSION / "SHA256SUMS").read_text().splitlines()
    )
    made = extension_digests(committed)
    assert {f"{split}.tsv": value for split, value in made.items()} == sums
    # Sentences are drawn one after another: few are the beginning of many, in any process.
    few = compose_training(Novelty(present), 1, 800)
    assert not any(withheld_combination(1, pair) for made in few for pair in made.combinations)
    for short, long in zip(few, committed[EXTENSION], strict=False):
        assert (short.es, short.en, short.pattern) == (long.src_text, long.tgt_text, long.pattern)
    code = (
        "from echostream.training.corpus.extended_texts import Novelty, compose_training\n"
        "print([made.es for made in compose_training(Novelty({}), 1, 100)])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str([made.es for made in few[:100]])
    assert compose_training(Novelty(present), 2, 5) != few[:5]


@pytest.mark.slow
def test_a_seed_gives_all_committed_texts(present, committed):
    made = generate_extension(present, 1, ExtendedSizes())
    assert extension_digests(assign_voices(made, 1)) == extension_digests(committed)
    for split in (COMBDEV, COMBTEST):
        for row in made[split]:
            assert any(withheld_combination(1, pair) for pair in row.combinations), row


def test_sizes_and_vocabulary(present, committed):
    assert {split: len(rows) for split, rows in committed.items()} == {
        EXTENSION: 24000,
        COMBDEV: 300,
        COMBTEST: 300,
    }
    for side in ("src_text", "tgt_text"):
        before, after = (
            {word for row in rows for word in words(getattr(row, side))}
            for rows in (present["train"], present["train"] + committed[EXTENSION])
        )
        assert len(after) >= 2 * len(before)
    for rows in committed.values():
        for row in rows:
            for text in (row.src_text, row.tgt_text):
                assert MIN_WORDS <= len(words(text)) <= MAX_WORDS, row
                assert "  " not in text and not re.search(r"[{}'\-]| [,.?]", text), row
    patterns = {row.pattern for row in committed[EXTENSION]}
    assert len(patterns) > 10000
    assert {row.speaker for row in committed[EXTENSION]} == {
        one.id for one in speakers_of("extension")
    }
    assert {row.speaker for row in committed[COMBTEST]} == {one.id for one in speakers_of("test")}


def test_every_committed_pattern_parses(committed):
    for pattern in {row.pattern for rows in committed.values() for row in rows}:
        assert str(parse(pattern)) == pattern


def test_contractions_and_articles_everywhere(committed):
    for rows in committed.values():
        for row in rows:
            assert not re.search(r"\b(a|de) el\b", row.src_text), row
            assert not re.search(r"\ba [aeio]\w", row.tgt_text), row
            assert not re.search(r"\by (i|hi)[^e]", row.src_text.lower()), row


def test_no_sentence_occurs_twice(present, committed):
    rows = [row for group in (present, committed) for split in group.values() for row in split]
    for side in ("src_text", "tgt_text"):
        assert len({normalize(getattr(row, side)) for row in rows}) == len(rows)


def test_held_out_sentences_combine_what_training_has_apart(committed):
    counts = Counter()
    for row in committed[EXTENSION]:
        for side in ("src_text", "tgt_text"):
            counts.update({(side, word) for word in words(getattr(row, side))})
    labels = set().union(*(parse(row.pattern).labels() for row in committed[EXTENSION]))
    patterns = {row.pattern for row in committed[EXTENSION]}
    assert not any(withheld_pattern(1, pattern) for pattern in patterns)
    for row in committed[COMBDEV] + committed[COMBTEST]:
        assert row.unseen and row.pattern not in patterns
        assert withheld_pattern(1, row.pattern) and parse(row.pattern).labels() <= labels
        for side in ("src_text", "tgt_text"):
            for word in words(getattr(row, side)):
                assert counts[side, word] >= MIN_TRAIN_COUNT, (word, row)


def test_withheld_combinations_are_a_share_decided_by_digest():
    pairs = [(f"verb{i}", f"noun{i}") for i in range(3000)]
    share = sum(withheld_combination(1, pair) for pair in pairs) / len(pairs)
    assert 0.05 < share < 0.085
    assert withheld_combination(1, pairs[0]) == withheld_combination(1, pairs[0])


def test_text_files_round_trip(tmp_path, committed):
    few = {split: committed[split][:20] for split in EXTENDED_SPLITS}
    write_extension(few, tmp_path)
    assert read_extension(tmp_path) == few
    before = (tmp_path / "combtest.tsv.gz").read_bytes()
    write_extension(few, tmp_path)
    assert (tmp_path / "combtest.tsv.gz").read_bytes() == before
    (tmp_path / "combdev.tsv.gz").write_bytes(b"plain")
    with pytest.raises(ValueError, match="combdev.tsv.gz: damaged"):
        read_extension(tmp_path)
    (tmp_path / "extension.tsv.gz").unlink()
    with pytest.raises(FileNotFoundError, match="extension.tsv.gz"):
        read_extension(tmp_path)


def test_present_vocabularies_spell_every_word(committed):
    """Shipped weights keep their dictionaries, so no character may be new to them."""
    for side in ("src", "tgt"):
        name = {"src": "source", "tgt": "target"}[side]
        model = ROOT / "echostream/assets/echo_mini/echostream" / f"{name}.spm.model"
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        for rows in committed.values():
            for row in rows:
                text = normalize(row.src_text if side == "src" else row.tgt_text)
                assert processor.unk_id() not in processor.encode(text), text


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="sizes of the extension must be positive"):
        ExtendedSizes(extension=0)


def test_rooms_keep_the_direct_sound_and_decay():
    for seed in range(5):
        response = rooms.room_response(np.random.default_rng(seed))
        tail = response[1:]
        assert response[0] == 1 and 0.1 <= np.sqrt(np.square(tail).sum()) <= 0.72
        half = len(tail) // 2
        assert np.square(tail[half:]).sum() < 0.05 * np.square(tail[:half]).sum()


def test_room_and_noise_are_shares_and_depend_on_the_key_alone():
    speech = np.sin(np.arange(16000) / 20).astype(np.float32)
    changed = 0
    for number in range(60):
        first, again = (
            rooms.add_noises(rooms.add_room(speech, rng), rng)
            for rng in (synthesis.generator_for(1, number) for _ in "ab")
        )
        np.testing.assert_array_equal(first, again)
        assert first.shape == speech.shape and np.isfinite(first).all()
        changed += not np.array_equal(first, speech)
    assert 30 < changed < 58


@needs_espeak
def test_formants_move_and_the_rate_stays():
    plain = Speaker("x", "extension", "es", 50, 160)
    text = "El piloto nunca vuelve a la isla."
    low, mid, high = (
        synthesis.espeak(text, Speaker("x", "extension", "es", 50, 160, scale))
        for scale in (0.86, 1.0, 1.14)
    )
    np.testing.assert_array_equal(mid, synthesis.espeak(text, plain))
    assert len(low) == pytest.approx(len(mid), rel=0.12)
    assert len(high) == pytest.approx(len(mid), rel=0.12)

    def centre(sound):
        power = np.square(np.abs(np.fft.rfft(sound)))
        return (power * np.arange(len(power))).sum() / power.sum() / len(sound)

    assert centre(low) < centre(mid) < centre(high)


@needs_espeak
def test_every_speaker_of_the_extension_speaks():
    synthesis.require_voices(speakers_of("extension"))
    for one in speakers_of("extension")[::8]:
        sound = synthesis.synthesize_source("x", "Hola, ¿qué tal?", one, 1)
        assert 8000 < len(sound) < 60000 and np.isfinite(sound).all(), one


@pytest.fixture(scope="module")
def built(tmp_path_factory, present, committed):
    """A corpus folder and its extension; noise stands in for speech."""
    pytest.importorskip("sklearn", reason="fitting k-means needs scikit-learn")
    folder = tmp_path_factory.mktemp("extended")
    options = BuildOptions(num_units=12, vocab_size=60, kmeans_utterances=10)
    first = {split: rows[:30] if split == "train" else rows[:3] for split, rows in present.items()}
    more = {split: rows[:5] for split, rows in committed.items()}
    rng = np.random.default_rng(0)
    for rows in (*first.values(), *more.values()):
        for row in rows:
            for side in ("source", "target"):
                samples = 0.1 * rng.standard_normal(int(rng.integers(8000, 12000)))
                synthesis.save_flac(samples, sound_path(folder, side, row))
    with pytest.raises(FileNotFoundError, match="builds on a finished corpus folder"):
        build_extended(folder, first, more, options)
    build(folder, first, options)
    kept = {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "audio" not in path.parts
    }
    build_extended(folder, first, more, options)
    return folder, first, more, kept


def test_extension_leaves_the_present_build_alone(built):
    folder, _, _, kept = built
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_extended_manifests_hold_both(built):
    folder, first, more, _ = built
    manifests = folder / f"{data_folder.MANIFESTS}_extended"
    lines = (manifests / "train.tsv").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == [
        row.id for row in first["train"] + more[EXTENSION]
    ]
    for line in lines[1:]:
        name, offset, size = line.split("\t")[1].split(":")
        assert name == (EXTENDED_ZIP if line.startswith("extension") else feature_archive.FBANK_ZIP)
        blob = (folder / name).read_bytes()[int(offset) : int(offset) + int(size)]
        assert blob.startswith(b"\x93NUMPY")
    for side in ("src", "tgt"):
        old, new = (folder / f"{side}_unigram60{suffix}" for suffix in ("", "_extended"))
        for name in ("spm_unigram_es.txt", "spm_unigram_es.model"):
            assert (old / name).read_bytes() == (new / name).read_bytes()
        for split, count in (("train", 35), ("dev", 3), ("test", 3), (COMBTEST, 5)):
            assert len((new / f"{split}.tsv").read_text().splitlines()) == count + 1
    text = (manifests / "config_mtl_asr_st_ctcst.yaml").read_text()
    assert "src_unigram60_extended" in text and str(folder) not in text
    assert len((folder / "simuleval/combtest/wav_list.txt").read_text().splitlines()) == 5


def test_extended_goes_with_a_folder(capsys):
    with pytest.raises(SystemExit):
        main(["--write-talk", "--extended"])
    assert "--extended goes with --out DIR" in capsys.readouterr().err
