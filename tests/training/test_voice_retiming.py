"""Speech re-timed as a policy writes: what is held, how long, and what is learned from it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from echostream.config import to_dict
from echostream.training.corpus.synthesis import generator_for
from echostream.training.voice import prosody
from echostream.training.voice.material import read_utterances
from echostream.training.voice.policy_pieces import Piece, read_pieces
from echostream.training.voice.retiming import (
    RetimingConfig,
    held,
    retime,
    retime_utterance,
    word_borders,
)
from echostream.voice.folder import write_inventory
from echostream.voice.phone_units import PhoneInventory
from tests.evaluation.runs.written import write_speech_run
from tests.training.small_voice import make_trainer, record, write_speech

CONFIG = RetimingConfig(
    policy="", vowel_factor=2, vowel_ms=200, consonant_factor=1.5, word_factor=3
)
SYMBOLS = "^tˈAk ðə bˈɛnd.$"
FRAMES = np.array([28, 4, 2, 8, 4, 2, 3, 4, 2, 5, 2, 10, 8, 4, 12, 2])
PITCH = np.linspace(5.4, 5.0, len(SYMBOLS))
VOICED = np.array([0, 0, 2, 8, 0, 0, 3, 4, 0, 5, 2, 10, 8, 2, 0, 0])
FIRST_MS = (4 + 4 + 2 + 8 + 4) * 12.5  # of the first word, after the pause before a sentence


def retimed(pieces, config=CONFIG):
    return retime(SYMBOLS, FRAMES, PITCH, VOICED, pieces, config)


def write_log(path, utterances):
    lines = [
        {"index": index, "prediction": text, "delays": delays, "source_length": 4000.0}
        for index, (text, delays) in enumerate(utterances)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_words_have_the_space_before_them_and_marks_belong_to_them():
    assert word_borders(SYMBOLS) == [0, 5, 8, len(SYMBOLS)]
    assert word_borders("^$") == [0, 2] and word_borders("^ab$") == [0, 4]
    assert word_borders("^ab — ab — $") == [0, 5, 12]  # a dash is no word, here or at the end


@pytest.mark.parametrize("missing", [1, 5, 8])
def test_a_vowel_is_held_until_the_next_piece_is_there(missing):
    """And then neither anything else nor any longer."""
    made = retimed([Piece(1, FIRST_MS + missing * 12.5), Piece(2, None)])
    added = made.frames - FRAMES
    assert added.sum() == missing and added[3] == missing  # "A", of 8 frames
    assert made.borders == (0, 5, len(SYMBOLS)) and made.held == (0,)
    changed = [SYMBOLS[place] for place in np.flatnonzero(made.log_pitch != PITCH)]
    assert changed == ["A"] and (made.voiced - VOICED == added).all()


def test_what_the_limits_do_not_allow_stays_silence():
    made = retimed([Piece(1, 9000.0), Piece(2, None)])
    assert (made.frames - FRAMES).tolist() == [0, 0, 0, 8, *[0] * 12]  # twice as long, no more
    assert PITCH[3] - 0.01 < made.log_pitch[3] < PITCH[3]  # and hardly lower
    short = retimed([Piece(1, 9000.0), Piece(2, None)], replace(CONFIG, vowel_ms=50.0))
    assert (short.frames - FRAMES).sum() == 4
    word = retimed([Piece(1, 9000.0), Piece(2, None)], replace(CONFIG, word_factor=1.1))
    assert (word.frames - FRAMES).sum() == int(0.1 * FRAMES[:5].sum())


def test_speech_that_waits_is_not_held():
    """The second piece comes while the first is said, and the third while the second is."""
    natural = retimed([Piece(1, 100.0), Piece(1, 200.0), Piece(1, None)])
    assert (natural.frames == FRAMES).all() and (natural.log_pitch == PITCH).all()
    assert natural.held == ()  # so there is nothing to learn of it
    whole = retimed([Piece(3, None)])
    assert (whole.frames == FRAMES).all() and whole.borders == (0, len(SYMBOLS))
    # Time that one piece was held is not there for the next one.
    held_twice = retimed([Piece(1, FIRST_MS + 50.0), Piece(1, 9 * 12.5 + 25.0), Piece(1, None)])
    assert np.flatnonzero(held_twice.frames - FRAMES).tolist() == [3, 7]
    assert (held_twice.frames - FRAMES).sum() == (50 + 25) / 12.5 and held_twice.held == (0, 1)


def test_vowels_come_first_and_stops_never():
    frames = np.array([3, 4, 10, 8, 4])
    assert held("bɛlnd", np.array([3, 4, 10, 8, 4]), 2, CONFIG).tolist() == [0, 2, 0, 0, 0]
    assert held("bɛlnd", frames, 50, CONFIG).tolist() == [0, 4, 5, 4, 0]  # "b" and "d" are stops
    assert held("nɛdæt", frames, 50, CONFIG).tolist() == [0, 4, 0, 8, 0]  # none before a vowel
    assert held("nɛdæt", frames, 9, CONFIG).tolist() == [0, 1, 0, 8, 0]  # the last vowel first
    for nothing in ("", "st", " ,"):
        assert not held(nothing, np.full(len(nothing), 4), 50, CONFIG).any()
    assert not held("bɛlnd", frames, -3, CONFIG).any()


def test_pieces_must_have_the_words():
    with pytest.raises(ValueError, match=r"must have the 3 words of .*, got \[1, 1\]"):
        retimed([Piece(1, 10.0), Piece(1, None)])


def test_pieces_come_from_the_log_of_a_run(tmp_path):
    path = write_log(
        tmp_path / "instances.log",
        [("A cat sat", [640.0, 960.0, 960.0]), ("", []), ("yes", [900.0])],
    )
    policy = read_pieces(path)
    assert policy.followed == (Piece(1, 320.0),)
    # The same sentence, and one with more words than the log heard.
    rng = np.random.default_rng(0)
    assert policy.of("a cat, sat!", 3, rng) == (Piece(1, 320.0), Piece(2, None))
    assert policy.of("a cat, sat!", 2, rng) == (Piece(1, 320.0), Piece(1, None))
    assert policy.of("something else", 0, rng) == ()
    other = read_pieces(write_log(tmp_path / "other.log", [("a b", [640.0, 1280.0])]))
    assert policy.fingerprint == read_pieces(path).fingerprint != other.fingerprint


def test_pieces_are_drawn_by_seed_and_utterance(tmp_path):
    times = [[320.0 * (step // size) for step in range(12)] for size in (1, 2, 3)]
    log = write_log(tmp_path / "instances.log", [(" ".join("abcdefghijkl"), t) for t in times])
    policy = read_pieces(log)
    drawn = [policy.of("x", 9, generator_for(1, "policy", i)) for i in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 2
    for pieces in drawn:
        assert sum(piece.words for piece in pieces) == 9
        assert pieces[-1].gap_ms is None and None not in {p.gap_ms for p in pieces[:-1]}
    utterance = next(iter(read_utterances(write_speech(tmp_path / "speech", 2))))
    borders = [retime_utterance(utterance, policy, CONFIG, seed).borders for seed in (1, 1, 2, 3)]
    assert borders[0] == borders[1] and len(set(borders)) > 1


@pytest.mark.parametrize(
    ("utterance", "message"),
    [
        (("a b", [320.0]), "utterance 0: expected one delay per word, got 2 words and 1 delays"),
        (("a b", [640.0, 320.0]), r"delays must be numbers that never fall, got \[640.0, 320.0\]"),
        (("a b", ["x", 320.0]), r"delays must be numbers that never fall, got \['x'"),
        ((None, [320.0]), "expected a text 'prediction' .* got None"),
        (("a b", [320.0, 320.0]), "needs an utterance of several pieces, got 1 with words"),
    ],
)
def test_logs_without_times_of_words_are_named(tmp_path, utterance, message):
    path = write_log(tmp_path / "instances.log", [utterance])
    with pytest.raises(ValueError, match=message) as refused:
        read_pieces(path)
    assert str(path) in str(refused.value)


def test_logs_of_speech_are_refused(tmp_path):
    path = write_speech_run(tmp_path / "run") / "instances.log"
    with pytest.raises(ValueError, match="utterance 0: .* this is speech in 3 segments"):
        read_pieces(path)
    with pytest.raises(FileNotFoundError, match="no SimulEval log"):
        read_pieces(tmp_path / "instances.log")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0.0}, "share must be in .0, 1., got 0.0"),
        ({"vowel_factor": 0.5}, "vowel_factor must be at least 1, got 0.5"),
        ({"fall": -1.0}, "fall must not be negative, got -1.0"),
    ],
)
def test_limits_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def slow_log(tmp_path_factory):
    """A policy of a word at a time, seconds apart."""
    return write_log(
        tmp_path_factory.mktemp("log") / "instances.log", [("x y z", [0.0, 4000.0, 8000.0])]
    )


def retiming_trainer(speech, log, share, updates=80, inventory=None):
    trainer, _ = make_trainer(speech, updates, inventory)
    policy = read_pieces(log)
    config = replace(CONFIG, policy=policy.fingerprint, share=share)
    trainer.config = replace(trainer.config, retiming=config)
    training = [u for u in read_utterances(speech) if u.split == "train"]
    trainer.material = [
        replace(row, retimed=retime_utterance(utterance, policy, config, 1))
        for row, utterance in zip(trainer.material, training, strict=True)
    ]
    return trainer


def test_the_network_learns_to_hold_where_a_piece_ends(tmp_path, slow_log):
    """The same vowel, inside a sentence and as the last one of a piece."""
    lines = [record(f"train_{n}", " ".join(["ba"] * (2 + n % 4))) for n in range(12)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    inventory = PhoneInventory(tuple(" $^abc"), (150.0,))
    trainer = retiming_trainer(tmp_path, slow_log, 1.0, 150, inventory)
    for _ in range(150):
        trainer.step()
    trainer.network.eval()
    whole = trainer.network.predict((), inventory.indices("^ba ba ba$")).frames
    piece = trainer.network.predict(inventory.indices("^ba"), inventory.indices(" ba")).frames
    assert piece[2] > 1.4 * whole[5] and whole[5] < 10  # "a", of 8 frames
    assert piece[1] == pytest.approx(whole[4], rel=0.25)  # "b" before it, of 4


def test_pieces_that_speech_follows_at_once_are_cut_as_ever(speech, slow_log):
    policy = read_pieces(slow_log)
    row = make_trainer(speech)[0].material[0]
    assert prosody.policy_piece(row, 8, np.random.default_rng(0)) is None
    utterance = next(u for u in read_utterances(speech) if u.split == "train")
    made = retime_utterance(utterance, policy, CONFIG, 1)
    none = replace(row, retimed=replace(made, held=()))
    assert prosody.policy_piece(none, 8, np.random.default_rng(0)) is None
    rng = np.random.default_rng(0)
    pieces = [prosody.policy_piece(replace(row, retimed=made), 8, rng) for _ in range(30)]
    expected = {(made.borders[place], made.borders[place + 1]) for place in made.held}
    assert {cut[1:] for _, cut in pieces} == expected != set()
    assert all(max(begin - 8, 0) == first for _, (first, begin, _) in pieces)
    assert (pieces[0][0].frames == made.frames).all()


def test_short_pieces_count_as_much_as_whole_utterances():
    """A piece of one symbol and one of three, whose log lengths are 1 and 0 wrong."""
    frames = torch.tensor([[np.e, 1.0, 1.0], [1.0, 1.0, 1.0]])
    inside = torch.tensor([[True, False, False], [True, True, True]])
    pieces = prosody.Pieces(inside.long(), inside, frames, frames.log(), inside.float())

    def silent(symbols):
        return torch.zeros(symbols.shape), torch.zeros(symbols.shape)

    assert [x.item() for x in prosody.losses(silent, pieces)] == pytest.approx([0.25, 0.25])
    alike = prosody.losses(silent, pieces, alike=True)
    assert [x.item() for x in alike] == pytest.approx([0.5, 0.5])


def test_resuming_wants_the_same_policy_and_share(tmp_path, speech, slow_log):
    straight = retiming_trainer(speech, slow_log, 0.5)
    history = [straight.step() for _ in range(6)]
    first = retiming_trainer(speech, slow_log, 0.5)
    for _ in range(3):
        first.step()
    first.save(tmp_path / "c.safetensors")
    second = retiming_trainer(speech, slow_log, 0.5)
    second.restore(tmp_path / "c.safetensors")
    assert [second.step() for _ in range(3)] == history[3:]
    for other in (retiming_trainer(speech, slow_log, 1.0), make_trainer(speech)[0]):
        with pytest.raises(ValueError, match="was trained with retiming = .*'share': 0.5.* now it"):
            other.restore(tmp_path / "c.safetensors")


def test_checkpoints_from_before_there_was_retiming_go_on(tmp_path, speech, monkeypatch):
    first, _ = make_trainer(speech)
    first.step()
    with monkeypatch.context() as patch:
        patch.setattr(
            prosody,
            "to_dict",
            lambda config: {k: v for k, v in to_dict(config).items() if k != "retiming"},
        )
        first.save(tmp_path / "c.safetensors")
    second, _ = make_trainer(speech)
    second.restore(tmp_path / "c.safetensors")
    assert second.update == 1


def test_the_command_retimes(tmp_path, speech, slow_log, capsys):
    symbols = tmp_path / "inventory.json"
    write_inventory(symbols, PhoneInventory(tuple(" $^abc"), (150.0,)))
    arguments = ["--speech", str(speech), "--inventory", str(symbols), "--updates", "2"]
    arguments += ["--batch-size", "2", "--every", "1"]
    retiming = ["--retime", str(slow_log), "--retime-share", "0.5"]
    assert prosody.main([*arguments, "--out", str(tmp_path / "a"), *retiming]) == 0
    assert prosody.main([*arguments, "--out", str(tmp_path / "a"), *retiming]) == 0
    with pytest.raises(SystemExit):
        prosody.main([*arguments, "--out", str(tmp_path / "a")])
    assert "was trained with retiming" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prosody.main([*arguments, "--out", str(tmp_path / "b"), "--retime-share", "0.5"])
    assert "--retime-share needs --retime" in capsys.readouterr().err
    retiming[-1] = "1.5"
    with pytest.raises(SystemExit):
        prosody.main([*arguments, "--out", str(tmp_path / "b"), *retiming])
    assert "share must be in (0, 1], got 1.5" in capsys.readouterr().err
