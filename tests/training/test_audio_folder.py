"""A data folder from recordings alone, read by the training that it is for."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from echostream.audio import fbank
from echostream.checkpoint import load_model_dir, save_model_dir
from echostream.config import FrontendConfig
from echostream.synthetic import synthetic_clip
from echostream.training.audio_folder import cut_where_quiet, find_sounds, main


@pytest.fixture
def recordings(tmp_path):
    """Three files: short, stereo at another rate, and long with a pause."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    soundfile.write(folder / "a.wav", synthetic_clip(1.5, 16000, seed=1), 16000)
    stereo = np.stack([synthetic_clip(1.2, 24000, seed=2)] * 2, axis=1)
    soundfile.write(folder / "b.flac", stereo, 24000)
    speech = synthetic_clip(3.0, 16000, seed=3)
    long = np.concatenate([speech, np.zeros(4800, dtype=np.float32), speech])
    soundfile.write(folder / "c.wav", long, 16000)
    return folder


@pytest.fixture
def model_dir(tmp_path, system):
    save_model_dir(tmp_path / "model", system)
    return tmp_path / "model"


def test_recordings_are_cut_where_they_are_quiet():
    loud = np.ones((100, 4), dtype=np.float32)
    quiet = np.zeros((12, 4), dtype=np.float32)
    features = np.concatenate([loud, quiet, loud, loud[:20]])
    pieces = cut_where_quiet(features, 140)
    assert sum(map(len, pieces)) == len(features)
    assert 100 <= len(pieces[0]) <= 112 and all(len(piece) <= 140 for piece in pieces)
    assert cut_where_quiet(loud[:30], 140) == []  # too short for speech
    assert len(cut_where_quiet(loud, 140)) == 1


def test_training_reads_the_folder(tmp_path, recordings, model_dir, system):
    pytest.importorskip("fairseq")
    from echostream.fairseq_plugin.data_config import DataConfig, load_text_tasks
    from echostream.fairseq_plugin.dataset import EchoStreamDataset

    out = tmp_path / "data"
    command = ["--model-dir", str(model_dir), "--audio", str(recordings), "--out", str(out)]
    assert main([*command, "--held-out", "1", "--max-seconds", "4"]) == 0
    folder = out / "fbank2unit"
    data = DataConfig.load(folder / "config_gcmvn.yaml")
    tasks = load_text_tasks(folder / "config_mtl_asr_st_ctcst.yaml")
    loaded = load_model_dir(model_dir)
    assert torch.equal(data.cmvn.mean, loaded.cmvn.mean)
    for task in tasks.values():
        side = "source" if task.name == "source_unigram" else "target"
        assert task.vocabulary.pieces == getattr(loaded, f"{side}_vocabulary").pieces
    splits = {
        split: EchoStreamDataset.load(
            split, folder, data, tasks, system.config, training=False, unfit="error", seed=1,
            may_miss_targets=True,
        )
        for split in ("train", "dev")
    }  # fmt: skip
    assert len(splits["train"]) == 2 and len(splits["dev"]) == 2  # the long one in two pieces
    first = splits["train"][0]
    samples, _ = soundfile.read(recordings / "a.wav", dtype="float32")
    expected = loaded.cmvn(fbank(torch.from_numpy(samples), FrontendConfig()))
    assert torch.allclose(first.features, expected, atol=1e-4)
    assert not len(first.units) and not any(len(text) for text in first.texts.values())
    before = (folder / "train.tsv").stat().st_mtime_ns
    assert main(command) == 0
    assert (folder / "train.tsv").stat().st_mtime_ns == before


def test_lists_and_wrong_sources(tmp_path, recordings, model_dir, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{recordings / 'b.flac'}\n\n{recordings / 'a.wav'}\n")
    assert [path.name for path in find_sounds(listed)] == ["b.flac", "a.wav"]
    listed.write_text(f"{recordings / 'none.wav'}\n")
    with pytest.raises(FileNotFoundError, match=r"list.txt: no such sound file: .*none.wav"):
        find_sounds(listed)
    with pytest.raises(FileNotFoundError, match="no such folder or list"):
        find_sounds(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no sound files"):
        find_sounds(tmp_path / "empty")
    command = ["--model-dir", str(model_dir), "--audio", str(recordings), "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        main([*command, "--held-out", "3"])
    assert "3 recordings are to be held out, there are 3" in capsys.readouterr().err
