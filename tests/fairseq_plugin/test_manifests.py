"""Data folders: what is right loads, what is wrong is named by file and line."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from echostream.fairseq_plugin.data_config import (
    MT_TASK,
    DataConfig,
    SpecAugmentConfig,
    load_text_tasks,
)
from echostream.fairseq_plugin.manifest import read_speech_manifest, read_text_manifest
from echostream.fairseq_plugin.source_features import load_features, spec_augment
from tests.fairseq_plugin.corpus import BINS, UNITS, edit_line

FEATURES, TASKS = "config_gcmvn.yaml", "config_mtl_asr_st_ctcst.yaml"


def change_yaml(path, change):
    data = yaml.safe_load(path.read_text())
    change(data)
    path.write_text(yaml.safe_dump(data))


def test_a_right_folder_loads(corpus):
    data = DataConfig.load(corpus / FEATURES)
    assert data.bins == BINS and data.vocoder is None
    rows = read_speech_manifest(corpus / "train.tsv", num_units=UNITS)
    assert len(rows) == 8
    features = load_features(rows[3].features, frames=rows[3].frames, bins=BINS, where="here")
    assert features.dtype == np.float32
    tasks = load_text_tasks(corpus / TASKS)
    texts = read_text_manifest(tasks[MT_TASK].data / "train.tsv", tasks[MT_TASK].vocabulary)
    pieces = tasks[MT_TASK].vocabulary.pieces
    lines = (tasks[MT_TASK].data / "train.tsv").read_text().split("\n")
    line = lines[texts["utterance_3"].line - 1]
    assert " ".join(pieces[t] for t in texts["utterance_3"].tokens) == line.split("\t")[1]


def test_loose_npy_files_work(corpus):
    features = np.zeros((17, BINS), dtype=np.float32)
    np.save(corpus / "one.npy", features)
    (corpus / "one.tsv").write_text(
        "id\tsrc_audio\tsrc_n_frames\ttgt_audio\ttgt_n_frames\na\tone.npy\t17\t1 2\t2\n"
    )
    (row,) = read_speech_manifest(corpus / "one.tsv", num_units=UNITS)
    assert load_features(row.features, frames=17, bins=BINS, where="x").shape == (17, BINS)


@pytest.mark.parametrize(
    ("line", "old", "new", "message"),
    [
        (1, "tgt_audio", "audio", "line 1: missing column 'tgt_audio'"),
        (3, "\t", " ", "line 3: expected 7 tab-separated fields, got 6"),
        (4, "utterance_2", "utterance_0", "line 4: id 'utterance_0' occurred before, in line 2"),
        (4, "utterance_2", "", "line 4: empty id"),
        (5, ".zip:", ".zip:x", "line 5: src_audio must be"),
        (5, "src_fbank80", "missing", "line 5: src_audio: no such file"),
        (5, ".zip:", ".zip:99999", "line 5: src_audio reaches to byte"),
    ],
)
def test_corrupt_speech_manifest(corpus, line, old, new, message):
    path = corpus / "train.tsv"
    edit_line(path, line, old, new)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read_speech_manifest(path, num_units=UNITS)
    assert str(path) in str(caught.value)


def edit_field(path, number, field, value):
    lines = path.read_text().split("\n")
    fields = lines[number - 1].split("\t")
    fields[field] = value
    lines[number - 1] = "\t".join(fields)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (2, "-4", "src_n_frames must be a positive number, got '-4'"),
        (2, "1.5", "src_n_frames must be a positive number"),
        (5, "", "tgt_audio holds no units"),
        (5, f"1 2 {UNITS}", f"unit 2 of tgt_audio must be a number from 0 to {UNITS - 1}"),
        (5, "1 x 3", "unit 1 of tgt_audio must be a number"),
        (6, "400", "tgt_n_frames is 400, but tgt_audio has"),
    ],
)
def test_corrupt_speech_fields(corpus, field, value, message):
    edit_field(corpus / "train.tsv", 6, field, value)
    with pytest.raises(ValueError, match=f"train.tsv, line 6: {message}"):
        read_speech_manifest(corpus / "train.tsv", num_units=UNITS)


def test_wrong_frame_count_is_found_when_read(corpus):
    edit_field(corpus / "train.tsv", 2, 2, "40")
    row = read_speech_manifest(corpus / "train.tsv", num_units=UNITS)[0]
    with pytest.raises(ValueError, match=r"must be \(40, 80\), got"):
        load_features(row.features, frames=row.frames, bins=BINS, where="x")


def test_wrong_byte_range_is_found_when_read(corpus):
    edit_line(corpus / "train.tsv", 2, ".zip:", ".zip:1")
    row = read_speech_manifest(corpus / "train.tsv", num_units=UNITS)[0]
    with pytest.raises(ValueError, match="holds no NumPy array"):
        load_features(row.features, frames=row.frames, bins=BINS, where="x")


def test_empty_and_binary_manifests(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("")
    with pytest.raises(ValueError, match="line 1: missing column"):
        read_speech_manifest(path, num_units=3)
    path.write_text("id\tsrc_audio\tsrc_n_frames\ttgt_audio\ttgt_n_frames\n")
    with pytest.raises(ValueError, match="no rows"):
        read_speech_manifest(path, num_units=3)
    path.write_bytes(b"id\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_speech_manifest(path, num_units=3)
    with pytest.raises(FileNotFoundError, match="no such manifest"):
        read_speech_manifest(tmp_path / "b.tsv", num_units=3)


def test_text_of_another_dictionary(corpus, caplog):
    tasks = load_text_tasks(corpus / TASKS)
    source = corpus.parent / "src_unigram/train.tsv"
    with pytest.raises(ValueError, match="first in line 2.*another dictionary's"):
        read_text_manifest(source, tasks[MT_TASK].vocabulary)
    target = corpus.parent / "tgt_unigram/train.tsv"
    edit_line(target, 5, "\tt", "\tq")
    read_text_manifest(target, tasks[MT_TASK].vocabulary)
    assert "1 of" in caplog.text and "first in line 5" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(speed=2), "unknown key 'speed'"),
        (lambda d: d["global_cmvn"].update(stats_npz_path="no.npz"), "path: no such file"),
        (lambda d: d["transforms"].update({"*": ["utterance_cmvn"]}), "utterance_cmvn"),
        (lambda d: d["transforms"].update(_train=["specaugment"]), "must be normalised, or none"),
        (lambda d: d["specaugment"].update(time_mask_p=2), "time_mask_p: must be between"),
        (lambda d: d["specaugment"].update(time_wrap_W=4), "time warping"),
        (lambda d: d.update(input_feat_per_channel=40), "80 bins, input_feat_per_channel is 40"),
        (lambda d: d.update(input_channels=2), "input_channels must be 1"),
    ],
)
def test_wrong_feature_yaml(corpus, change, message):
    path = corpus / FEATURES

    def with_specaugment(data):
        data["transforms"]["_train"] = ["global_cmvn", "specaugment"]
        change(data)

    change_yaml(path, with_specaugment)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        DataConfig.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("source_unigram"), "missing task 'source_unigram'"),
        (lambda d: d.update(extra={}), "unknown key 'extra'"),
        (lambda d: d["target_unigram"].update(decoder_type="ctc"), "must be 'transformer'"),
        (lambda d: d["target_unigram"].update(rdrop_alpha=1.0), "R-Drop"),
        (lambda d: d["target_unigram"].update(loss_weight="8"), "loss_weight: expected a number"),
        (lambda d: d["target_unigram"].update(dict="/no/dict.txt"), "dict: no such file"),
        (lambda d: d["source_unigram"].update(data="nowhere"), "data: no such folder"),
        (
            lambda d: d["target_unigram"].update(dict="../src_unigram/dict.txt"),
            "must share one dictionary",
        ),
    ],
)
def test_wrong_task_yaml(corpus, change, message):
    path = corpus / TASKS
    change_yaml(path, change)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_text_tasks(path)
    assert str(path) in str(caught.value)


def test_transforms_follow_the_kind_of_split(corpus):
    change_yaml(
        corpus / FEATURES,
        lambda d: d["transforms"].update(_train=["global_cmvn", "specaugment"]),
    )
    data = DataConfig.load(corpus / FEATURES)
    assert data.transforms_for("train", training=True) == ("global_cmvn", "specaugment")
    assert data.transforms_for("dev", training=False) == ("global_cmvn",)


def test_spec_augment_masks_within_limits():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 80)).astype(np.float32)
    config = SpecAugmentConfig(27, 1, 100, 1, 0.5)
    for seed in range(50):
        masked = spec_augment(features, config, np.random.default_rng(seed))
        changed = masked != features
        assert changed.all(axis=0).sum() <= 27 and changed.all(axis=1).sum() <= 25
        assert np.allclose(masked[changed], features.mean())
    again = spec_augment(features, config, np.random.default_rng(49))
    assert np.array_equal(masked, again)
