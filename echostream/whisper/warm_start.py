"""Configurations and weights that start from a Whisper model.

The encoder becomes an Emformer whose layers normalise as Whisper's do; given a segment that spans
the whole utterance it computes what Whisper computes. Its keys have no bias in Whisper: ours is
zero. The decoder becomes the text decoder, its vocabulary cut
(:class:`~echostream.whisper.tokens.CutVocabulary`). Of the stack's 50 frames a second, those that
the CTC heads read are averaged in pairs at first; the text decoder may see all of them, as
Whisper's does. Everything is trained on (docs/howto/start-from-whisper.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from echostream.config import EmformerConfig, FrontendConfig, MTDecoderConfig
from echostream.models.decoders.transformer_decoder import TransformerMTDecoder
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder
from echostream.whisper.tokens import CutVocabulary
from echostream.whisper.weights import WhisperWeights


def whisper_frontend(weights: WhisperWeights) -> FrontendConfig:
    """The log-mel frames that the weights were trained on."""
    return FrontendConfig(num_mel_bins=weights.bins, kind="whisper")


def whisper_encoder(
    weights: WhisperWeights,
    *,
    segment_frames: int = 8,
    left_context_frames: int = 128,
    right_context_frames: int = 0,
    memory_size: int = 0,
    dropout: float = 0.0,
) -> EmformerConfig:
    """The Emformer that takes Whisper's encoder layers.

    Args:
        segment_frames: default segment, in encoder frames of 40 ms.
        left_context_frames, right_context_frames: in frames of the stack, of 20 ms.
        memory_size: summaries of earlier segments; Whisper's layers have to learn to use them.
    """
    return EmformerConfig(
        input_dim=weights.bins,
        subsampler="whisper",
        embed_dim=weights.width,
        layers=weights.layers("encoder"),
        attention_heads=weights.heads,
        ffn_dim=weights.ffn_dim,
        dropout=dropout,
        activation="gelu",
        segment_frames=segment_frames,
        left_context_frames=left_context_frames,
        right_context_frames=right_context_frames,
        memory_size=memory_size,
        output_norm="stack",
        positions="sinusoid",
        position_period=len(weights.tensors["encoder.embed_positions.weight"]),
    )


def whisper_decoder(
    weights: WhisperWeights,
    vocabulary: CutVocabulary,
    *,
    layers: Sequence[int] | None = None,
    alignment_heads: Sequence[tuple[int, int]] = (),
    transcripts: CutVocabulary | None = None,
    source: Literal["encoder", "stack"] = "encoder",
) -> MTDecoderConfig:
    """The text decoder that takes Whisper's decoder layers.

    Args:
        vocabulary: of the translation.
        layers: these of them only.
        transcripts: vocabulary of the transcripts that it writes too; None: it writes none.
        source: 25 frames a second or, as Whisper's does, 50.
        alignment_heads: of Whisper (:func:`~echostream.whisper.weights.read_alignment_heads`).
    """
    kept = list(range(weights.layers("decoder")) if layers is None else layers)
    return MTDecoderConfig(
        layers=len(kept),
        embed_dim=weights.width,
        attention_heads=weights.heads,
        ffn_dim=weights.ffn_dim,
        dropout=0.0,
        context_tokens=None,
        activation="gelu",
        learned_positions=len(weights.tensors["decoder.embed_positions.weight"]),
        scale_embeddings=False,
        prompt=vocabulary.prompt,
        no_repeat_ngram=3,
        transcript_no_repeat_ngram=4,
        alignment_heads=tuple((kept.index(a), b) for a, b in alignment_heads if a in kept),
        source=source,
        transcript_prompt=() if transcripts is None else transcripts.prompt,
        transcript_vocab_size=0 if transcripts is None else len(transcripts.origins),
    )


@torch.no_grad()
def start_encoder(encoder: EchoStreamSpeechEncoder, weights: WhisperWeights) -> None:
    """Fill an encoder of :func:`whisper_encoder`.

    Raises:
        ValueError: the encoder has another shape.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in _part(weights, "encoder").items():
        if name.startswith(("conv1.", "conv2.")):
            found[f"subsample.{name}"] = tensor
        elif name.startswith("layer_norm."):
            found[name] = tensor
        elif name.startswith("layers.") and ".self_attn." not in name:
            name = name.replace("self_attn_layer_norm", "input_layer_norm")
            found["emformer." + name.replace("final_layer_norm", "ffn_layer_norm")] = tensor
    for index in range(weights.layers("encoder")):
        source, target = f"encoder.layers.{index}.self_attn.", f"emformer.layers.{index}."
        for leaf in ("weight", "bias"):
            own = {letter: _projection(weights, f"{source}{letter}_proj", leaf) for letter in "qkv"}
            found[f"{target}q_proj.{leaf}"] = own["q"]
            found[f"{target}kv_proj.{leaf}"] = torch.cat([own["k"], own["v"]])
            found[f"{target}out_proj.{leaf}"] = weights.tensors[f"{source}out_proj.{leaf}"]
    _fill(encoder, found, weights, besides=("merge.",))


