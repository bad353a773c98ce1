"""Listening to several streams at once, each at its own position.

Caches of different fill are padded in front and what was never filled is hidden, so a stream hears
what it would hear alone. Streams share a step when their new features are equally many and their
convolutions and look-ahead hold equally much; :func:`batch_key` says so. What is written and spoken
differs in length from stream to stream and stays with each.

Shapes: B streams, T filterbank frames, S encoder frames, M memory slots, L left-context frames,
K cached positions, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from echostream.models.echostream_encoder import EncoderState, SubsamplerState
from echostream.models.echostream_model import (
    EchoStreamModel,
    EchoStreamState,
    best_labels,
    label_emissions,
)
from echostream.models.emformer_layer import EmformerLayerState
from echostream.models.heard import Heard
from echostream.models.transformer_layer import KVCache, UnidirectionalState


@dataclass(frozen=True)
class BatchedState:
    """States of B streams, stacked where listening reads them.

    Attributes:
        streams: the streams; encoder and CTC heads in them are out of date.
        encoder: of all streams, caches padded in front.
        left_frames, memory_slots: how many of their last positions each stream has filled.
        asr, st: caches of the CTC heads, padded in front.
        asr_lengths, st_lengths: positions that each stream ever put into them.
    """

    streams: tuple[EchoStreamState, ...]
    encoder: EncoderState
    left_frames: tuple[int, ...]
    memory_slots: tuple[int, ...]
    asr: UnidirectionalState
    st: UnidirectionalState
    asr_lengths: tuple[int, ...]
    st_lengths: tuple[int, ...]


def batch_key(features: Tensor, state: EchoStreamState) -> tuple[object, ...] | None:
    """Streams with equal keys can share a step; None: this stream listens alone (its encoder is
    no Emformer)."""
    encoder = state.encoder
    if not isinstance(encoder, EncoderState):
        return None
    buffers = tuple(tuple(buffer.shape) for buffer in encoder.subsampler.buffers)
    return features.size(1), encoder.lookahead.size(1), buffers


def stack_states(states: Sequence[EchoStreamState]) -> BatchedState:
    """Put streams side by side.

    Raises:
        ValueError: their convolutions or look-ahead hold different numbers of frames.
    """
    encoders = [state.encoder for state in states]
    held = {
        (e.lookahead.shape, tuple(buffer.shape for buffer in e.subsampler.buffers))
        for e in encoders
    }
    if len(held) != 1:
        raise ValueError(
            "streams of a batch must hold equally many frames in their convolutions and "
            f"look-ahead, got {len(held)} different numbers among {len(states)} streams"
        )
    layers = tuple(
        EmformerLayerState(
            _stack_behind_padding([layer.left for layer in depth], 1),
            _stack_behind_padding([layer.memory for layer in depth], 1),
            torch.cat([layer.conv for layer in depth]),
        )
        for depth in zip(*(e.layers for e in encoders), strict=True)
    )
    buffers = zip(*(e.subsampler.buffers for e in encoders), strict=True)
    encoder = EncoderState(
        SubsamplerState(tuple(torch.cat(buffer) for buffer in buffers)),
        torch.cat([e.lookahead for e in encoders]),
        layers,
    )
    return BatchedState(
        tuple(states),
        encoder,
        tuple(e.layers[0].left.size(1) if e.layers else 0 for e in encoders),
        tuple(e.layers[0].memory.size(1) if e.layers else 0 for e in encoders),
        _stack_caches([state.asr for state in states]),
        _stack_caches([state.st for state in states]),
        tuple(state.asr.length for state in states),
        tuple(state.st.length for state in states),
    )


def unstack_states(batched: BatchedState) -> list[EchoStreamState]:
    """Take streams apart again; nothing in them shares memory with another stream."""
    states = []
    encoder = batched.encoder
    for row, stream in enumerate(batched.streams):
        one = slice(row, row + 1)
        left, slots = batched.left_frames[row], batched.memory_slots[row]
        layers = tuple(
            EmformerLayerState(
                layer.left[one, layer.left.size(1) - left :].clone(),
                layer.memory[one, layer.memory.size(1) - slots :].clone(),
                layer.conv[one].clone(),
            )
            for layer in encoder.layers
        )
        buffers = tuple(buffer[one].clone() for buffer in encoder.subsampler.buffers)
        alone = EncoderState(
            SubsamplerState(buffers),
            encoder.lookahead[one].clone(),
            layers,
            stream.encoder.frames,
        )
        states.append(
            replace(
                stream,
                encoder=alone,
                asr=_take_caches(batched.asr, row, batched.asr_lengths[row], stream.asr),
                st=_take_caches(batched.st, row, batched.st_lengths[row], stream.st),
            )
        )
    return states


def listen(
    model: EchoStreamModel,
    features: Tensor,
    batched: BatchedState,
    *,
    transcribe_only: bool = False,
) -> tuple[Tensor, list[Heard], BatchedState]:
    """What ``encode`` and ``emit`` of the model do, for B streams that go on.

    Args:
        features: (B, T, bins) new features.
        transcribe_only: run the ASR head alone.

    Returns:
        (B, S, D) completed encoder frames, what each stream heard, and the new state.
    """
    frames, batched = encode_together(model, features, batched)
    asr_logits, asr = _head(model.source_unigram_decoder, frames, "asr", batched)
    count = frames.size(1)
    asr_tokens, streams = _emit(asr_logits, batched.streams, "asr_collapse")
    lengths = tuple(length + count for length in batched.asr_lengths)
    batched = replace(batched, asr=asr, asr_lengths=lengths, streams=streams)
    st_tokens: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())] * len(streams)
    if not transcribe_only:
        logits, st = _head(model.ctc_target_unigram_decoder, frames, "st", batched)
        st_tokens, streams = _emit(logits, streams, "st_collapse")
        lengths = tuple(length + count for length in batched.st_lengths)
        batched = replace(batched, st=st, st_lengths=lengths, streams=streams)
    heard = [
        Heard(asr[0], st[0], (), (), None, count, asr[1], st[1], logits)
        for asr, st, logits in zip(asr_tokens, st_tokens, asr_logits, strict=True)
    ]
    return frames, heard, batched


def encode_together(
    model: EchoStreamModel, features: Tensor, batched: BatchedState
) -> tuple[Tensor, BatchedState]:
    """(B, T, bins) new features to (B, S, D) encoder frames, the encoder's part of
    :func:`listen`."""
    config, before = model.config.encoder, batched.encoder
    filled = None
    if before.layers:
        slots, left = before.layers[0].memory.size(1), before.layers[0].left.size(1)
        # Where all streams have filled everything, there is nothing to hide.
        if min(batched.memory_slots) < slots or min(batched.left_frames) < left:
            filled = torch.cat(
                [
                    _filled(batched.memory_slots, slots, features.device),
                    _filled(batched.left_frames, left, features.device),
                ],
                dim=1,
            )
    frames, encoder = model.encoder.step(features, before, filled=filled)
    count = frames.size(1)
    if not count:
        return frames, replace(batched, encoder=encoder)
    streams = tuple(
        replace(s, encoder=replace(s.encoder, frames=s.encoder.frames + count))
        for s in batched.streams
    )
    return frames, replace(
        batched,
        streams=streams,
        encoder=encoder,
        left_frames=tuple(
            min(left + count, config.left_context_frames) for left in batched.left_frames
        ),
        memory_slots=tuple(min(m + 1, config.memory_size) for m in batched.memory_slots),
    )


def _head(
    head: torch.nn.Module, frames: Tensor, name: str, batched: BatchedState
) -> tuple[Tensor, UnidirectionalState]:
    """(B, S, V) logits of a CTC head and its new caches."""
    state: UnidirectionalState = getattr(batched, name)
    if not state.caches or not frames.size(1):
        return head.step(frames, state)
    stored = state.caches[0].stored
    counts = [
        _count(length, getattr(stream, name).caches[0], stored)
        for length, stream in zip(getattr(batched, f"{name}_lengths"), batched.streams, strict=True)
    ]
    filled = F.pad(_filled(counts, stored, frames.device), (0, frames.size(1)), value=True)
    return head.step(frames, state, padding_mask=~filled)


def _emit(
    logits: Tensor, streams: Sequence[EchoStreamState], name: str
) -> tuple[list[tuple[tuple[int, ...], tuple[int, ...]]], tuple[EchoStreamState, ...]]:
    """Tokens and frames that each stream's logits emit, and the streams behind them."""
    found, following = [], []
    # All at once: a GPU would be waited for at every stream.
    for labels, stream in zip(best_labels(logits), streams, strict=True):
        tokens, positions, state = label_emissions(labels, getattr(stream, name))
        found.append((tuple(tokens), tuple(positions)))
        following.append(replace(stream, **{name: state}))
    return found, tuple(following)


