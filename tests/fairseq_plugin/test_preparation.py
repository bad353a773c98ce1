"""The real-data recipe on a miniature of CVSS-C and CoVoST 2, laid out as they are downloaded."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import tarfile

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
import yaml

from echostream.audio import CMVN, Frontend
from echostream.config import FrontendConfig
from echostream.fairseq_plugin.data_config import DataConfig, load_text_tasks
from echostream.fairseq_plugin.manifest import read_speech_manifest, read_text_manifest
from echostream.fairseq_plugin.source_features import load_features
from echostream.samples import read_audio
from echostream.training.preparation import prepare_cvss, steps
from echostream.training.preparation.cvss import SPLITS, Corpus, normalize_text
from echostream.training.units.extractor import UnitExtractor
from echostream.training.units.kmeans import KMeans
from tests.fairseq_plugin.trainer import run_training

CLIPS = {"train": 12, "dev": 3, "test": 4}
UNITS, VOCAB = 20, 31
SPANISH = "la casa blanca está cerca del río, ¡qué día! el perro come pan y bebe agua fría".split()
ENGLISH = "the white house is near the river what a day the dog eats bread and drinks".split()


def tone(rng, seconds, rate):
    """Gliding tones, so that units differ."""
    time = np.arange(int(seconds * rate)) / rate
    pitch = np.interp(time, [0, seconds / 2, seconds], [rng.uniform(200, 900) for _ in range(3)])
    wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / rate)
    noise = np.random.default_rng(rng.randrange(9999)).normal(0, 0.01, len(time))
    return (wave + noise).astype(np.float32)


@pytest.fixture
def downloaded(tmp_path):
    """COVOST and CVSS folders; the CoVoST table still packed, as it comes."""
    rng = random.Random(3)
    covost, cvss = tmp_path / "covost2", tmp_path / "cvss/cvss-c"
    source, target = covost / "es", cvss / "es-en"
    (source / "clips").mkdir(parents=True)
    validated = ["client_id\tpath\tsentence\tup_votes"]
    translations = ["path\ttranslation\tsplit\tclient_id"]
    number = 0
    for split, count in CLIPS.items():
        (target / split).mkdir(parents=True)
        lines = []
        for index in range(count):
            number += 1
            name = f"common_voice_es_{1000 + number}.mp3"
            sentence = " ".join(rng.choices(SPANISH, k=rng.randint(4, 7))).capitalize() + "."
            english = " ".join(rng.choices(ENGLISH, k=rng.randint(4, 7)))
            soundfile.write(source / "clips" / name, tone(rng, 1.6, 48000), 48000, format="MP3")
            soundfile.write(target / split / f"{name}.wav", tone(rng, 1.8, 24000), 24000)
            validated.append(f"client\t{name}\t{sentence}\t2")
            label = "train_covost" if split == "train" and index % 2 else split
            translations.append(f"{name}\tA translation.\t{label}\tclient")
            lines.append(f"{name}\t{english}")
        rng.shuffle(lines)
        (target / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    validated.append("client\tcommon_voice_es_1.mp3\tno translation\t2")
    (source / "validated.tsv").write_text("\n".join(validated) + "\n")
    table = tmp_path / "covost_v2.es_en.tsv"
    table.write_text("\n".join(translations) + "\n")
    with tarfile.open(source / "covost_v2.es_en.tsv.tar.gz", "w:gz") as archive:
        archive.add(table, arcname=table.name)
    torch.manual_seed(0)
    UnitExtractor.mfcc_kmeans(KMeans(torch.randn(UNITS, 39) * 20)).save(tmp_path / "units")
    return tmp_path


def arguments(root, *extra):
    return [
        "--covost-root", str(root / "covost2"), "--cvss-root", str(root / "cvss/cvss-c"),
        "--src-lang", "es", "--vocab-size", str(VOCAB), "--num-units", str(UNITS),
        "--unit-model", str(root / "units"), *extra,
    ]  # fmt: skip


def contents(folder):
    """Every file's bytes, but for the zip archive's dates."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".wav", ".zip")
    }


