"""Talks: plans, layout, noise floor, files."""

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echostream.training.corpus import synthesis, talks
from echostream.training.corpus.make_corpus import DATA, ROOT, main
from echostream.training.corpus.speakers import speakers_of
from echostream.training.corpus.talk_files import build_talks, read_sentences, write_shipped_talk
from echostream.training.corpus.talks import (
    DEMO_SET,
    TALK_SETS,
    TalkSet,
    mix,
    plan_talks,
    trim_silence,
)
from echostream.training.corpus.text_files import normalize, read_texts

TINY = {
    "test_talks": TalkSet("t", "test", 2, (3, 4)),
    "test_talks_nopause": TalkSet("t", "test", 2, (3, 4), (0, 0)),
    "test_talks_sentences": TalkSet("t", "test", 2, (3, 4), alone=True),
}

needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"
)


@pytest.fixture(scope="module")
def splits():
    return read_texts(DATA)


@pytest.fixture
def spoken(monkeypatch):
    """Noise stands in for speech: as long as its text, a little silence at the edges trimmed."""
    calls = []

    def speak(utterance, who, seed):
        calls.append((utterance.id, who))
        rng = synthesis.generator_for(seed, utterance.id, who)
        return 0.3 * rng.standard_normal(160 * len(utterance.src_text)).astype(np.float32)

    monkeypatch.setattr(talks, "speak", speak)
    for name in ("require_synthesizers", "require_voices"):
        monkeypatch.setattr(synthesis, name, lambda *args: None)
    return calls


@pytest.mark.parametrize("name", TALK_SETS)
def test_plans_keep_to_their_set(splits, name):
    talk_set = TALK_SETS[name]
    plan = plan_talks(name, talk_set, splits[talk_set.split], 1)
    assert plan == plan_talks(name, talk_set, splits[talk_set.split], 1)
    assert plan != plan_talks(name, talk_set, splits[talk_set.split], 2)
    assert len({talk.id for talk in plan}) == len(plan)
    low, high = (1, 1) if talk_set.alone else talk_set.sentences
    known = {one.id for one in speakers_of(talk_set.split)}
    for talk in plan:
        assert talk.speaker in known and talk.id.startswith(f"{name}_")
        assert low <= len(talk.utterances) <= high
        assert len(talk.pauses_ms) == len(talk.utterances) - 1
        assert all(talk_set.pause_ms[0] <= p <= talk_set.pause_ms[1] for p in talk.pauses_ms)
        assert max(talk.peaks_db) - min(talk.peaks_db) <= 4 and max(talk.peaks_db) <= -2
        assert 25 <= talk.snr_db <= 40
        assert {one.split for one in talk.utterances} == {talk_set.split}


def test_test_talks_use_all_speakers_and_sentences_evenly(splits):
    plan = plan_talks("test_talks", TALK_SETS["test_talks"], splits["test"], 1)
    assert len(plan) == 20
    speakers = Counter(talk.speaker for talk in plan)
    assert set(speakers) == {one.id for one in speakers_of("test")}
    assert max(speakers.values()) - min(speakers.values()) <= 1
    said = Counter(one.id for talk in plan for one in talk.utterances)
    assert set(said) == {one.id for one in splits["test"]}
    assert max(said.values()) - min(said.values()) <= 2
    assert all(len(set(talk.utterances)) == len(talk.utterances) for talk in plan)


def test_sets_of_one_base_differ_in_pauses_only(splits):
    plans = {
        name: plan_talks("x", TALK_SETS[name], splits["test"], 1)
        for name in ("test_talks", "test_talks_nopause", "test_talks_pauses")
    }
    for drawn, none, longer in zip(*plans.values(), strict=True):
        assert not any(none.pauses_ms) and any(drawn.pauses_ms)
        for talk in (none, longer):
            assert dataclasses.replace(talk, pauses_ms=drawn.pauses_ms) == drawn
    alone = plan_talks("x", TALK_SETS["test_talks_sentences"], splits["test"], 1)
    assert [talk.utterances[0] for talk in alone] == [
        one for talk in plans["test_talks"] for one in talk.utterances
    ]
    assert [talk.peaks_db[0] for talk in alone] == [
        peak for talk in plans["test_talks"] for peak in talk.peaks_db
    ]


