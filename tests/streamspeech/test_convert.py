"""Conversion of StreamSpeech checkpoints: real ones, and broken or hostile ones."""

import argparse
import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import yaml
from safetensors.torch import load_file

from echostream.checkpoint import load_model_dir
from echostream.config import preset
from echostream.models.decoders.codehifigan_standalone import fold_weight_norm
from echostream.streamspeech import convert
from echostream.streamspeech.convert_command import add_convert_parser
from echostream.streamspeech.fairseq_export import add_weight_norm, export_to_fairseq
from echostream.streamspeech.fairseq_settings import TIED, VERSIONS, settings_from_config
from echostream.torch_files import StandIn, read_checkpoint
from tests.reference.recordings import MID, SUBSET, TINY, Recording


@pytest.fixture(params=[SUBSET, TINY, MID])
def recorded(request, open_recording) -> Recording:
    """A recorded release; those that are not in the repository are pickles of fairseq itself."""
    return open_recording(request.param)


def run(*arguments: object) -> int:
    """The command line, from parsing on."""
    parser = argparse.ArgumentParser()
    add_convert_parser(parser.add_subparsers())
    args = parser.parse_args(["convert", *map(str, arguments)])
    return args.func(args)


@pytest.fixture
def release(tmp_path, open_recording) -> Path:
    """A copy of a recorded release that a test may damage."""
    return shutil.copytree(open_recording(SUBSET).release, tmp_path / "release")


def edit_checkpoint(release: Path, change) -> None:
    path = release / "streamspeech.pt"
    saved = torch.load(path, weights_only=False)
    change(saved)
    torch.save(saved, path)


def edit_yaml(path: Path, change) -> None:
    data = yaml.safe_load(path.read_text())
    change(data)
    path.write_text(yaml.safe_dump(data))


def convert_release(release: Path, out: Path) -> int:
    return run(
        "--checkpoint", release / "streamspeech.pt", "--data-bin", release / "config", "--out", out
    )


def without_weight_norm(recorded: Recording) -> dict[str, torch.Tensor]:
    """The vocoder's weights as recorded; the subset leaves that to torch."""
    path = recorded.folder / "vocoder.no_weight_norm.safetensors"
    if recorded.name != SUBSET:
        return load_file(path)
    state = load_file(recorded.folder / "vocoder.safetensors")
    for name in [key.removesuffix("_g") for key in state if key.endswith(".weight_g")]:
        state[name] = torch._weight_norm(state.pop(f"{name}_v"), state.pop(f"{name}_g"), 0)
    return state


def test_recorded_models_convert_whole(recorded, tmp_path):
    out, voc = tmp_path / "model", recorded.config / "voc"
    run(
        *("--checkpoint", recorded.checkpoint, "--data-bin", recorded.config),
        *("--vocoder", voc / "g", "--vocoder-cfg", voc / "config.json", "--out", out),
    )
    converted = load_file(out / "model.safetensors")
    dropped = {copy for copy, _ in TIED} | set(VERSIONS)
    for key, tensor in recorded.weights.items():
        assert key in dropped or torch.equal(converted[key], tensor), key
    assert all(k in recorded.weights or k.endswith("num_batches_tracked") for k in converted)
    folded = without_weight_norm(recorded)
    vocoder = load_file(out / "vocoder.safetensors")
    assert set(vocoder) == set(folded)
    for key, tensor in folded.items():
        torch.testing.assert_close(vocoder[key], tensor, atol=1e-6, rtol=0)
    system = load_model_dir(out)
    lines = (recorded.config / "src" / "dict.txt").read_text().splitlines()
    assert len(system.source_vocabulary) == len(lines) + 4
    with np.load(recorded.config / "gcmvn.npz") as stats:
        np.testing.assert_array_equal(system.cmvn.mean.numpy(), stats["mean"])


def test_converted_model_reproduces_recorded_outputs(recorded):
    system = convert.read_streamspeech(recorded.checkpoint, recorded.config)
    tensors = recorded.tensors
    with torch.no_grad():
        out = system.model(
            tensors["in.features"],
            tensors["in.feature_lengths"],
            tensors["in.prev_tokens"],
            segment_frames=8,
        )
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(out.asr, tensors["asr_ctc.logits"], **close)
    torch.testing.assert_close(out.st, tensors["st_ctc.logits"], **close)
    torch.testing.assert_close(out.mt, tensors["mt.logits"], **close)
    torch.testing.assert_close(out.unit, tensors["forward.offline.unit_logits"], **close)