def test_the_miniature_becomes_streamspeech_folders(downloaded):
    assert prepare_cvss.main(arguments(downloaded)) == 0
    out = downloaded / "cvss/cvss-c/es-en"
    expected = {"src_fbank80.zip", "gcmvn.npz", "fbank2unit/config_gcmvn.yaml",
                "fbank2unit/config_mtl_asr_st_ctcst.yaml", "fbank2text/config_gcmvn.yaml",
                "fbank2text/spm_unigram_es.model"}  # fmt: skip
    for split in SPLITS:
        expected |= {f"{split}.km{UNITS}", f"fbank2text/{split}.tsv"}
        expected |= {f"fbank2unit/{split}.{kind}" for kind in ("tsv", "txt", "src", "unit")}
        expected |= {
            f"simuleval/{split}/{kind}.txt" for kind in ("wav_list", "target", "src", "unit")
        }
        for side in ("src", "tgt"):
            expected.add(f"{side}_unigram{VOCAB}/{split}.tsv")
    for side in ("src", "tgt"):
        expected |= {
            f"{side}_unigram{VOCAB}/spm_unigram_es.{kind}" for kind in ("model", "txt", "vocab")
        }
    assert [path for path in sorted(expected) if not (out / path).is_file()] == []
    assert not (out / "src_fbank80").exists() and not list(out.rglob("*.partial"))
    assert not (out / "skipped.tsv").exists()

    config = DataConfig.load(out / "fbank2unit/config_gcmvn.yaml")
    tasks = load_text_tasks(out / "fbank2unit/config_mtl_asr_st_ctcst.yaml")
    assert {len(task.vocabulary) for task in tasks.values()} == {VOCAB}
    frames = []
    for split, count in CLIPS.items():
        rows = read_speech_manifest(
            out / f"fbank2unit/{split}.tsv", num_units=UNITS, audio_root=config.audio_root
        )
        assert len(rows) == count
        for task in tasks.values():
            assert len(read_text_manifest(task.data / f"{split}.tsv", task.vocabulary)) == count
        for row in rows:
            features = load_features(row.features, frames=row.frames, bins=80, where="x")
            assert (np.diff(row.units) != 0).all()
            if split == "train":
                frames.append(features)
    samples, rate = read_audio(downloaded / f"covost2/es/clips/{rows[-1].id}.mp3")
    frontend = Frontend(FrontendConfig(), CMVN.identity(80))
    heard, _ = frontend.step(samples, rate, frontend.init_state(), final=True)
    assert np.allclose(heard[0].numpy(), features)
    stacked = np.concatenate(frames)
    assert np.allclose(config.cmvn.mean.numpy(), stacked.mean(axis=0), atol=1e-3)
    assert np.allclose(config.cmvn.std.numpy(), stacked.std(axis=0), atol=1e-3)

    cvss_order = [line.split("\t")[1] for line in (out / "test.tsv").read_text().splitlines()]
    assert (out / "simuleval/test/target.txt").read_text().splitlines() == cvss_order
    wavs = (out / "simuleval/test/wav_list.txt").read_text().splitlines()
    assert all(soundfile.info(wav).frames for wav in wavs)
    header, first, *_ = (out / "fbank2unit/dev.tsv").read_text().splitlines()
    assert header == "id\tsrc_audio\tsrc_n_frames\tsrc_text\ttgt_text\ttgt_audio\ttgt_n_frames"
    sentence = normalize_text(first.split("\t")[3])
    assert (out / "fbank2unit/dev.src").read_text().splitlines()[0] == sentence
    spm = sentencepiece.SentencePieceProcessor(
        model_file=str(out / f"src_unigram{VOCAB}/spm_unigram_es.model")
    )
    pieces = (out / f"src_unigram{VOCAB}/dev.tsv").read_text().splitlines()[1].split("\t")[1]
    assert spm.decode_pieces(pieces.split()) == sentence
    text = (out / "fbank2unit/config_mtl_asr_st_ctcst.yaml").read_text()
    assert str(downloaded) not in text and yaml.safe_load(text)["target_unigram"]


