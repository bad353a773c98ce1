"""From texts to training data: manifests, archives, dictionaries, speech."""

import csv
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
import yaml

from echostream.audio import CMVN, Frontend
from echostream.checkpoint import System, save_model_dir
from echostream.config import FrontendConfig, preset
from echostream.files import atomic_path
from echostream.models.echostream_model import seeded_model
from echostream.samples import read_audio
from echostream.text import Vocabulary
from echostream.training import data_folder, feature_archive
from echostream.training.corpus import layout, synthesis
from echostream.training.corpus.build import (
    BuildOptions,
    build,
    extract_features,
    sound_path,
    write_text_tasks_like,
)
from echostream.training.corpus.make_corpus import main, shipped_test_utterances
from echostream.training.corpus.speakers import Speaker, load_speakers, speakers_of
from echostream.training.corpus.text_files import normalize, read_texts
from echostream.training.units.extractor import UnitExtractor
from echostream.training.units.kmeans import KMeans
from echostream.training.units.sequences import read_units, reduce_units

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "echo_mini"
COUNTS = {"train": 30, "dev": 3, "test": 4}
OPTIONS = BuildOptions(num_units=12, vocab_size=60, kmeans_utterances=10)

needs_synthesizers = pytest.mark.skipif(
    shutil.which("espeak-ng") is None or shutil.which("flite") is None,
    reason="espeak-ng and flite are not installed",
)


@pytest.fixture(scope="module")
def splits():
    return {split: rows[: COUNTS[split]] for split, rows in read_texts(DATA).items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory, splits):
    """A whole build; noise stands in for speech, whose making is tested elsewhere."""
    pytest.importorskip("sklearn", reason="fitting k-means needs scikit-learn")
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for rows in splits.values():
        for row in rows:
            for side in ("source", "target"):
                samples = 0.1 * rng.standard_normal(int(rng.integers(8000, 12000)))
                synthesis.save_flac(samples, sound_path(folder, side, row))
    build(folder, splits, OPTIONS)
    return folder