def test_round_trip_is_bit_equal(recorded, tmp_path):
    first, back, second = tmp_path / "model", tmp_path / "fairseq", tmp_path / "again"
    run(
        *("--checkpoint", recorded.checkpoint),
        *("--data-bin", recorded.config, "--out", first),
    )
    run("--to-fairseq", first, "--out", back)
    run("--checkpoint", back / "streamspeech.pt", "--data-bin", back / "config", "--out", second)
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    original = torch.load(recorded.checkpoint, weights_only=False)["model"]
    exported = torch.load(back / "streamspeech.pt", weights_only=False)["model"]
    assert set(exported) == set(original)
    assert all(torch.equal(exported[key], tensor) for key, tensor in original.items())


def test_fairseq_loads_the_export(tmp_path, open_recording):
    checkpoint_utils = pytest.importorskip("fairseq.checkpoint_utils", exc_type=ImportError)
    recorded = open_recording(SUBSET)
    model, out = tmp_path / "model", tmp_path / "fairseq"
    run(
        *("--checkpoint", recorded.checkpoint),
        *("--data-bin", recorded.config, "--out", model),
    )
    run("--to-fairseq", model, "--out", out)
    # fairseq leaves torch.load at its default, which since 2.6 needs namespaces to be admitted.
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = checkpoint_utils.load_checkpoint_to_cpu(str(out / "streamspeech.pt"))
    assert state["cfg"]["model"].arch == "streamspeech"
    assert state["cfg"].common_eval.model_overrides == "{}"
    from fairseq.data import Dictionary

    for side in ("src", "tgt"):
        symbols = Dictionary.load(str(out / "config" / side / "dict.txt"))
        original = Dictionary.load(str(recorded.config / side / "dict.txt"))
        assert symbols.symbols == original.symbols


def test_only_streamspeech_models_go_back(tmp_path):
    with pytest.raises(ValueError, match="no emformer encoder"):
        settings_from_config(preset("tiny"), "model")


def refused(release: Path, tmp_path: Path, error=ValueError) -> str:
    """The message, one line, of a conversion that fails and leaves nothing behind."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error) as caught:
        convert_release(release, tmp_path / "model")
    assert sorted(tmp_path.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Payload:
    """Unpickling this calls a function that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.mark}",)


class Builtin:
    def __init__(self, name: str, *args) -> None:
        self.name, self.args = name, args

    def __reduce__(self):
        import builtins

        return getattr(builtins, self.name), self.args