def test_a_second_run_changes_nothing(downloaded, monkeypatch):
    out = downloaded / "cvss/cvss-c/es-en"
    prepare_cvss.main(arguments(downloaded))
    before = contents(out)

    def forbidden(*args, **kwargs):
        raise AssertionError("work was repeated")

    monkeypatch.setattr(steps, "compute_features", forbidden)
    monkeypatch.setattr(steps, "load_speech", forbidden)
    prepare_cvss.main(arguments(downloaded))
    assert contents(out) == before


class Interrupted(Exception):
    """Stands for a killed process."""


def test_an_interrupted_run_goes_on(downloaded, monkeypatch):
    out = downloaded / "cvss/cvss-c/es-en"
    reference = downloaded / "reference"
    prepare_cvss.main(arguments(downloaded, "--out", str(reference)))

    calls = {"units": 0, "features": 0}
    speech, features = steps.load_speech, steps.compute_features

    def limited(kind, work, limit):
        def run(*args, **kwargs):
            calls[kind] += 1
            if calls[kind] > limit:
                raise Interrupted
            return work(*args, **kwargs)

        return run

    monkeypatch.setattr(steps, "load_speech", limited("units", speech, 5))
    with pytest.raises(Interrupted):
        prepare_cvss.main(arguments(downloaded))
    partial = out / f"train.km{UNITS}.partial"
    with partial.open("a") as lines:
        lines.write("common_voice_es_1009.mp3.wav|3 3")  # killed in the middle of a line
    monkeypatch.setattr(steps, "load_speech", limited("units", speech, 10**6))
    monkeypatch.setattr(steps, "compute_features", limited("features", features, 7))
    with pytest.raises(Interrupted):
        prepare_cvss.main(arguments(downloaded))
    assert calls["units"] == 6 + sum(CLIPS.values()) - 5
    monkeypatch.setattr(steps, "compute_features", limited("features", features, 10**6))
    prepare_cvss.main(arguments(downloaded))
    ours, theirs = contents(out), contents(reference)
    for path, data in theirs.items():
        if path.name != "wav_list.txt":
            assert ours[path] == data, path
    assert (out / "src_fbank80.zip").stat().st_size == (
        reference / "src_fbank80.zip"
    ).stat().st_size


def test_unusable_clips_are_left_out_and_listed(downloaded):
    clips = downloaded / "covost2/es/clips"
    (clips / "common_voice_es_1002.mp3").write_bytes(b"not a sound")
    (clips / "common_voice_es_1004.mp3").unlink()
    speech = downloaded / "cvss/cvss-c/es-en"
    soundfile.write(speech / "dev/common_voice_es_1013.mp3.wav", np.zeros(10), 24000)
    table = downloaded / "covost2/es/validated.tsv"
    lines = table.read_text().split("\n")
    lines[6] = lines[6].replace(lines[6].split("\t")[2], "...")
    table.write_text("\n".join(lines))
    assert prepare_cvss.main(arguments(downloaded)) == 0
    listed = dict(line.split("\t") for line in (speech / "skipped.tsv").read_text().splitlines())
    assert set(listed) == {f"common_voice_es_{n}.mp3" for n in (1002, 1004, 1006, 1013)}
    assert "not a readable sound file" in listed["common_voice_es_1002.mp3"]
    assert "no such sound file" in listed["common_voice_es_1004.mp3"]
    assert "shorter than one unit" in listed["common_voice_es_1013.mp3"]
    assert listed["common_voice_es_1006.mp3"] == "a text without words"
    assert len((speech / "fbank2unit/train.tsv").read_text().splitlines()) == 1 + 9
    assert len((speech / "simuleval/dev/wav_list.txt").read_text().splitlines()) == 2