def read_table(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_manifests_have_streamspeech_columns_and_point_at_features(built, splits):
    units = read_units(built / "dev.km12", 12)
    rows = read_table(built / "fbank2unit" / "dev.tsv")
    assert [row["id"] for row in rows] == [row.id for row in splits["dev"]]
    for row, utterance in zip(rows, splits["dev"], strict=True):
        assert tuple(row) == data_folder.SPEECH_COLUMNS
        name, offset, size = row["src_audio"].split(":")
        data = (built / name).read_bytes()[int(offset) : int(offset) + int(size)]
        (built / "slice.npy").write_bytes(data)
        features = np.load(built / "slice.npy")
        assert features.shape == (int(row["src_n_frames"]), 80) and features.dtype == np.float32
        reduced = [int(unit) for unit in row["tgt_audio"].split()]
        assert len(reduced) == int(row["tgt_n_frames"])
        np.testing.assert_array_equal(reduced, reduce_units(units[utterance.id])[0])
        assert row["src_text"] == utterance.src_text and row["tgt_text"] == utterance.tgt_text


def test_archive_is_uncompressed(built):
    with zipfile.ZipFile(built / feature_archive.FBANK_ZIP) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_training_features_are_what_streaming_computes(built, splits):
    utterance = splits["test"][0]
    samples, rate = read_audio(sound_path(built, "source", utterance))
    cmvn = CMVN.from_npz(built / feature_archive.GCMVN)
    frontend = Frontend(FrontendConfig(), cmvn)
    state, parts = frontend.init_state(), []
    for start in range(0, len(samples), 5120):
        part, state = frontend.step(samples[start : start + 5120], rate, state)
        parts.append(part)
    part, _ = frontend.step(samples[:0], rate, state, final=True)
    streamed = torch.cat([*parts, part], dim=1)[0]
    offset, size, _ = feature_archive.index_feature_zip(built / feature_archive.FBANK_ZIP)[
        utterance.id
    ]
    (built / "one.npy").write_bytes(
        (built / feature_archive.FBANK_ZIP).read_bytes()[offset : offset + size]
    )
    stored = cmvn(torch.from_numpy(np.load(built / "one.npy")))
    torch.testing.assert_close(streamed, stored, rtol=0, atol=1e-3)


def test_cmvn_is_that_of_the_training_split(built, splits):
    index = feature_archive.index_feature_zip(built / feature_archive.FBANK_ZIP)
    with zipfile.ZipFile(built / feature_archive.FBANK_ZIP) as archive:
        frames = np.concatenate([np.load(archive.open(f"{row.id}.npy")) for row in splits["train"]])
    assert set(index) == {row.id for rows in splits.values() for row in rows}
    with np.load(built / feature_archive.GCMVN) as stats:
        np.testing.assert_allclose(stats["mean"], frames.mean(0), rtol=1e-4)
        np.testing.assert_allclose(stats["std"], frames.std(0), rtol=1e-3)


@pytest.mark.parametrize(("side", "column"), [("src", "src_text"), ("tgt", "tgt_text")])
def test_text_tasks(built, splits, side, column):
    folder = built / data_folder.text_folder(side, OPTIONS.vocab_size)
    stem = folder / "spm_unigram_es"
    vocabulary = Vocabulary.load(stem.with_suffix(".txt"), stem.with_suffix(".model"))
    assert len(vocabulary) == OPTIONS.vocab_size
    processor = sentencepiece.SentencePieceProcessor(model_file=str(stem.with_suffix(".model")))
    for split, utterances in splits.items():
        rows = read_table(folder / f"{split}.tsv")
        assert [tuple(row) for row in rows[:1]] == [data_folder.TEXT_COLUMNS]
        for row, utterance in zip(rows, utterances, strict=True):
            text = processor.decode_pieces(row["tgt_text"].split())
            if split == "train":
                assert text == normalize(getattr(utterance, column))


def test_text_tasks_in_the_vocabularies_of_a_model(tmp_path, splits):
    """Texts are cut as where the model's vocabularies were fitted, and nothing is fitted anew."""
    size, loaded = OPTIONS.vocab_size, []
    for side in ("src", "tgt"):
        layout.write_text_task(tmp_path / "fitted", side, splits, size)
        stem = tmp_path / "fitted" / data_folder.text_folder(side, size) / "spm_unigram_es"
        loaded.append(Vocabulary.load(stem.with_suffix(".txt"), stem.with_suffix(".model")))
    config = replace(preset("tiny"), source_vocab_size=size, target_vocab_size=size)
    save_model_dir(
        tmp_path / "model", System(config, seeded_model(config), *loaded, CMVN.identity(80))
    )
    fewer = {split: rows[1:] for split, rows in splits.items()}
    write_text_tasks_like(tmp_path / "model", tmp_path / "like", fewer, size)
    for side in ("src", "tgt"):
        for split in splits:
            tables = [
                read_table(tmp_path / root / data_folder.text_folder(side, size) / f"{split}.tsv")
                for root in ("fitted", "like")
            ]
            assert tables[1] == tables[0][1:]
    with pytest.raises(ValueError, match="60 pieces, vocab_size is 61"):
        write_text_tasks_like(tmp_path / "model", tmp_path / "like", fewer, size + 1)


def test_configs_hold_relative_paths_that_exist(built):
    folder = built / "fbank2unit"
    features = yaml.safe_load((folder / "config_gcmvn.yaml").read_text())
    assert (folder / features["global_cmvn"]["stats_npz_path"]).is_file()
    assert (folder / features["audio_root"] / feature_archive.FBANK_ZIP).is_file()
    tasks = yaml.safe_load((folder / "config_mtl_asr_st_ctcst.yaml").read_text())
    assert list(tasks) == ["target_unigram", "source_unigram", "ctc_target_unigram"]
    for task in tasks.values():
        assert not task["dict"].startswith("/") and not task["data"].startswith("/")
        assert (folder / task["dict"]).is_file() and (folder / task["data"]).is_dir()
    for path in folder.iterdir():
        assert str(built) not in path.read_text(encoding="utf-8"), path


def test_simuleval_lists(built, splits):
    folder = built / "simuleval" / "test"
    sounds = (folder / "wav_list.txt").read_text().splitlines()
    assert len(sounds) == COUNTS["test"] and all(Path(sound).is_file() for sound in sounds)
    target = (folder / "target.txt").read_text(encoding="utf-8").splitlines()
    assert target == [normalize(row.tgt_text) for row in splits["test"]]
    assert (folder.with_name("test_seen") / "wav_list.txt").read_text().splitlines() == sounds
    assert (folder.with_name("test_unseen") / "wav_list.txt").read_text() == ""
    assert len((folder / "unit.txt").read_text().splitlines()) == COUNTS["test"]
    assert len((folder / "src.txt").read_text(encoding="utf-8").splitlines()) == COUNTS["test"]


def test_a_second_build_changes_nothing(built, splits):
    kept = ["src_fbank80.zip", "gcmvn.npz", "train.km12", "units/kmeans.safetensors"]
    before = {name: (built / name).stat().st_mtime_ns for name in kept}
    texts = {p: p.read_bytes() for p in (built / "fbank2unit").iterdir()}
    texts |= {p: p.read_bytes() for p in (built / "src_unigram60").iterdir()}
    build(built, splits, OPTIONS)
    assert before == {name: (built / name).stat().st_mtime_ns for name in kept}
    assert all(path.read_bytes() == content for path, content in texts.items())


def test_another_seed_in_the_same_folder_is_refused(built, splits):
    with pytest.raises(ValueError, match="begun with seed 1, not 2"):
        build(built, splits, BuildOptions(seed=2))


def test_more_utterances_extend_features_and_units(tmp_path, built, splits):
    shutil.copytree(built, tmp_path / "copy")
    fewer = {split: rows[:-1] for split, rows in splits.items()}
    index = extract_features(
        tmp_path / "copy", [row for rows in fewer.values() for row in rows], OPTIONS
    )
    assert len(index) == sum(COUNTS.values()) - 3


def test_two_processes_give_the_same_archive(tmp_path, built, splits):
    shutil.copytree(built / "audio", tmp_path / "audio")
    rows = [row for split in splits.values() for row in split][:12]
    one = extract_features(tmp_path, rows, OPTIONS)
    first = (tmp_path / feature_archive.FBANK_ZIP).read_bytes()
    (tmp_path / feature_archive.FBANK_ZIP).unlink()
    assert extract_features(tmp_path, rows, BuildOptions(jobs=2)) == one
    assert (tmp_path / feature_archive.FBANK_ZIP).read_bytes() == first


def test_unit_model_reads_back(built):
    assert UnitExtractor.load(built / "units").num_units == 12


def test_units_of_trained_weights_are_kept_and_not_fitted_again(tmp_path, built, splits):
    """k-means differs between processors; a model that was trained on units needs those."""
    given = tmp_path / "given"
    centroids = UnitExtractor.load(built / "units").kmeans.centroids.flip(0)
    UnitExtractor.mfcc_kmeans(KMeans(centroids)).save(given)
    folder = tmp_path / "copy"
    shutil.copytree(built, folder)
    options = replace(OPTIONS, unit_model=given)
    build(folder, splits, options)
    assert torch.equal(UnitExtractor.load(folder / "units").kmeans.centroids, centroids)
    fitted, copied = (read_units(root / "train.km12", 12) for root in (built, folder))
    for name, units in fitted.items():
        assert np.array_equal(copied[name], 11 - units)
    modified = (folder / "train.km12").stat().st_mtime_ns
    build(folder, splits, options)
    assert (folder / "train.km12").stat().st_mtime_ns == modified
    with pytest.raises(ValueError, match="has 12 units, not 13"):
        build(folder, splits, replace(options, num_units=13))


def test_the_units_of_the_shipped_systems_are_in_the_box():
    extractor = UnitExtractor.load(DATA / "units")
    assert extractor.num_units == BuildOptions().num_units == 200


def test_missing_features_or_units_are_named(tmp_path, splits):
    with pytest.raises(ValueError, match="utterance 'dev_00001' has no features"):
        layout.write_speech_manifest(tmp_path, "dev", splits["dev"], {}, {})
    with pytest.raises(ValueError, match="has no units"):
        known = {row.id: (0, 1, 1) for row in splits["dev"]}
        layout.write_speech_manifest(tmp_path, "dev", splits["dev"], known, {})


def test_damaged_archives_are_named(tmp_path):
    path = tmp_path / "src.zip"
    with pytest.raises(FileNotFoundError, match="no such feature archive"):
        feature_archive.index_feature_zip(path)
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="src.zip: not a zip archive"):
        feature_archive.index_feature_zip(path)