@pytest.mark.parametrize("place", ["model", "cfg", "extra_state"])
def test_hostile_pickle_runs_nothing(release, tmp_path, place):
    mark = tmp_path / "mark"
    edit_checkpoint(release, lambda saved: saved.update({place: {"x": Payload(mark)}}))
    assert "system, which is not admitted" in refused(release, tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__", "bytearray", "range"])
def test_builtins_that_could_do_harm_are_refused(release, tmp_path, name):
    edit_checkpoint(release, lambda saved: saved.update(extra_state=Builtin(name, "1")))
    assert f"{name}, which is not admitted" in refused(release, tmp_path)


@pytest.mark.parametrize("kind", ["vocoder", "plain pickle"])
def test_hostile_files_of_other_kinds(release, tmp_path, kind):
    mark = tmp_path / "mark"
    if kind == "vocoder":
        torch.save({"generator": Payload(mark)}, release / "config" / "voc" / "g")
    else:
        (release / "streamspeech.pt").write_bytes(pickle.dumps({"model": Payload(mark)}))
    assert "not admitted" in refused(release, tmp_path)
    assert not mark.exists()


def rewrite_archive(path: Path, change) -> None:
    """Rewrite a checkpoint's members; ``change`` maps (name, data) to data or None."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            data = change(name, data)
            if data is not None:
                archive.writestr(name, data)


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda p: p.write_bytes(b""), "the file is empty"),
        (lambda p: p.write_bytes(p.read_bytes()[:5000]), "cannot be read as a checkpoint"),
        (lambda p: p.write_bytes(p.read_bytes()[:-300]), "cannot be read as a checkpoint"),
        (lambda p: p.write_bytes(b"hello world"), "cannot be read as a checkpoint"),
        (lambda p: torch.save([1, 2], p), "expected a dictionary, found list"),
        (lambda p: torch.save({"cfg": None}, p), "no 'model' entry"),
        (
            lambda p: rewrite_archive(p, lambda n, d: d[:-40] if n.endswith("data.pkl") else d),
            "cannot be read as a checkpoint",
        ),
        (
            lambda p: rewrite_archive(p, lambda n, d: None if n.endswith("data/3") else d),
            "storage 3 is missing",
        ),
        (
            lambda p: rewrite_archive(p, lambda n, d: d[:-4] if n.endswith("data/3") else d),
            "storage 3 holds",
        ),
        (
            lambda p: rewrite_archive(p, lambda n, d: None if n.endswith("data.pkl") else d),
            "no data.pkl",
        ),
    ],
)
def test_damaged_checkpoints(release, tmp_path, damage, message):
    damage(release / "streamspeech.pt")
    assert message in refused(release, tmp_path)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda m: m.pop("encoder.linear.bias"), "missing encoder.linear.bias"),
        (lambda m: m.update({"encoder.extra": torch.zeros(1)}), "unexpected encoder.extra"),
        (
            lambda m: m.update({"encoder.linear.bias": torch.zeros(5)}),
            r"encoder.linear.bias has shape (5,)",
        ),
        (
            lambda m: m.update({"decoder.embed_tokens.weight": torch.zeros(55, 32)}),
            "should be tied",
        ),
        (lambda m: m.update({"decoder.version": torch.tensor([1.0])}), "at least 3, got [1.0]"),
        (lambda m: m.update({"decoder.version": torch.zeros(0)}), "at least 3, got []"),
        (lambda m: m.pop("decoder.version"), "at least 3, got none"),
        (lambda m: m.update({"encoder.linear.bias": "text"}), "is no tensor"),
    ],
)
def test_weights_that_do_not_fit(release, tmp_path, change, message):
    edit_checkpoint(release, lambda saved: change(saved["model"]))
    assert message in refused(release, tmp_path)


@pytest.mark.parametrize(
    "setting,value,message",
    [
        ("uni_encoder", False, "bidirectional synthesizer encoder"),
        ("arch", "unity_conformer", "autoregressive unit decoder"),
        ("conv_version", "convtransformer", "Conv2d subsampling"),
        ("pos_enc_type", "rope", "positions other than relative"),
        ("synthesizer_augmented_cross_attention", True, "augmented cross-attention"),
        ("encoder_layers", "two", "encoder_layers must be an integer of at least 1, got 'two'"),
        ("encoder_layers", 10**9, "1000000000 layers"),
        ("encoder_embed_dim", 10**9, "the configuration needs (1000000000,"),
        ("encoder_embed_dim", 4 * 10**17, "no model has the sizes"),
        ("encoder_ffn_embed_dim", -4, "encoder_ffn_embed_dim must be an integer of at least 1"),
        ("decoder_ffn_embed_dim", None, "decoder_ffn_embed_dim must be an integer"),
        ("conv_kernel_sizes", "5,x", "conv_kernel_sizes must be integers"),
        ("dropout", None, "dropout must be a number from 0 to 1, got None"),
        ("dropout", 2.0, "dropout must be a number from 0 to 1, got 2.0"),
    ],
)
def test_parts_that_do_not_exist_are_named(release, tmp_path, setting, value, message):
    def change(saved):
        setattr(saved["cfg"]["model"], setting, value)

    edit_checkpoint(release, change)
    assert message in refused(release, tmp_path)


@pytest.mark.parametrize(
    "file,key,value,message",
    [
        ("config_gcmvn.yaml", "input_feat_per_channel", None, "input_feat_per_channel must be"),
        ("config_gcmvn.yaml", "global_cmvn", ["a"], "global_cmvn must be a mapping, got ['a']"),
        (
            "config_mtl_asr_st_ctcst.yaml",
            "target_unigram",
            {"decoder_type": "transformer", "dict": "tgt/dict.txt", "decoder_args": [1]},
            "target_unigram: decoder_args must be a mapping, got [1]",
        ),
        (
            "config_mtl_asr_st_ctcst.yaml",
            "source_unigram",
            {
                "decoder_type": "ctc",
                "dict": "src/dict.txt",
                "decoder_args": {"encoder_layers": None},
            },
            "source_unigram: encoder_layers must be an integer of at least 0, got None",
        ),
    ],
)
def test_bad_values_in_the_yaml_files_are_named(release, tmp_path, file, key, value, message):
    edit_yaml(release / "config" / file, lambda data: data.update({key: value}))
    assert message in refused(release, tmp_path)


def test_mislabelled_heads_give_another_shape_error_not_a_silent_model(release, tmp_path):
    edit_checkpoint(release, lambda s: setattr(s["cfg"]["model"], "encoder_attention_heads", 8))
    assert "pos_bias_u has shape (4, 8)" in refused(release, tmp_path)


def test_missing_tasks_are_named(release, tmp_path):
    path = release / "config" / "config_mtl_asr_st_ctcst.yaml"
    edit_yaml(path, lambda tasks: tasks.pop("source_unigram"))
    assert "the recognition CTC head is missing" in refused(release, tmp_path)


def test_old_settings_and_offline_chunks_convert(release, tmp_path):
    def change(saved):
        model = saved["cfg"]["model"]
        model.chunk_size = 999999
        saved["args"], saved["cfg"] = argparse.Namespace(**vars(model)), None
        saved["args"].multitask_config_yaml = "config_mtl_asr_st_ctcst.yaml"
        saved["args"].config_yaml = "config_gcmvn.yaml"

    edit_checkpoint(release, change)
    convert_release(release, tmp_path / "model")
    assert load_model_dir(tmp_path / "model").config.encoder.segment_frames == 999999


def test_legacy_file_format_reads_the_same(release):
    path = release / "streamspeech.pt"
    saved = torch.load(path, weights_only=False)
    expected = read_checkpoint(path)
    torch.save(saved, path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    again = read_checkpoint(path)
    assert again["cfg"] == expected["cfg"]
    for key, tensor in expected["model"].items():
        assert torch.equal(again["model"][key], tensor)
    # Inside the last storage, inside its length, and inside the storages before it.
    whole = path.read_bytes()
    for missing in (1, 10, 13, 100):
        path.write_bytes(whole[:-missing])
        with pytest.raises(ValueError, match="truncated"):
            read_checkpoint(path)


def test_data_files_are_found_by_the_end_of_their_path(tmp_path):
    for folder in ("src", "tgt"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "dict.txt").write_text("")
    found = convert.resolve_data_file("/nowhere/at/all/tgt/dict.txt", tmp_path)
    assert found == tmp_path / "tgt" / "dict.txt"
    with pytest.raises(ValueError, match="fit equally well"):
        convert.resolve_data_file("/nowhere/dict.txt", tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing.npz"):
        convert.resolve_data_file("/nowhere/nothing.npz", tmp_path)


def test_files_of_the_current_directory_are_not_data_files(tmp_path, monkeypatch):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "tgt").mkdir(parents=True)
    elsewhere.mkdir()
    (data / "tgt" / "dict.txt").write_text("")
    (elsewhere / "dict.txt").write_text("")
    monkeypatch.chdir(elsewhere)
    assert convert.resolve_data_file("dict.txt", data) == data / "tgt" / "dict.txt"
    given = elsewhere / "dict.txt"
    assert convert.resolve_data_file(str(given), data) == given


def test_a_data_yaml_without_cmvn_is_noted(release, tmp_path, caplog):
    edit_yaml(release / "config" / "config_gcmvn.yaml", lambda data: data.pop("global_cmvn"))
    convert_release(release, tmp_path / "model")
    assert "config_gcmvn.yaml: names no CMVN statistics" in caplog.text
    assert torch.equal(load_model_dir(tmp_path / "model").cmvn.mean, torch.zeros(80))


def sentencepiece_model(sentences: list[str]) -> tuple[bytes, list[str]]:
    """A small model and its pieces without the special symbols."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    return written.getvalue(), [processor.id_to_piece(i) for i in range(3, len(processor))]


@pytest.mark.parametrize("name", ["dict.model", "other.model"])
def test_a_sentencepiece_model_must_belong_to_the_dictionary(tmp_path, name):
    model, pieces = sentencepiece_model(["a cat sat on the mat", "the dog ate the cat"] * 5)
    (tmp_path / name).write_bytes(model)
    (tmp_path / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces))
    found = convert._vocabulary({"dict": "dict.txt"}, tmp_path, "tasks")
    assert found.decode(found.encode("the cat")) == "the cat"
    with (tmp_path / "dict.txt").open("a") as file:
        file.write("strange 1\nstranger 1\n")
    with pytest.raises(ValueError, match=rf"dict.txt does not belong to .*{name}.*'strange'$"):
        convert._vocabulary({"dict": "dict.txt"}, tmp_path, "tasks")


