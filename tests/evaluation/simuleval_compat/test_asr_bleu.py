"""ASR-BLEU of spoken references, with missing, silent and gap-filled speech."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas
import pytest
import sacrebleu
import soundfile

from echostream.evaluation.runs.logged_instances import read_instances
from echostream.evaluation.runs.transcripts import (
    SpeechLayoutError,
    remove_inserted_silence,
    transcribe_run,
)
from echostream.evaluation.simuleval_compat import quality
from echostream.evaluation.text_scores import (
    bleu,
    plain_bleu,
    plain_word_error_rate,
    word_error_rate,
)
from echostream.text import edit_distance
from tests.evaluation.conftest import Corpus, run_in_process

RATE = 16000
SENTENCES = """\
the weather is very nice today
she went to the market this morning
we are waiting for the next train
he lives in a small house near the river
they have two children and a dog
i would like a cup of coffee please
the meeting will start at nine o'clock
my brother works in a large hospital
please open the window and close the door
the book is on the table in the kitchen""".split("\n")


def spoken_run(folder: Path, sentences: list[str]) -> Path:
    """A run whose speech is Flite reading the references."""
    pytest.importorskip("pocketsphinx")
    if shutil.which("flite") is None:
        pytest.skip("flite is not installed")
    (folder / "wavs").mkdir(parents=True)
    lines = []
    for index, sentence in enumerate(sentences):
        wav = folder / "wavs" / f"{index}_pred.wav"
        subprocess.run(["flite", "-voice", "slt", "-t", sentence, "-o", str(wav)], check=True)
        duration = 1000 * soundfile.info(wav).duration
        lines.append(log_line(index, wav, sentence, [1000.0], [duration]))
    (folder / "instances.log").write_text("".join(lines))
    return folder


def log_line(
    index: int, wav: Path, reference: str, delays: list[float], durations: list[float]
) -> str:
    return (
        json.dumps(
            {
                "index": index,
                "prediction": str(wav),
                "delays": delays,
                "durations": durations,
                "elapsed": delays,
                "source_length": 4000.0,
                "reference": reference,
                "source": "",
            }
        )
        + "\n"
    )


def asr_bleu(folder: Path, **options: str) -> float:
    instances = dict(enumerate(read_instances(folder / "instances.log")))
    return quality.AsrBleuScorer(**options)(instances)


@pytest.mark.slow
def test_ceiling_of_pocketsphinx_on_flite_speech(tmp_path: Path) -> None:
    folder = spoken_run(tmp_path / "run", SENTENCES)
    score = asr_bleu(folder)
    logging.getLogger(__name__).warning("pocketsphinx on Flite: %.2f", score)
    assert score > 50


def test_missing_and_silent_speech_lower_the_score(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = spoken_run(tmp_path / "run", SENTENCES[1:3])
    whole = asr_bleu(folder)
    transcripts = (folder / "asr_transcripts.txt").read_text().splitlines()
    assert len(transcripts) == 2 and all(transcripts)
    # The score is sacrebleu's with its defaults on the lower-cased transcripts.
    assert whole == sacrebleu.corpus_bleu(transcripts, [SENTENCES[1:3]]).score
    assert whole > 50

    wav = folder / "wavs" / "1_pred.wav"
    samples, rate = soundfile.read(wav)
    soundfile.write(wav, np.zeros_like(samples), rate)
    silenced = asr_bleu(folder)
    assert silenced < whole
    assert "1 of 2 utterances have a wav without sound" in caplog.text
    soundfile.write(wav, samples[:0], rate)
    assert asr_bleu(folder) == silenced
    wav.unlink()
    assert asr_bleu(folder) < whole
    assert "1 of 2 utterances have no wav and count as empty hypotheses: 1" in caplog.text
    report = json.loads((folder / "asr_transcripts.json").read_text())
    assert report["missing"] == [1] and report["recognizer"] == "pocketsphinx"
    assert (folder / "asr_transcripts.txt").read_text().split("\n")[1] == ""


def test_transcripts_do_not_depend_on_the_order(tmp_path: Path) -> None:
    folder = spoken_run(tmp_path / "run", SENTENCES[:2])
    instances = read_instances(folder / "instances.log")
    forward = transcribe_run(instances, folder, spec="pocketsphinx").texts
    backward = transcribe_run(instances[::-1], folder, spec="pocketsphinx").texts
    assert forward == backward[::-1]


@pytest.mark.parametrize("rate", [16000, 22050])
def test_inserted_silence_is_cut_exactly(
    rate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What SimulEval writes, minus its silence, is what the agent wrote, sample for sample."""
    import argparse

    from simuleval.evaluator.instance import SpeechToSpeechInstance

    from echostream.evaluation import simuleval_compat

    simuleval_compat.apply()
    generator = np.random.default_rng(0)
    instance = SpeechToSpeechInstance.__new__(SpeechToSpeechInstance)
    instance.index, instance.reference = 0, "a"
    instance.args = argparse.Namespace(output=str(tmp_path))
    instance.dataloader = argparse.Namespace(get_source_audio_path=lambda index: "a.wav")
    instance.sample_list, instance.sample_rate_value = [0.0] * rate, rate
    instance.target_sample_rate, instance.elapsed = rate, []
    lengths = [311, 4801, 2000, 17, 900]
    # A piece of true zeros: the system's own pause, which must survive.
    pieces = [np.round(generator.uniform(-0.5, 0.5, n) * 32768) / 32768 for n in lengths]
    pieces[2][:] = 0.0
    instance.prediction_list = [piece.tolist() for piece in pieces]
    instance.durations = [1000 * n / rate for n in lengths]
    instance.delays = [320.0, 333.3, 960.0, 1280.1, 2500.7]
    instance.summarize()
    samples, _ = soundfile.read(tmp_path / "wavs" / "0_pred.wav", dtype="float32")
    assert len(samples) > sum(lengths)
    cut = remove_inserted_silence(samples, rate, instance.delays, instance.durations)
    np.testing.assert_array_equal(cut, np.concatenate(pieces).astype(np.float32))
    with pytest.raises(SpeechLayoutError, match="the wav has"):
        remove_inserted_silence(samples[:-5], rate, instance.delays, instance.durations)


