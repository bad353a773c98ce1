"""Model directories: round trip, strict loading, nothing half-written."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import echostream.checkpoint as checkpoint
from echostream import int8_storage
from echostream.checkpoint import load_model_dir, save_model_dir
from echostream.int8_storage import from_int8


@pytest.fixture
def copy(model_dir, tmp_path):
    return shutil.copytree(model_dir, tmp_path / "model")


def test_round_trip(system, model_dir):
    loaded = load_model_dir(model_dir)
    assert loaded.config == system.config
    assert loaded.source_vocabulary.pieces == system.source_vocabulary.pieces
    assert torch.equal(loaded.cmvn.mean, system.cmvn.mean)
    expected = system.model.state_dict()
    actual = loaded.model.state_dict()
    assert set(actual) == set(expected)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_half_precision_storage_and_loading(system, tmp_path):
    save_model_dir(tmp_path / "half", system, dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    loaded = load_model_dir(tmp_path / "half")
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert next(
        load_model_dir(tmp_path / "half", dtype=torch.float16).model.parameters()
    ).dtype == (torch.float16)


def corrupt(name, content):
    return lambda path: (path / name).write_bytes(content)


def missing(name):
    return lambda path: (path / name).unlink()


def edit(name, key, tensor):
    def change(path):
        state = load_file(path / name)
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
        save_file(state, path / name)

    return change


def shorter_vocabulary(path):
    lines = (path / "target.dict.txt").read_text().splitlines(keepends=True)
    (path / "target.dict.txt").write_text("".join(lines[:-1]))


def test_int8_storage(system, tmp_path, monkeypatch):
    """A quarter of the bytes; every number within half a step of its row's scale."""
    monkeypatch.setattr(int8_storage, "LEAST_NUMBERS", 512)  # the tiny model has small ones only
    save_model_dir(tmp_path / "whole", system)
    save_model_dir(tmp_path / "small", system, dtype=torch.int8)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "small")]
    assert sizes[1] < 0.5 * sizes[0]
    found = load_model_dir(tmp_path / "small").model.state_dict()
    for name, tensor in load_model_dir(tmp_path / "whole").model.state_dict().items():
        rows = tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]
        step = rows.abs().amax(dim=1) / 127
        error = (found[name].view_as(rows) - rows).abs().amax(dim=1)
        assert bool((error <= 0.501 * step).all()), name


def test_encoder_apart(system, tmp_path):
    """Two files of weights, the same model."""
    save_model_dir(tmp_path / "one", system)
    save_model_dir(tmp_path / "two", system, encoder_apart=True)
    sizes = [path.stat().st_size for path in (tmp_path / "two").glob("*coder.safetensors")]
    assert len(sizes) == 2  # encoder and vocoder
    whole = load_model_dir(tmp_path / "one").model.state_dict()
    for name, tensor in load_model_dir(tmp_path / "two").model.state_dict().items():
        torch.testing.assert_close(tensor, whole[name])
    (tmp_path / "two" / "encoder.safetensors").unlink()
    with pytest.raises(ValueError, match=r"missing encoder\."):
        load_model_dir(tmp_path / "two")


def test_int8_scale_without_its_matrix():
    with pytest.raises(ValueError, match=r"x\.safetensors: a\.row_scale of shape \(3,\)"):
        from_int8({"a.row_scale": torch.ones(3), "a": torch.ones(3, 2)}, "x.safetensors")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (missing("config.yaml"), FileNotFoundError, "no such configuration file"),
        (missing("model.safetensors"), FileNotFoundError, "no such weights file"),
        (missing("vocoder.safetensors"), FileNotFoundError, "no such weights file"),
        (missing("cmvn.npz"), FileNotFoundError, "no such CMVN file"),
        (missing("source.dict.txt"), FileNotFoundError, "no such dictionary"),
        (corrupt("model.safetensors", b"x"), ValueError, "not a whole safetensors file"),
        (corrupt("vocoder.safetensors", b""), ValueError, "not a whole safetensors file"),
        (corrupt("config.yaml", b"- 1"), ValueError, "expected a mapping, got list"),
        (corrupt("cmvn.npz", b"x"), ValueError, "not a CMVN file"),
        (corrupt("target.dict.txt", b"\xff\xff"), ValueError, "not UTF-8"),
        (shorter_vocabulary, ValueError, "target vocabulary has 63 entries .* says 64"),
        (
            edit("model.safetensors", "decoder.layer_norm.bias", None),
            ValueError,
            "missing decoder.layer_norm.bias",
        ),
        (
            edit("model.safetensors", "extra", torch.zeros(1)),
            ValueError,
            "unexpected extra",
        ),
        (
            edit("model.safetensors", "decoder.layer_norm.bias", torch.zeros(3)),
            ValueError,
            r"decoder.layer_norm.bias has shape \(3,\), the configuration needs \(32,\)",
        ),
    ],
)
def test_broken_directories(copy, change, kind, message):
    change(copy)
    with pytest.raises(kind, match=message) as error:
        load_model_dir(copy)
    assert str(copy) in str(error.value)


def test_truncated_weights(copy):
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_model_dir(copy)


def test_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model directory"):
        load_model_dir(tmp_path / "nowhere")


def test_interrupted_save_leaves_nothing(system, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model_dir(tmp_path / "model", system)
    assert list(tmp_path.iterdir()) == []


def test_saving_replaces_a_model_directory_and_nothing_else(system, tmp_path):
    save_model_dir(tmp_path / "model", system)
    save_model_dir(tmp_path / "model", system)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_text("meow")
    with pytest.raises(FileExistsError, match="is not a model directory"):
        save_model_dir(other, system)
    assert (other / "cat.jpg").read_text() == "meow"
    # A folder of something else that has a config.yaml, and a model directory with more in it.
    (other / "config.yaml").write_text("a: 1")
    (tmp_path / "model" / "notes.txt").write_text("keep me")
    for path in (other, tmp_path / "model"):
        with pytest.raises(FileExistsError, match="not replacing it"):
            save_model_dir(path, system)
    assert (tmp_path / "model" / "notes.txt").read_text() == "keep me"
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="not replacing it"):
        save_model_dir(tmp_path / "file", system)
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    save_model_dir(tmp_path / "link", system)
    assert (tmp_path / "link").is_symlink()
    save_model_dir(tmp_path / "empty", system)
    assert load_model_dir(tmp_path / "empty").config == system.config
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert checkpoint.CONFIG_FILE == "config.yaml"
