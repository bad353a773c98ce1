"""Speech as heard: cut at pauses, recognised once, and put back on the clock of the source."""

import json
import types

import numpy as np
import pytest
import soundfile

pytest.importorskip("omnisteval")

from echostream.cli import main  # noqa: E402
from echostream.evaluation.longform import spoken  # noqa: E402
from echostream.evaluation.longform.spoken import (  # noqa: E402
    Playback,
    Recognition,
    find_stretches,
    recognize_speech,
)
from echostream.evaluation.longform.talk_report import TalkRun, talk_figures  # noqa: E402
from echostream.evaluation.longform.talk_scores import read_sentences  # noqa: E402
from echostream.evaluation.recognizers.words import RecognizedWord  # noqa: E402
from echostream.evaluation.runs.run_folder import load_run  # noqa: E402
from tests.evaluation.longform.talks import (  # noqa: E402
    SENTENCES,
    write_run,
    write_sentences_alone,
)

RATE = 16000


def talk(*parts, rate=RATE):
    """Sound of given seconds, silent where they are negative."""
    rng = np.random.default_rng(1)
    pieces = [
        np.zeros(int(-s * rate)) if s < 0 else 0.1 * rng.standard_normal(int(s * rate))
        for s in parts
    ]
    return np.concatenate(pieces).astype(np.float32)


@pytest.mark.parametrize("rate", [16000, 22050])
def test_speech_is_cut_at_its_pauses(rate):
    samples = talk(-0.5, 1.0, -0.3, 1.0, -1.0, 2.0, -3.0, 0.5, rate=rate)
    found = [(start / rate, stop / rate) for start, stop in find_stretches(samples, rate)]
    assert np.allclose(found, [(0.3, 3.0), (3.6, 6.0), (8.6, 9.3)], atol=0.025)


def test_speech_without_a_pause_is_cut_where_it_is_quietest():
    assert find_stretches(talk(19.9), RATE) == [(0, int(19.9 * RATE))]
    short_pause = talk(12.0, -0.1, 12.0)
    found = find_stretches(short_pause, RATE)
    assert len(found) == 2 and found[0][1] == found[1][0] == pytest.approx(12.05 * RATE, abs=160)
    samples = talk(50.0)
    samples[30 * RATE : 30 * RATE + 1600] *= 0.3
    found = find_stretches(samples, RATE)
    assert found[0][0] == 0 and found[-1][1] == len(samples)
    assert all(a[1] == b[0] for a, b in zip(found, found[1:], strict=False))
    assert max(stop - start for start, stop in found) <= 20.0 * RATE
    assert any(abs(stop - 30.05 * RATE) < 1600 for _, stop in found)


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros(RATE, np.float32)])
def test_where_nothing_is_heard_nothing_is_cut(samples):
    assert find_stretches(samples, RATE) == []


def test_samples_of_the_wav_have_their_time_on_the_sources_clock():
    item = types.SimpleNamespace(
        delays=[1000.0, 1320.0, 4000.0], elapsed=[1010.0, 1350.0, 4600.0],
        durations=[500.0, 100.0, 1000.0],
    )  # fmt: skip
    playback = Playback.of(item, 1000)
    # 500 ms of the first piece, 100 of the second right behind it, then silence up to 4000.
    assert playback.times(0) == (1000, 1010)
    assert playback.times(499) == (1499, 1509)
    assert playback.times(550) == (1550, 1560)
    assert playback.times(3000) == (4000, 4570)
    assert playback.times(3500) == (4500, 5070)
    # In the silence: as long after what was heard last, but not after what comes next.
    assert playback.times(1000) == (2000, 2010)
    item.elapsed = []
    assert Playback.of(item, 1000).times(550) == (1550, None)