def test_too_many_pieces_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot make 5000 pieces"):
        data_folder.train_vocabulary(tmp_path / "spm.model", ["una frase corta", "otra"], 5000)


def test_a_failed_write_leaves_no_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_shipped_test_audio_is_complete():
    chosen = shipped_test_utterances(read_texts(DATA)["test"])
    folder = DATA / "test_audio"
    assert len(chosen) == 30 and sum(row.unseen for row in chosen) == 6
    assert sorted(path.stem for path in folder.glob("*.flac")) == sorted(r.id for r in chosen)
    listed = (folder / "wav_list.txt").read_text().splitlines()
    assert [Path(sound).stem for sound in listed] == [row.id for row in chosen]
    for sound, row in zip(listed, chosen, strict=True):
        info = soundfile.info(ROOT / sound)
        assert (info.samplerate, info.channels) == (16000, 1)
        assert 0.05 * len(row.src_text) / 2 < info.duration < 0.2 * len(row.src_text) + 2
    target = (folder / "target.txt").read_text(encoding="utf-8").splitlines()
    assert target == [normalize(row.tgt_text) for row in chosen]
    assert len({row.speaker for row in chosen}) == len(speakers_of("test"))


def test_recording_conditions_depend_on_the_key_alone():
    speech = np.sin(np.arange(16000) / 20).astype(np.float32)
    first, again, other = (
        synthesis.add_recording_conditions(speech, synthesis.generator_for(1, name))
        for name in ("a", "a", "b")
    )
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other) or not np.array_equal(first, other)
    assert np.abs(first).max() <= 1 and first.dtype == np.float32
    assert len(first) >= len(speech) + 2 * 60 * 16