@pytest.mark.slow
def test_several_processes_make_the_same(downloaded):
    prepare_cvss.main(arguments(downloaded, "--steps", "units", "features"))
    again = downloaded / "again"
    prepare_cvss.main(
        arguments(downloaded, "--steps", "units", "features", "--jobs", "2", "--out", str(again))
    )
    ours, theirs = contents(downloaded / "cvss/cvss-c/es-en"), contents(again)
    assert {path: ours[path] for path in theirs} == theirs


@pytest.mark.parametrize(
    ("path", "number", "text", "message"),
    [
        ("cvss/cvss-c/es-en/train.tsv", 3, "one field", "train.tsv, line 3: expected a clip"),
        ("covost2/es/validated.tsv", 4, "short", "validated.tsv, line 4: expected 4 tab-separated"),
        ("covost2/es/validated.tsv", 1, "a\tb", "validated.tsv, line 1: missing column 'path'"),
    ],
)
def test_damaged_tables_are_named(downloaded, capsys, path, number, text, message):
    lines = (downloaded / path).read_text().split("\n")
    lines[number - 1] = text
    (downloaded / path).write_text("\n".join(lines))
    with pytest.raises(SystemExit):
        prepare_cvss.main(arguments(downloaded))
    assert message in capsys.readouterr().err


def test_missing_parts_are_named(downloaded, capsys):
    for extra, message in (
        (["--src-lang", "fr"], "no such folder"),
        (["--num-units", "7"], "has 20 units, --num-units is 7"),
        (["--vocab-size", "5000"], "do not give 5000 pieces"),
        (["--kmeans", "x"], "--hubert and --kmeans go together"),
    ):
        out = ["--out", str(downloaded / "-".join(extra).strip("-"))]
        with pytest.raises(SystemExit):
            prepare_cvss.main(arguments(downloaded, *extra, *out))
        assert message in capsys.readouterr().err
    (downloaded / "covost2/es/covost_v2.es_en.tsv.tar.gz").write_bytes(b"broken")
    (downloaded / "covost2/es/covost_v2.es_en.tsv").unlink()
    with pytest.raises(SystemExit):
        prepare_cvss.main(arguments(downloaded))
    assert "cannot be unpacked" in capsys.readouterr().err


def test_other_settings_need_another_folder(downloaded, capsys):
    prepare_cvss.main(arguments(downloaded, "--steps", "configs"))
    with pytest.raises(SystemExit):
        prepare_cvss.main(arguments(downloaded, "--steps", "configs", "--num-units", "30"))
    assert "was prepared with" in capsys.readouterr().err


def test_cvss_that_is_still_packed(downloaded):
    folder = downloaded / "cvss/cvss-c/es-en"
    with tarfile.open(folder / "cvss_c_es_en_v1.0.tar.gz", "w:gz") as archive:
        for split in SPLITS:
            archive.add(folder / split, arcname=split)
            archive.add(folder / f"{split}.tsv", arcname=f"{split}.tsv")
    for split in SPLITS:
        (folder / f"{split}.tsv").unlink()
    corpus = Corpus.open(downloaded / "covost2", downloaded / "cvss/cvss-c", "es")
    clips = corpus.clips("dev")
    assert len(clips) == CLIPS["dev"] and all(clip.target.is_file() for clip in clips)
    assert dataclasses.astuple(clips[0])[0].endswith(".mp3")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("fairseq") is None, reason="needs fairseq")
def test_prepared_data_trains(downloaded):
    prepare_cvss.main(arguments(downloaded))
    output = run_training(
        downloaded / "cvss/cvss-c/es-en/fbank2unit", downloaded / "save", "--lr", "0.001",
        "--max-update", "2", "--target-code-size", str(UNITS), "--ctc-upsample-rate", "25",
        "--multichunk",
    )  # fmt: skip
    assert "dev_loss" in output