class Fake:
    """Hears one word a stretch, at its end: how many tenths of a second it lasts."""

    name, sample_rate = "fake", RATE
    calls = 0

    def transcribe_words(self, samples):
        Fake.calls += 1
        heard = 1000 * (len(samples) / RATE - 0.2)
        return [RecognizedWord(f"W{round(heard / 100)}", 0.0, heard)]


@pytest.fixture
def fake(monkeypatch):
    Fake.calls = 0
    monkeypatch.setattr(spoken, "load_recognizer", lambda spec, **options: Fake())
    return Recognition("pocketsphinx")


def speak(run, rate=RATE):
    """The wavs of a run, a piece of loud noise for each piece of speech."""
    for item in run.utterances:
        parts, end = [], item.delays[0]
        for delay, duration in zip(item.delays, item.durations, strict=True):
            parts += [-max(delay - end, 0) / 1000, duration / 1000]
            end = max(delay, end) + duration
        item.wav_path.parent.mkdir(exist_ok=True)
        soundfile.write(item.wav_path, talk(*parts, rate=rate), rate)
    return run


def test_words_are_heard_when_they_have_been_played(tmp_path, fake):
    run = speak(write_run(tmp_path / "run", SENTENCES, compute_ms=30.0))
    heard = recognize_speech(run, fake)
    assert list(heard) == [0] and len(heard[0]) == len(SENTENCES)
    assert {word.text for word in heard[0]} == {"w10", "w12"}
    for number, word in enumerate(heard[0]):
        # Each second of speech begins with its decision; stretches keep 200 ms of silence.
        assert word.time_ms == pytest.approx(4000 * number + 3000 + 1000, abs=205)
        assert word.elapsed_ms == pytest.approx(word.time_ms + 30)