@torch.no_grad()
def start_decoder(
    decoder: TransformerMTDecoder,
    weights: WhisperWeights,
    vocabulary: CutVocabulary,
    *,
    layers: Sequence[int] | None = None,
    transcripts: CutVocabulary | None = None,
) -> None:
    """Fill a text decoder of :func:`whisper_decoder`, with the same vocabularies and layers.

    Raises:
        ValueError: the decoder has another shape.
    """
    kept = range(weights.layers("decoder")) if layers is None else layers
    found: dict[str, Tensor] = {}
    for name, tensor in _part(weights, "decoder").items():
        if not name.startswith(("layers.", "embed_tokens.")):
            found[name] = tensor
    for target, source in enumerate(kept):
        prefix = f"decoder.layers.{source}."
        for name, tensor in weights.tensors.items():
            if name.startswith(prefix):
                found[f"layers.{target}.{name.removeprefix(prefix)}"] = tensor
        for attention in ("self_attn", "encoder_attn"):
            key = f"{attention}.k_proj"
            found[f"layers.{target}.{key}.bias"] = _projection(weights, prefix + key, "bias")
    table = weights.tensors["decoder.embed_tokens.weight"]
    origins = [*vocabulary.origins, *(() if transcripts is None else transcripts.origins)]
    own = table.new_zeros(len(origins), table.size(1))
    known = [index for index, origin in enumerate(origins) if origin >= 0]
    own[known] = table[[origins[index] for index in known]]
    found["embed_tokens.weight"] = own
    _fill(decoder, found, weights)


@torch.no_grad()
def interpolate(module: torch.nn.Module, start: Mapping[str, Tensor], share: float) -> None:
    """Move a module's weights back towards where training started.

    What was trained on little data forgets what it knew of everything else. A mean of both weights
    keeps more of each than either (Wortsman et al., "Robust fine-tuning of zero-shot models",
    CVPR 2022).

    Args:
        module: trained; changed in place.
        start: its weights before training.
        share: of the trained weights; 1: all stays as it is.

    Raises:
        ValueError: a share outside 0 to 1.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"the share of trained weights must be between 0 and 1, got {share}")
    for name, tensor in module.state_dict().items():
        tensor.lerp_(start[name].to(tensor), 1.0 - share)


def _part(weights: WhisperWeights, side: str) -> dict[str, Tensor]:
    prefix = side + "."
    return {n.removeprefix(prefix): t for n, t in weights.tensors.items() if n.startswith(prefix)}


def _projection(weights: WhisperWeights, name: str, leaf: str) -> Tensor:
    """A projection's tensor; keys have no bias, which is one of zeros."""
    found = weights.tensors.get(f"{name}.{leaf}")
    return weights.tensors[f"{name}.weight"].new_zeros(weights.width) if found is None else found


def _fill(
    module: torch.nn.Module,
    found: dict[str, Tensor],
    weights: WhisperWeights,
    besides: tuple[str, ...] = (),
) -> None:
    own = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if not (besides and name.startswith(besides))
    }
    problems = [f"missing {name}" for name in own if name not in found]
    problems += [
        f"{name}: {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"{weights.where} does not fit: {'; '.join(problems[:10])}")
    for name, tensor in own.items():
        tensor.copy_(found[name])