def test_no_silence_figure_is_nan_when_wav_and_log_disagree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pocketsphinx")
    (tmp_path / "wavs").mkdir()
    wav = tmp_path / "wavs" / "0_pred.wav"
    soundfile.write(wav, np.zeros(1000), RATE)
    (tmp_path / "instances.log").write_text(log_line(0, wav, "a", [0.0], [500.0]))
    instances = dict(enumerate(read_instances(tmp_path / "instances.log")))
    assert np.isnan(quality.AsrBleuNoSilenceScorer()(instances))
    assert "0_pred.wav: the log describes 8000 samples" in caplog.text


def test_the_command_reports_both_figures_and_the_recogniser(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pocketsphinx")
    output = tmp_path / "out"
    arguments = ("--quality-metrics", "ASR_BLEU", "--asr-model", "pocketsphinx")
    run_in_process(small_corpus.arguments(output, *arguments), monkeypatch)
    table = pandas.read_csv(output / "scores.tsv", sep="\t")
    assert list(table.columns[:4]) == ["ASR_BLEU", "ASR_BLEU_NOSIL", "ASR_MODEL", "AL"]
    assert table["ASR_MODEL"][0] == "pocketsphinx"
    assert len((output / "asr_transcripts.txt").read_text().splitlines()) == 3
    assert len((output / "asr_transcripts.nosil.txt").read_text().splitlines()) == 3
    assert json.loads((output / "asr_transcripts.json").read_text())["missing"] == [2]


def test_an_unknown_recogniser_is_an_error(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--quality-metrics", "ASR_BLEU", "--asr-model", "kaldi")
    with pytest.raises(ValueError, match="unknown recogniser 'kaldi'"):
        run_in_process(small_corpus.arguments(tmp_path / "out", *arguments), monkeypatch)
    # Found before any speech was synthesised, not after.
    assert not (tmp_path / "out" / "instances.log").exists()


def test_word_error_rate() -> None:
    assert edit_distance("a b c".split(), "a x c d".split()) == 2
    assert word_error_rate(["a b c", ""], ["a x c d", "e"]) == pytest.approx(60.0)
    assert word_error_rate(["a b", "a"], ["a", "a"]) == pytest.approx(50.0)
    assert np.isnan(word_error_rate(["a"], [""]))


def test_plain_bleu_ignores_what_is_not_heard() -> None:
    said, meant = ["It's 12:30, Se\u00f1or L\u00f3pez!"], ["its 1230 senor lopez"]
    assert plain_bleu(said, meant) == pytest.approx(100.0)
    assert bleu(said, meant) < 10


def test_plain_word_errors_ignore_what_is_not_heard() -> None:
    score = plain_word_error_rate
    assert score(["El número, ¿está?"], ["el numero esta"]) == 0.0
    assert score(["el re-envío"], ["El re envio"]) == 0.0
    assert score(["el año"], ["el dato"]) == pytest.approx(50.0)
    assert word_error_rate(["El número"], ["el numero"]) == pytest.approx(100.0)


def test_word_error_rate_of_speech_reads_transcripts(tmp_path: Path) -> None:
    folder = spoken_run(tmp_path / "run", SENTENCES[:2])
    instances = dict(enumerate(read_instances(folder / "instances.log")))
    assert quality.SCORERS["WER"]()(instances) < 30.0
    assert quality.SCORERS["CHRF"]()(instances) > 70.0