def test_what_was_recognised_is_kept(tmp_path, fake):
    run = speak(write_run(tmp_path / "run", SENTENCES))
    first = recognize_speech(run, fake)
    assert Fake.calls == 10
    path = run.path / spoken.WORDS_FILE
    # Killed in the middle of a line: the rest is recognised again, the beginning is not.
    path.write_text(path.read_text()[: len(path.read_text()) // 2])
    kept = sum(1 for line in path.read_text().splitlines() if line.endswith("]]}"))
    assert recognize_speech(run, fake) == first and Fake.calls == 20 - kept and 3 <= kept <= 5
    assert recognize_speech(run, fake) == first and Fake.calls == 20 - kept
    # Other speech in the same place, or another recogniser, is something else.
    recognize_speech(run, Recognition("whisper:base"))
    assert Fake.calls == 30 - kept
    samples, rate = soundfile.read(run.utterances[0].wav_path)
    soundfile.write(run.utterances[0].wav_path, 0.5 * samples, rate)
    recognize_speech(run, fake)
    assert Fake.calls == 40 - kept


def test_runs_that_cannot_be_heard_are_named(tmp_path, listed, fake):  # noqa: F811
    run = write_run(tmp_path / "run", SENTENCES)
    with pytest.raises(ValueError, match="utterance 0 spoke, but .*0_pred.wav is missing"):
        recognize_speech(run, fake)
    (run.path / "instances.log").write_text(
        json.dumps(
            {
                "index": 0, "prediction": "a b", "delays": [1.0, 2.0], "elapsed": [1.0, 2.0],
                "prediction_length": 2, "reference": "a b", "source": ["talk_01.wav"],
                "source_length": 40000.0,
            }
        )
    )  # fmt: skip
    text = load_run(run.path)
    with pytest.raises(ValueError, match="holds no speech"):
        recognize_speech(text, fake)
    # In a table, text stands beside speech that was recognised.
    trace = run.path / "trace.jsonl"
    lines = [{**json.loads(line), "samples": 0} for line in trace.read_text().splitlines()]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = talk_figures(TalkRun(text, read_sentences(listed)), fake)
    assert figures["bleu"] == pytest.approx(100) and figures["asr_model"] is None


class Perfect(Fake):
    """Hears what the stretch's loudness says: the number of the sentence that is spoken."""

    def transcribe_words(self, samples):
        number = round(float(np.abs(samples).max()) * 20) - 1
        words = SENTENCES[number].split()
        return [RecognizedWord(word, 0.0, 200 + 100.0 * i) for i, word in enumerate(words)]


@pytest.fixture
def perfect(monkeypatch):
    monkeypatch.setattr(spoken, "load_recognizer", lambda spec, **options: Perfect())
    monkeypatch.setattr(
        spoken, "QUIET_DB", -60.0
    )  # sentences are told apart by level, from -26 to -6 dB


def speak_numbers(run):
    """Sentence i is a square wave of amplitude (i + 1) / 20."""
    for number, item in enumerate(run.utterances):
        numbers = range(len(item.delays)) if len(item.delays) > 1 else [number]
        parts, end = [], item.delays[0]
        for i, delay, duration in zip(numbers, item.delays, item.durations, strict=True):
            parts.append(np.zeros(int(RATE * max(delay - end, 0) / 1000)))
            wave = np.where(np.arange(int(RATE * duration / 1000)) // 40 % 2, 1.0, -1.0)
            parts.append((i + 1) / 20 * wave)
            end = max(delay, end) + duration
        item.wav_path.parent.mkdir(exist_ok=True)
        soundfile.write(item.wav_path, np.concatenate(parts), RATE, subtype="FLOAT")
    return run


def test_speech_as_heard_is_scored_like_text(tmp_path, listed, perfect, capsys):  # noqa: F811
    run = speak_numbers(write_run(tmp_path / "run", SENTENCES))
    alone = speak_numbers(write_sentences_alone(tmp_path / "alone", SENTENCES))
    both = TalkRun(
        run, read_sentences(listed), (alone, read_sentences(alone.path / "sentences.tsv"))
    )
    figures = talk_figures(both, Recognition("pocketsphinx"))
    assert figures["asr_bleu"] == pytest.approx(100) == figures["alone_asr_bleu"]
    assert figures["asr_bleu_ratio"] == figures["asr_word_ratio"] == 1
    assert figures["asr_model"] == "pocketsphinx"
    # The seven words of a sentence come 100 ms apart, the first 200 ms into the stretch (which
    # begins with the speech but for the first one's edge); they would come 3/7 s apart.
    late = 3000 + 200 + 3 * 100 - 3 * 3000 / 7 - 0.9 * 200
    assert figures["asr_long_yaal_ms"] == pytest.approx(late, abs=25)
    assert figures["asr_long_yaal_ca_ms"] == pytest.approx(late + 10, abs=25)
    assert figures["alone_asr_long_yaal_ms"] == pytest.approx(3000 + 500 - 3 * 3000 / 7, abs=25)
    command = ["talks", str(run.path), "--sentences", str(listed), "--asr-model", "pocketsphinx"]
    assert main([*command, "--output", str(tmp_path / "tables")]) == 0
    printed = capsys.readouterr().out
    assert "| ASR-BLEU, re-segmented | 100.0 |" in printed
    assert "Recogniser: pocketsphinx." in printed
    again = speak_numbers(write_run(tmp_path / "again", SENTENCES[::-1]))
    assert main([*command[:1], str(again.path), *command[1:], "--bootstrap", "20"]) == 0
    printed = capsys.readouterr().out
    assert "Paired bootstrap on ASR-BLEU" in printed and "| 2: run | 100.00 |" in printed
    assert main([*command, "--jobs", "0"]) == 2


@pytest.mark.slow
def test_two_processes_hear_what_one_hears(tmp_path, monkeypatch):
    pytest.importorskip("pocketsphinx")
    run = speak(write_run(tmp_path / "run", SENTENCES[:2]))
    alone = recognize_speech(run, Recognition("pocketsphinx"))
    (run.path / spoken.WORDS_FILE).unlink()
    assert recognize_speech(run, Recognition("pocketsphinx", jobs=2)) == alone