def _filled(counts: Sequence[int], length: int, device: torch.device) -> Tensor:
    """(B, length), True at the last ``counts`` positions."""
    missing = torch.tensor([length - count for count in counts], device=device)
    return torch.arange(length, device=device) >= missing[:, None]


def _stack_behind_padding(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Tensors of one row each, ends aligned along ``dim``, zeros in front of the shorter."""
    longest = max(part.size(dim) for part in parts)
    padding = [0, 0] * (parts[0].dim() - 1 - dim)

    def behind_padding(part: Tensor) -> Tensor:
        missing = longest - part.size(dim)
        # Padding by nothing would copy.
        return F.pad(part, (*padding, missing, 0)) if missing else part

    return torch.cat([behind_padding(part) for part in parts])


def _count(length: int, before: KVCache, stored: int) -> int:
    """How many of the last ``stored`` positions a stream has filled that came with ``before``."""
    return min(length - before.offset, stored)


def _stack_caches(states: Sequence[UnidirectionalState]) -> UnidirectionalState:
    caches = []
    for depth in zip(*(state.caches for state in states), strict=True):
        key = _stack_behind_padding([cache.key for cache in depth], 2)
        value = _stack_behind_padding([cache.value for cache in depth], 2)
        caches.append(KVCache.of(key, value))
    return UnidirectionalState(tuple(caches))


def _take_caches(
    stacked: UnidirectionalState, row: int, length: int, before: UnidirectionalState
) -> UnidirectionalState:
    """One stream's caches; what left the window counts as dropped."""
    caches = []
    for cache, old in zip(stacked.caches, before.caches, strict=True):
        count = _count(length, old, cache.stored)
        first = cache.stored - count
        key, value = (x[row : row + 1, :, first:].clone() for x in (cache.key, cache.value))
        caches.append(KVCache.of(key, value, length - count))
    return UnidirectionalState(tuple(caches))