def test_missing_data_file_is_an_error(release, tmp_path):
    (release / "config" / "gcmvn.npz").unlink()
    assert "gcmvn.npz" in refused(release, tmp_path, FileNotFoundError)


def test_vocoder_left_out_converts_a_text_model(release, tmp_path):
    shutil.rmtree(release / "config" / "voc")
    convert_release(release, tmp_path / "model")
    system = load_model_dir(tmp_path / "model")
    assert system.config.vocoder is None and system.model.vocoder is None


def test_half_stores_every_weight_in_float16(release, tmp_path):
    arguments = ["--checkpoint", release / "streamspeech.pt", "--data-bin", release / "config"]
    convert_release(release, tmp_path / "full")
    run(*arguments, "--half", "--out", tmp_path / "half")
    full = load_file(tmp_path / "full" / "model.safetensors")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert half.keys() == full.keys()
    for name, tensor in half.items():
        assert tensor.dtype == torch.float16 or not full[name].is_floating_point(), name
        assert torch.equal(tensor, full[name].to(tensor.dtype))
    # Loading computes in float32 all the same.
    assert load_model_dir(tmp_path / "half").model.encoder.linear.weight.dtype == torch.float32


def test_existing_directories_are_not_overwritten(release, tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        convert_release(release, out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    convert_release(release, tmp_path / "good")
    with pytest.raises(FileExistsError):
        run("--to-fairseq", tmp_path / "good", "--out", out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_option_mistakes_end_with_usage(capsys):
    for arguments in (
        ["--out", "x"],
        ["--to-fairseq", "m", "--data-bin", "d", "--out", "x"],
        ["--to-fairseq", "m", "--half", "--out", "x"],
    ):
        with pytest.raises(SystemExit):
            run(*arguments)
        assert "error:" in capsys.readouterr().err


def test_weight_norm_and_back_is_exact():
    generator = torch.Generator().manual_seed(0)
    state = {
        "conv_pre.weight": torch.randn(7, 5, 3, generator=generator),
        "conv_pre.bias": torch.randn(7, generator=generator),
        "dict.weight": torch.randn(4, 5, generator=generator),
        "dur_predictor.proj.weight": torch.randn(1, 5, generator=generator),
    }
    split = add_weight_norm(state)
    assert set(split) == (set(state) - {"conv_pre.weight"}) | {
        "conv_pre.weight_g",
        "conv_pre.weight_v",
    }
    folded = fold_weight_norm(split)
    assert all(torch.equal(folded[key], tensor) for key, tensor in state.items())


def pickled(*opcodes: bytes) -> io.BytesIO:
    """A checkpoint whose program is written by hand."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"".join(opcodes))
    return buffer


@pytest.mark.parametrize(
    "program",
    [
        # BUILD that overwrites attributes of what the reader itself hands out.
        b"\x80\x02cargparse\nNamespace\n(N}X\x0c\x00\x00\x00__setstate__K\x01stb.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}X\x05\x00\x00\x00_callK\x01stb.",
        # A storage that claims more than the file holds, and negative sizes.
        b"\x80\x02}X\x05\x00\x00\x00model(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\xff\xff\xff\xfftQs.",
        # A dictionary that holds itself.
        b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
        # Extension registry.
        b"\x80\x02\x82\x01.",
        b"\x80\x02cos.path\njoin\n.",
        b"\x80\x04\x8c\x08argparse\x8c\x11Namespace.__init__\x93.",
    ],
)
def test_hand_written_programs_are_refused(tmp_path, program):
    path = tmp_path / "x.pt"
    path.write_bytes(pickled(program).getvalue())
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_references_to_references_are_read_once(tmp_path, zipped):
    nested = ["x"]
    for _ in range(60):
        nested = [nested, nested]
    torch.save({"a": nested}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    value = read_checkpoint(tmp_path / "x.pt")["a"]
    for _ in range(60):
        assert value[0] is value[1]
        value = value[0]
    assert value == ["x"]


@pytest.mark.parametrize("size,stride", [((10**6,), (0,)), ((10, 3), (1, 1))])
def test_tensors_larger_than_their_storage_are_refused(tmp_path, size, stride):
    tensor = torch.zeros(12).as_strided(size, stride)
    torch.save({"model": {"w": tensor}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds more numbers than its storage, 12"):
        read_checkpoint(tmp_path / "x.pt")


def test_strided_views_are_read(tmp_path):
    whole = torch.arange(24.0).view(4, 6)
    saved = {"a": whole.T, "b": whole[1:, ::2], "c": torch.float16, "d": torch.zeros(1).expand(1)}
    torch.save(saved, tmp_path / "x.pt")
    read = read_checkpoint(tmp_path / "x.pt")
    assert all(torch.equal(read[key], saved[key]) for key in "abd") and read["c"] is torch.float16


def test_unknown_names_of_torch_are_not_asked_for(tmp_path):
    """torch imports some of its modules when they are first asked for by name."""
    (tmp_path / "x.pt").write_bytes(pickled(b"\x80\x02ctorch\n_inductor\n.").getvalue())
    code = (
        "import sys; from pathlib import Path\n"
        "from echostream.torch_files import read_checkpoint\n"
        "try: read_checkpoint(Path(sys.argv[1]))\n"
        "except ValueError as error: print(error)\n"
        "print('torch._inductor' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.pt")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "torch._inductor, which is not admitted" in out and out.endswith("False\n")


def test_settings_become_plain_and_strange_objects_stay_inert(tmp_path):
    path = tmp_path / "x.pt"
    program = (
        b"\x80\x02}("
        b"X\x01\x00\x00\x00acargparse\nNamespace\n)\x81}X\x01\x00\x00\x00xK\x05sb"
        b"X\x01\x00\x00\x00bcfairseq.dataclass.constants\nCHOICE\nX\x02\x00\x00\x00on\x85R"
        b"X\x01\x00\x00\x00ccfairseq.meters\nMeter\n)R"
        b"X\x01\x00\x00\x00dcomegaconf.dictconfig\nDictConfig\n)\x81}X\x08\x00\x00\x00_content}"
        b"X\x01\x00\x00\x00kcomegaconf.nodes\nAnyNode\n)\x81}X\x04\x00\x00\x00_valK\x07sbssb"
        b"u."
    )
    path.write_bytes(pickled(program).getvalue())
    saved = read_checkpoint(path)
    assert saved["a"] == {"x": 5} and saved["b"] == "on" and saved["d"] == {"k": 7}
    assert isinstance(saved["c"], StandIn) and "fairseq.meters.Meter" in repr(saved["c"])


def test_optimizer_tensors_are_not_read(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": {"w": torch.ones(2)}, "last_optimizer_state": torch.zeros(3)}, path)
    rewrite_archive(path, lambda n, d: None if n.endswith("data/1") else d)
    assert torch.equal(read_checkpoint(path, keep=("model",))["model"]["w"], torch.ones(2))
    with pytest.raises(ValueError, match="storage 1 is missing"):
        read_checkpoint(path)


def test_exported_settings_hold_plain_values_only(release, tmp_path):
    convert_release(release, tmp_path / "model")
    export_to_fairseq(tmp_path / "model", tmp_path / "back")
    saved = read_checkpoint(tmp_path / "back" / "streamspeech.pt", keep=("cfg",))
    json.dumps(saved["cfg"])