def test_the_hour_ends_with_the_sentences_of_its_beginning(splits):
    [hour] = plan_talks("test_hour", TALK_SETS["test_hour"], splits["test"], 1)
    tenth = -(-len(hour.utterances) // 10)
    first, last = hour.utterances[:tenth], hour.utterances[-tenth:]
    assert Counter(first) == Counter(last) and first != last
    assert len(set(hour.utterances)) == len(splits["test"])


def test_few_sentences_are_said_again(splits):
    [talk] = plan_talks("t", TalkSet("t", "test", 1, (9, 9)), splits["test"][:4], 1)
    assert sorted(Counter(talk.utterances).values()) == [2, 2, 2, 3]
    with pytest.raises(ValueError, match="talks 't' need sentences of split 'test', got none"):
        plan_talks("t", TalkSet("t", "test", 1, (9, 9)), [], 1)


def test_silence_is_trimmed_to_whole_windows():
    speech = np.zeros(16000, dtype=np.float32)
    speech[3000:9000] = 0.5 * np.sin(np.arange(6000) / 5)
    speech[9000:16000] = 1e-4  # what a synthesiser leaves behind
    trimmed = trim_silence(speech)
    assert len(trimmed) % 160 == 0
    np.testing.assert_array_equal(trimmed, speech[2880:9120])


def test_one_noise_floor_runs_through(splits):
    [talk] = plan_talks("t", TalkSet("t", "test", 1, (5, 5), (400, 900)), splits["test"], 1)
    rng = np.random.default_rng(0)
    speech = [rng.uniform(-1, 1, 1600 * length).astype(np.float32) for length in (5, 8, 3, 6, 4)]
    samples, rows = mix(talk, speech, 1)
    assert rows[0].start_ms == talk.lead_ms
    assert len(samples) == 16 * (rows[-1].end_ms + talk.tail_ms)
    for row, after, pause_ms in zip(rows, rows[1:], talk.pauses_ms, strict=False):
        assert after.start_ms - row.end_ms == pause_ms
    voiced = np.zeros(len(samples), dtype=bool)
    for row, sound, peak_db in zip(rows, speech, talk.peaks_db, strict=True):
        piece = samples[16 * row.start_ms : 16 * row.end_ms]
        assert len(piece) == len(sound)
        assert np.abs(piece).max() == pytest.approx(10 ** (peak_db / 20), rel=0.1)
        voiced[16 * row.start_ms : 16 * row.end_ms] = True
    noise = np.mean(samples[~voiced].astype(np.float64) ** 2)
    speech_power = np.mean(samples[voiced].astype(np.float64) ** 2) - noise
    assert 10 * np.log10(speech_power / noise) == pytest.approx(talk.snr_db, abs=0.3)
    # The same floor at both ends and in every pause, and nowhere digital silence.
    for start, end in ((0, talk.lead_ms), (rows[-1].end_ms, len(samples) // 16)):
        level = np.mean(samples[16 * start : 16 * end].astype(np.float64) ** 2)
        assert level == pytest.approx(noise, rel=0.2)


def test_noise_has_no_seams(monkeypatch):
    def floor():
        return np.concatenate(list(talks.noise_floor(5000, 0.9, np.random.default_rng(3))))

    whole = floor()
    monkeypatch.setattr(talks, "_BLOCK", 700)
    np.testing.assert_allclose(floor(), whole, atol=1e-5)
    assert len(whole) == 5000
    power = np.mean([np.mean(np.square(whole[i::5])) for i in range(5)])
    assert power == pytest.approx(1, rel=0.3)


def test_folders_hold_sounds_lists_and_times(tmp_path, splits, spoken):
    build_talks(tmp_path, splits, list(TINY), talk_sets=TINY)
    for name in ("test_talks", "test_talks_nopause"):
        folder = tmp_path / "simuleval" / name
        rows = read_sentences(folder / "sentences.tsv")
        sounds = (folder / "wav_list.txt").read_text().splitlines()
        target, source = (
            (folder / file).read_text(encoding="utf-8").splitlines()
            for file in ("target.txt", "src.txt")
        )
        assert len(sounds) == len(target) == len(source) == 2
        for sound, tgt_text, src_text in zip(sounds, target, source, strict=True):
            said = [row for row in rows if row.talk == Path(sound).stem]
            assert [row.index for row in said] == list(range(1, len(said) + 1))
            assert tgt_text == " ".join(row.tgt_text for row in said)
            assert src_text == " ".join(row.src_text for row in said)
            info = soundfile.info(sound)
            assert (info.samplerate, info.channels) == (16000, 1)
            assert said[-1].end_ms + 1000 <= 1000 * info.duration <= said[-1].end_ms + 3000
        texts = {one.id: one for one in splits["test"]}
        assert all(row.tgt_text == normalize(texts[row.utterance].tgt_text) for row in rows)
    alone = read_sentences(tmp_path / "simuleval" / "test_talks_sentences" / "sentences.tsv")
    joined = read_sentences(tmp_path / "simuleval" / "test_talks" / "sentences.tsv")
    assert [row.utterance for row in alone] == [row.utterance for row in joined]
    assert [row.end_ms - row.start_ms for row in alone] == [
        row.end_ms - row.start_ms for row in joined
    ]


def test_finished_talks_are_kept_and_others_made_again(tmp_path, splits, spoken):
    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    build_talks(tmp_path, splits, ["test_talks"], talk_sets=TINY)
    before, count = files(), len(spoken)
    build_talks(tmp_path, splits, ["test_talks"], talk_sets=TINY)
    assert len(spoken) == count
    sounds = sorted(tmp_path.rglob("*.flac"))
    sounds[0].with_suffix(".tsv").unlink()
    sounds[1].unlink()
    build_talks(tmp_path, splits, ["test_talks"], talk_sets=TINY)
    assert len(spoken) == 2 * count and files() == before
    other = {"test": splits["test"][50:]}
    build_talks(tmp_path, other, ["test_talks"], talk_sets=TINY)
    assert len(spoken) > 2 * count
    with pytest.raises(ValueError, match="begun with seed 1, not 2"):
        build_talks(tmp_path, splits, ["test_talks"], talk_sets=TINY, seed=2)
    with pytest.raises(
        ValueError, match="no such set of talks: 'test_hours'; there are test_talks"
    ):
        build_talks(tmp_path, splits, ["test_hours"])


def test_malformed_sentence_tables_name_file_and_line(tmp_path):
    path = tmp_path / "sentences.tsv"
    path.write_text("a\tb\n")
    with pytest.raises(ValueError, match="sentences.tsv, line 1: columns must be"):
        read_sentences(path)
    path.write_text("\t".join(talks.SENTENCE_COLUMNS) + "\nt\t1\tu\t0\tlong\tx\ty\n")
    with pytest.raises(ValueError, match="sentences.tsv, line 2: malformed row"):
        read_sentences(path)


def test_talks_need_a_folder(capsys):
    with pytest.raises(SystemExit):
        main(["--write-talk", "--talks"])
    assert "--talks makes sound and goes with --out DIR" in capsys.readouterr().err


def test_shipped_talk_is_complete(splits):
    folder = DATA / "talk"
    [plan] = plan_talks("talk", DEMO_SET, splits["test"], 1)
    rows = read_sentences(folder / "sentences.tsv")
    assert [row.utterance for row in rows] == [one.id for one in plan.utterances]
    assert all(200 <= b.start_ms - a.end_ms <= 1000 for a, b in zip(rows, rows[1:], strict=False))
    [sound] = (folder / "wav_list.txt").read_text().splitlines()
    info = soundfile.info(ROOT / sound)
    assert (info.samplerate, info.channels) == (16000, 1)
    assert 80 < info.duration < 100 and 1000 * info.duration > rows[-1].end_ms
    target = (folder / "target.txt").read_text(encoding="utf-8")
    assert target == " ".join(row.tgt_text for row in rows) + "\n"


@needs_espeak
def test_command_speaks_talks(tmp_path, splits):
    arguments = ["--out", str(tmp_path), "--limit", "2", "--talks", "dev_talks", "--jobs", "2"]
    assert main(arguments) == 0
    rows = read_sentences(tmp_path / "simuleval" / "dev_talks" / "sentences.tsv")
    assert {row.utterance for row in rows} == {"dev_00001", "dev_00002"}
    for row in rows:
        assert 500 < row.end_ms - row.start_ms < 10000


@needs_espeak
def test_own_sentences_are_spoken_as_in_the_corpus(splits):
    utterance = splits["test"][0]
    samples = synthesis.synthesize_source(
        utterance.id, utterance.src_text, synthesis_speaker(utterance.speaker), 1
    )
    clean = talks.speak(utterance, utterance.speaker, 1)
    correlation = np.correlate(samples, clean, mode="valid")
    norms = np.linalg.norm(clean) * np.linalg.norm(samples)
    assert correlation.max() / norms > 0.9
    other = talks.speak(utterance, "test02", 1)
    assert len(other) != len(clean)


def synthesis_speaker(name):
    return next(one for one in speakers_of("test") if one.id == name)


@needs_espeak
def test_shipped_talk_is_made_again(tmp_path, splits):
    small = dataclasses.replace(DEMO_SET, sentences=(2, 2))
    write_shipped_talk(tmp_path / "a", tmp_path, small, splits["test"], 1)
    write_shipped_talk(tmp_path / "b", tmp_path, small, splits["test"], 1)
    assert (tmp_path / "a/talk.flac").read_bytes() == (tmp_path / "b/talk.flac").read_bytes()
    assert (tmp_path / "a/wav_list.txt").read_text() == "a/talk.flac\n"