@needs_synthesizers
def test_synthesis_is_deterministic_and_voices_differ():
    one, two = speakers_of("test")[:2]
    sounds = [synthesis.synthesize_source("x", "Buenos días.", s, 1) for s in (one, one, two)]
    np.testing.assert_array_equal(sounds[0], sounds[1])
    assert len(sounds[0]) != len(sounds[2])
    english = synthesis.flite("Good morning.")
    np.testing.assert_array_equal(english, synthesis.flite("Good morning."))
    assert 8000 < len(english) < 32000


@needs_synthesizers
def test_every_speaker_speaks():
    for split in ("train", "dev", "test"):
        for speaker in speakers_of(split):
            sound = synthesis.espeak("Hola, ¿qué tal?", speaker)
            assert 8000 < len(sound) < 48000 and np.abs(sound).max() > 0.01, speaker


@needs_synthesizers
@pytest.mark.parametrize("voice", ["no-such-voice", "es+nobody"])
def test_unknown_voices_are_errors(voice):
    synthesis.require_voices(load_speakers())
    with pytest.raises(RuntimeError, match=f"no voice '{re.escape(voice)}' .speaker x"):
        synthesis.require_voices([Speaker("x", "train", voice, 50, 150)])


def test_missing_synthesizers_are_named(monkeypatch):
    monkeypatch.setattr(synthesis.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="apt-get install espeak-ng flite"):
        synthesis.require_synthesizers()


@needs_synthesizers
def test_command_makes_everything(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="fitting k-means needs scikit-learn")
    arguments = ["--out", str(tmp_path), "--limit", "8", "--num-units", "10"]
    assert main([*arguments, "--vocab-size", "60", "--kmeans-utterances", "4"]) == 0
    assert (tmp_path / "fbank2unit" / "train.tsv").is_file()
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--texts", str(tmp_path / "nowhere")])
    assert stopped.value.code == 1
    assert "no such corpus text" in capsys.readouterr().err
