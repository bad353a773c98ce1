"""Whisper's weights from every form in which they are published."""

from __future__ import annotations

import re

import pytest
import torch

from echostream.whisper.weights import openai_name, read_whisper


def expected(reference) -> dict[str, torch.Tensor]:
    state = reference.state_dict()
    return {k.removeprefix("model."): t for k, t in state.items() if "proj_out" not in k}


def assert_equal(found: dict, wanted: dict, tolerance: float = 0.0) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, atol=tolerance, rtol=0), name


def test_hugging_face_folder(reference, hugging_face_folder):
    weights = read_whisper(hugging_face_folder)
    assert_equal(weights.tensors, expected(reference))
    assert (weights.width, weights.heads, weights.bins, weights.ffn_dim) == (128, 2, 80, 96)
    assert (weights.layers("encoder"), weights.layers("decoder")) == (2, 3)


def openai_state(reference) -> dict[str, torch.Tensor]:
    """The weights under the names of OpenAI's own code, written down from its modules."""
    renames = [
        (r"self_attn_layer_norm\.", "attn_ln."),
        (r"encoder_attn_layer_norm\.", "cross_attn_ln."),
        (r"final_layer_norm\.", "mlp_ln."),
        (r"self_attn\.", "attn."),
        (r"encoder_attn\.", "cross_attn."),
        (r"q_proj\.", "query."),
        (r"k_proj\.", "key."),
        (r"v_proj\.", "value."),
        (r"out_proj\.", "out."),
        (r"fc1\.", "mlp.0."),
        (r"fc2\.", "mlp.2."),
        (r"^encoder\.layer_norm\.", "encoder.ln_post."),
        (r"^decoder\.layer_norm\.", "decoder.ln."),
        (r"embed_tokens\.", "token_embedding."),
        (r"embed_positions\.weight", "positional_embedding"),
        (r"layers\.", "blocks."),
    ]
    found = {}
    for name, tensor in expected(reference).items():
        for old, new in renames:
            name = re.sub(old, new, name)
        found[name] = tensor
    return found


def test_openai_file(reference, tmp_path):
    path = tmp_path / "tiny.pt"
    torch.save({"dims": {"n_mels": 80}, "model_state_dict": openai_state(reference)}, path)
    assert_equal(read_whisper(path).tensors, expected(reference))
    assert_equal(read_whisper(tmp_path).tensors, expected(reference))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("decoder.blocks.3.cross_attn.key.weight", "decoder.layers.3.encoder_attn.k_proj.weight"),
        ("encoder.blocks.0.attn_ln.bias", "encoder.layers.0.self_attn_layer_norm.bias"),
        ("encoder.positional_embedding", "encoder.embed_positions.weight"),
        ("decoder.ln.weight", "decoder.layer_norm.weight"),
    ],
)
def test_openai_names(theirs, ours):
    assert openai_name(theirs) == ours


@pytest.mark.parametrize(("quantization", "tolerance"), [("float32", 1e-6), ("int8", 0.01)])
def test_ctranslate2_folder(
    reference, hugging_face_folder, tokenizer, tmp_path, quantization, tolerance, monkeypatch
):
    converters = pytest.importorskip("ctranslate2.converters")
    # The converter wants a tokenizer beside the weights; what it says is of no interest here.
    transformers = pytest.importorskip("transformers")
    names = {f"<{index}>": index for index in range(400)}
    fake = type("Tokens", (), {"get_vocab": lambda self: names, "all_special_ids": []})()
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: fake)
    converter = converters.TransformersConverter(str(hugging_face_folder))
    try:
        converter.convert(str(tmp_path / "ct2"), quantization=quantization)
    except (AttributeError, TypeError) as error:  # versions of the two libraries that do not match
        pytest.skip(f"the converter does not run here: {error}")
    found = read_whisper(tmp_path / "ct2").tensors
    for name, tensor in expected(reference).items():
        if name.endswith("k_proj.bias"):
            continue
        assert torch.allclose(found[name], tensor, atol=tolerance, rtol=0), name


def test_what_is_no_whisper_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no Whisper model"):
        read_whisper(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"\x06\0\0\0\x05\0abc")
    with pytest.raises(ValueError, match="not a whole CTranslate2 model"):
        read_whisper(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"\xff\0\0\0")
    with pytest.raises(ValueError, match="format 255 is not known"):
        read_whisper(tmp_path)
    torch.save({"weights": 1}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no model_state_dict"):
        read_whisper(tmp_path / "x.pt")
    torch.save({"model_state_dict": {"a": torch.zeros(1)}}, tmp_path / "y.pt")
    with pytest.raises(ValueError, match=r"it has no encoder\.conv1"):
        read_whisper(tmp_path / "y.pt")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    import pickle

    class Runs:
        def __reduce__(self):
            return (print, ("ran",))

    (tmp_path / "z.pt").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(ValueError, match="not a file of plain tensors"):
        read_whisper(tmp_path / "z.pt")
