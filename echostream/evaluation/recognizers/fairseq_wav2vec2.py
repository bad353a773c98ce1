"""Fine-tuned wav2vec 2.0 of fairseq in torchaudio's ``Wav2Vec2Model``, without fairseq."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echostream.evaluation.recognizers.ctc import CTCRecognizer, receptive_field
from echostream.torch_files import read_checkpoint

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
# The letters of fairseq's dict.ltr.txt for LibriSpeech, which every English fine-tuned model of
# wav2vec 2.0 shares; used when the dictionary is not beside the checkpoint.
LIBRISPEECH_LETTERS = list("|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
DEFAULT_CONV_LAYERS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] + [(512, 2, 2)]"


def parse_conv_layers(text: str) -> list[tuple[int, int, int]]:
    """Read fairseq's ``conv_feature_layers`` without ``eval``.

    Raises:
        ValueError: anything but lists of (channels, kernel, stride), ``+`` and ``* n``.
    """

    def evaluate(node: ast.AST) -> Any:
        if isinstance(node, ast.Expression):
            return evaluate(node.body)
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.List):
            return [evaluate(item) for item in node.elts]
        if isinstance(node, ast.Tuple):
            return tuple(evaluate(item) for item in node.elts)
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
            left, right = evaluate(node.left), evaluate(node.right)
            adds = isinstance(node.op, ast.Add)
            if adds and isinstance(left, list) and isinstance(right, list):
                return left + right
            if not adds and isinstance(left, list) and isinstance(right, int) and right <= 64:
                return left * right
        raise ValueError(f"conv_feature_layers: cannot read {text!r}")

    try:
        layers = evaluate(ast.parse(text, mode="eval"))
    except SyntaxError as error:
        raise ValueError(f"conv_feature_layers: cannot read {text!r}") from error
    shaped = isinstance(layers, list) and all(
        isinstance(layer, tuple) and len(layer) == 3 and all(isinstance(v, int) for v in layer)
        for layer in layers
    )
    if not shaped or not layers:
        raise ValueError(f"conv_feature_layers: cannot read {text!r}")
    return layers


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


class _Settings:
    """Looks a setting up in every place where a fairseq checkpoint may keep it.

    A fine-tuned model carries the settings of the pre-trained one inside its own (``w2v_args``),
    and old checkpoints use ``args`` where newer ones use ``cfg``.
    """

    def __init__(self, checkpoint: dict[str, Any]) -> None:
        outer = [_as_dict(checkpoint.get("cfg")).get(part) for part in ("model", "task")]
        outer.append(checkpoint.get("args"))
        places: list[dict[str, Any]] = []
        for place in map(_as_dict, outer):
            inner = _as_dict(place.get("w2v_args"))
            places += [_as_dict(inner.get("model")), _as_dict(inner.get("args")), inner]
            places += [_as_dict(inner.get("task"))]
        self._pretrained = places
        self._finetuned = [_as_dict(place) for place in outer]

    def architecture(self, name: str, default: Any) -> Any:
        return self._find(name, self._pretrained + self._finetuned, default)

    def run(self, name: str, default: Any) -> Any:
        return self._find(name, self._finetuned + self._pretrained, default)

    @staticmethod
    def _find(name: str, places: list[dict[str, Any]], default: Any) -> Any:
        for place in places:
            if place.get(name) is not None:
                return place[name]
        return default


_KEY_RULES = (
    (
        r"feature_extractor\.conv_layers\.(\d+)\.0\.(.+)",
        r"feature_extractor.conv_layers.\1.conv.\2",
    ),
    # Layer norm sits between two transpositions in fairseq, hence the extra index.
    (
        r"feature_extractor\.conv_layers\.(\d+)\.2(?:\.1)?\.(weight|bias)",
        r"feature_extractor.conv_layers.\1.layer_norm.\2",
    ),
    (r"post_extract_proj\.(.+)", r"encoder.feature_projection.projection.\1"),
    (r"layer_norm\.(.+)", r"encoder.feature_projection.layer_norm.\1"),
    (r"encoder\.pos_conv\.0\.(.+)", r"encoder.transformer.pos_conv_embed.conv.\1"),
    (r"encoder\.layer_norm\.(.+)", r"encoder.transformer.layer_norm.\1"),
    (
        r"encoder\.layers\.(\d+)\.self_attn\.(.+)",
        r"encoder.transformer.layers.\1.attention.\2",
    ),
    (
        r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(.+)",
        r"encoder.transformer.layers.\1.layer_norm.\2",
    ),
    (
        r"encoder\.layers\.(\d+)\.fc1\.(.+)",
        r"encoder.transformer.layers.\1.feed_forward.intermediate_dense.\2",
    ),
    (
        r"encoder\.layers\.(\d+)\.fc2\.(.+)",
        r"encoder.transformer.layers.\1.feed_forward.output_dense.\2",
    ),
    (
        r"encoder\.layers\.(\d+)\.final_layer_norm\.(.+)",
        r"encoder.transformer.layers.\1.final_layer_norm.\2",
    ),
)
# Parts of pre-training that recognition does not run.
_UNUSED = re.compile(r"(mask_emb|quantizer|project_q|final_proj)\b")


def torchaudio_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of fairseq's ``Wav2VecCtc`` to those of torchaudio's ``Wav2Vec2Model``.

    Raises:
        ValueError: a key belongs to neither the encoder nor the output projection.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        inner = key.removeprefix("w2v_encoder.")
        if inner.startswith("proj."):
            renamed["aux." + inner.removeprefix("proj.")] = tensor
            continue
        inner = inner.removeprefix("w2v_model.")
        if _UNUSED.match(inner):
            continue
        for pattern, replacement in _KEY_RULES:
            if re.fullmatch(pattern, inner):
                renamed[re.sub(pattern, replacement, inner)] = tensor
                break
        else:
            raise ValueError(f"not a weight of a fine-tuned wav2vec 2.0 model: {key!r}")
    return renamed


def _model_arguments(state: dict[str, Tensor], settings: _Settings) -> dict[str, Any]:
    """Arguments of ``torchaudio.models.wav2vec2_model``: shapes where they tell, settings else."""
    layers = {int(m[1]) for key in state if (m := re.match(r"encoder.*\.layers\.(\d+)\.", key))}
    embed_dim = state["encoder.feature_projection.projection.weight"].shape[0]
    heads = settings.architecture(
        "encoder_attention_heads", {768: 12, 1024: 16, 1280: 16}.get(embed_dim)
    )
    if heads is None:
        raise ValueError(
            f"the checkpoint does not say encoder_attention_heads and width {embed_dim} is none "
            "of wav2vec 2.0's own (768, 1024, 1280)"
        )
    # A weight-normalised convolution keeps its direction: (out, in / groups, kernel).
    positional = state["encoder.transformer.pos_conv_embed.conv.weight_v"]
    every_layer = "feature_extractor.conv_layers.1.layer_norm.weight" in state
    return {
        "extractor_mode": "layer_norm" if every_layer else "group_norm",
        "extractor_conv_layer_config": parse_conv_layers(
            settings.architecture("conv_feature_layers", DEFAULT_CONV_LAYERS)
        ),
        "extractor_conv_bias": "feature_extractor.conv_layers.0.conv.bias" in state,
        "encoder_embed_dim": embed_dim,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": positional.shape[2],
        "encoder_pos_conv_groups": embed_dim // positional.shape[1],
        "encoder_num_layers": len(layers),
        "encoder_num_heads": heads,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": state[
            "encoder.transformer.layers.0.feed_forward.intermediate_dense.weight"
        ].shape[0],
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": bool(settings.architecture("layer_norm_first", every_layer)),
        "encoder_layer_drop": 0.0,
        "aux_num_out": state["aux.weight"].shape[0],
    }


def _fairseq_tokens(path: Path, outputs: int) -> list[str]:
    dictionary = path.with_name("dict.ltr.txt")
    if dictionary.is_file():
        lines = dictionary.read_text(encoding="utf-8").splitlines()
        tokens = SPECIALS + [line.split()[0] for line in lines if line.strip()]
    else:
        tokens = SPECIALS + LIBRISPEECH_LETTERS
    if len(tokens) != outputs:
        raise ValueError(
            f"{path} has {outputs} outputs but the dictionary has {len(tokens)} symbols; put the "
            f"model's dict.ltr.txt beside it (looked for {dictionary})"
        )
    return tokens


def load_fairseq_recognizer(path: Path, device: torch.device) -> CTCRecognizer:
    """Import a fine-tuned wav2vec 2.0 checkpoint of fairseq into torchaudio's ``Wav2Vec2Model``.

    Nothing in the file is executed. The letters come from ``dict.ltr.txt`` beside it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a checkpoint, or it holds objects that are refused.
    """
    from torchaudio.models import wav2vec2_model

    checkpoint = read_checkpoint(path, keep=("cfg", "args", "model"))
    if not isinstance(checkpoint.get("model"), dict):
        raise ValueError(f"{path}: expected a fairseq checkpoint with 'model', got something else")
    state = torchaudio_keys(checkpoint["model"])
    if "aux.weight" not in state:
        raise ValueError(f"{path}: a pre-trained model without an output layer cannot recognise")
    settings = _Settings(checkpoint)
    arguments = _model_arguments(state, settings)
    model = wav2vec2_model(**arguments)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"{path}: weights do not fit wav2vec 2.0; missing {missing[:3]}, "
            f"unexpected {unexpected[:3]}"
        )
    model.to(device).float().eval()
    tokens = _fairseq_tokens(path, arguments["aux_num_out"])
    return CTCRecognizer(
        f"wav2vec2:{path.name}",
        lambda waveform: model(waveform)[0],
        tokens,
        blank=0,
        silence="|" if "|" in tokens else tokens[2],
        # The models with layer norm in the extractor are the ones trained on normalised audio.
        normalize=bool(settings.run("normalize", arguments["extractor_mode"] == "layer_norm")),
        min_samples=receptive_field(arguments["extractor_conv_layer_config"]),
        device=device,
    )
