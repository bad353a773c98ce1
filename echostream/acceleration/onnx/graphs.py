"""The steps of a model as pure functions of tensors, for one stream: what is exported.

A function takes new input, masks and what is remembered, and returns output and what is new to
remember. Counters, rollbacks, windows and everything else that is a decision stays with the caller
(:mod:`echostream.acceleration.onnx.onnx_model`). Arithmetic is the modules' own.

Keys and values of a stack of layers are one tensor, (P, n, 2, H, D/H) for P positions: its slices
in time are contiguous, and a runtime appends to it and drops from it without knowing layers.

Shapes: T filterbank frames (a multiple of 4), S segment frames, R right-context frames, L left
context, M memory slots, Q queries, K keys, n layers, P past positions, N text states, r upsample
ratio, F unit frames, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from echostream.config import EmformerConfig
from echostream.models.decoders.ctc_collapse import NEVER
from echostream.models.decoders.ctc_decoder import CTCDecoder, CTCDecoderWithTransformerLayer
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder
from echostream.models.echostream_model import EchoStreamModel
from echostream.models.emformer_layer import EmformerLayerState, StepLayout
from echostream.models.transformer_layer import TransformerLayer, sinusoid
from echostream.streaming import PerRow


def run_with_past(
    layers: Sequence[TransformerLayer],
    x: Tensor,
    past: Tensor,
    mask: Tensor | None,
    sources: Tensor | None = None,
    source_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """New positions through a stack.

    Args:
        x: (1, T, D).
        past: (P, n, 2, H, D/H) keys and values before them.
        mask: (T, P + T), True where visible; None: everything.
        sources: (K, n, 2, H, D/H) keys and values of cross-attention.
        source_mask: (1, K), True where visible; None: everything.

    Returns:
        (1, T, D), and (T, n, 2, H, D/H) new keys and values.
    """
    new: list[Tensor] = []
    for index, layer in enumerate(layers):

        def remember(key: Tensor, value: Tensor, index: int = index) -> tuple[Tensor, Tensor]:
            new.append(torch.stack([key[0], value[0]]).permute(2, 0, 1, 3))  # (T, 2, H, D/H)
            old_key, old_value = _attended(past, index)
            return torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2)

        source = None if sources is None else _attended(sources, index)
        x = layer(x, mask, source, source_mask, past=remember)
    return x, torch.stack(new, dim=1)


def _attended(cache: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """Keys and values of one layer, (1, H, P, D/H)."""
    layer = cache[:, index].permute(1, 2, 0, 3)[:, None]
    return layer[0], layer[1]


def project_sources(layers: Sequence[TransformerLayer], frames: Tensor) -> Tensor:
    """(1, S, D) frames to (S, n, 2, H, D/H) keys and values of cross-attention."""
    pairs = [torch.stack(layer.encoder_attn.project(frames)) for layer in layers]
    return torch.stack(pairs)[:, :, 0].permute(3, 0, 1, 2, 4)


def best_labels(logits: Tensor) -> Tensor:
    """(T, V) logits to (T,) the best label of each frame that a CTC head may choose."""
    allowed = torch.zeros(logits.size(-1))
    allowed[list(NEVER)] = -torch.inf
    return (logits + allowed).argmax(dim=-1)


class Subsampling(nn.Module):
    """Filterbank frames to encoder frames, a quarter as many."""

    def __init__(self, encoder: EchoStreamSpeechEncoder) -> None:
        super().__init__()
        self.subsample = encoder.subsample

    def forward(
        self, features: Tensor, valid: Tensor, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step.

        Args:
            features: (1, T, bins), zeros behind the end of the stream.
            valid: (T / 2,), 0 where the first convolution's output lies behind the end, else 1.
            first, second: (1, left, ...) inputs that each convolution still reads.

        Returns:
            (1, T / 4, D), and the new ``first`` and ``second``.
        """
        convolutions = self.subsample
        x, kept = convolutions._shape_input(features), []
        for index, past in enumerate((first, second)):
            if index:
                x = x * valid.view(1, 1, -1, *[1] * (x.dim() - 3))
            read = torch.cat([past.transpose(1, 2), x], dim=2)
            kept.append(read[:, :, -convolutions.left :].transpose(1, 2))
            x = convolutions._convolve(index, read)
        new_first, new_second = kept
        return convolutions._shape_output(x), new_first, new_second


class Listening(nn.Module):
    """Emformer and CTC heads over one segment."""

    def __init__(self, model: EchoStreamModel) -> None:
        super().__init__()
        if not isinstance(model.encoder, EchoStreamSpeechEncoder):
            raise ValueError("only systems with an Emformer can be exported")
        self.stack = model.encoder.emformer
        self.asr, self.st = model.source_unigram_decoder, model.ctc_target_unigram_decoder

    def forward(
        self,
        segment: Tensor,
        mask: Tensor,
        left: Tensor,
        right: Tensor | None = None,
        memory: Tensor | None = None,
        conv: Tensor | None = None,
        asr_past: Tensor | None = None,
        asr_mask: Tensor | None = None,
        st_past: Tensor | None = None,
        st_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """One step; an argument is absent where the configuration has no use for it.

        Args:
            segment: (1, S, D).
            mask: (Q, K) added to attention scores: queries are [right | segment | summary], keys
                [memory | left | right | segment].
            left: (n, L, 2D) keys and values before the segment.
            right: (1, R, D) look-ahead behind it.
            memory: (n, M, 2D) of earlier segments' summaries.
            conv: (n, kernel - 1, D) inputs of the depthwise convolutions.
            asr_past, st_past: keys and values of a head's layers.
            asr_mask, st_mask: (S, P + S), True where visible.

        Returns:
            frames (1, S, D), ASR logits (S, V), ASR labels (S,), ST labels (S,), the new ``left``,
            ``memory`` and ``conv``, new keys and values of the heads; of the latter five what
            there is.
        """
        size, ahead = segment.size(1), 0 if right is None else right.size(1)
        layout = StepLayout(
            PerRow((size,)), PerRow((ahead,)), size, ahead, mask[None, None], None, PerRow((1,))
        )
        state = tuple(
            EmformerLayerState(
                left[index : index + 1],
                _rows(memory, left, index, left.size(2)),
                _rows(conv, left, index, segment.size(2)),
            )
            for index in range(left.size(0))
        )
        x = segment if right is None else torch.cat([segment, right], dim=1)
        frames, state = self.stack.compute(x, state, layout)
        remembered = [torch.cat([layer.left for layer in state])]
        if memory is not None:
            remembered.append(torch.cat([layer.memory for layer in state]))
        if conv is not None:
            remembered.append(torch.cat([layer.conv for layer in state]))
        logits, kept = self._head(self.asr, frames, asr_past, asr_mask)
        st_logits, st_kept = self._head(self.st, frames, st_past, st_mask)
        labels = best_labels(logits), best_labels(st_logits)
        return frames, logits, *labels, *remembered, *kept, *st_kept

    @staticmethod
    def _head(
        head: CTCDecoder | CTCDecoderWithTransformerLayer,
        frames: Tensor,
        past: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """(S, V) logits, and new keys and values if the head has layers."""
        if past is None or isinstance(head, CTCDecoder):
            return head.proj(frames)[0], []
        x, new = run_with_past(head.layers, frames, past, mask)
        return head.proj(head.layer_norm(x))[0], [new]


def _rows(states: Tensor | None, like: Tensor, index: int, width: int) -> Tensor:
    """One layer's state, or an empty one."""
    return like.new_zeros(1, 0, width) if states is None else states[index : index + 1]


class Reading(nn.Module):
    """Encoder frames to what the text decoder's cross-attention sees of them."""

    def __init__(self, model: EchoStreamModel) -> None:
        super().__init__()
        self.layers = model.target_unigram_decoder.layers

    def forward(self, frames: Tensor) -> Tensor:
        """(1, S, D) to (S, n, 2, H, D/H)."""
        return project_sources(self.layers, frames)


class Translating(nn.Module):
    """One step of the text decoder."""

    def __init__(self, model: EchoStreamModel) -> None:
        super().__init__()
        self.decoder = model.target_unigram_decoder

    def forward(
        self, token: Tensor, position: Tensor, past: Tensor, sources: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One position.

        Args:
            token: (1, 1) what was written last.
            position: (1,) positions before this one.
            past: (P, n, 2, H, D/H) those that may still be seen.
            sources: (K, n, 2, H, D/H) source frames that may be seen.

        Returns:
            (1, 1, D) decoder state, (V,) log-probabilities, and (1, n, 2, H, D/H).
        """
        decoder = self.decoder
        # fairseq counts positions from pad + 1.
        at = sinusoid(position + decoder.pad + 1, decoder.config.embed_dim, dtype=torch.float32)
        x = math.sqrt(decoder.config.embed_dim) * decoder.embed_tokens(token) + at[None]
        x, new = run_with_past(decoder.layers, x, past, None, sources)
        hidden = decoder.layer_norm(x)
        return hidden, decoder.logits(hidden)[0, 0].log_softmax(dim=-1), new


class Speaking(nn.Module):
    """Text states to labels of unit frames."""

    def __init__(self, model: EchoStreamModel) -> None:
        super().__init__()
        if model.synthesizer_encoder is None or model.decoder is None:
            raise ValueError("this system has no unit decoder to export")
        self.encoder, self.decoder = model.synthesizer_encoder, model.decoder

    def forward(
        self,
        text: Tensor,
        past: Tensor,
        mask: Tensor,
        sources: Tensor,
        source_mask: Tensor,
        t2u_past: Tensor | None = None,
        t2u_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """One step.

        Args:
            text: (1, N, D) new text states.
            past: (P, n, 2, H, D/H) unit frames before.
            mask: (N r, P + N r), True where visible.
            sources: (K, n, 2, H, D/H) text states before.
            source_mask: (K + N,), True where visible.
            t2u_past, t2u_mask: of the text-to-unit encoder, if it has layers.

        Returns:
            (N r,) labels, (N r, n, 2, H, D/H) and (N, n, 2, H, D/H) new keys and values, and those
            of the text-to-unit encoder, if it has layers.
        """
        kept = []
        if t2u_past is not None:
            text, new = run_with_past(self.encoder.layers, text, t2u_past, t2u_mask)
            text, kept = self.encoder.layer_norm(text), [new]
        decoder = self.decoder
        read = project_sources(decoder.layers, text)
        x = decoder._upsample(text, torch.zeros(1, dtype=torch.long))
        x, new = run_with_past(
            decoder.layers, x, past, mask, torch.cat([sources, read]), source_mask[None]
        )
        logits = decoder.output_projection(decoder.layer_norm(x))[0]
        return best_labels(logits), new, read, *kept


class Durations(nn.Module):
    """How long units last."""

    def __init__(self, vocoder: CodeHiFiGANVocoder) -> None:
        super().__init__()
        self.generator = vocoder.generator

    def forward(self, units: Tensor) -> Tensor:
        """(1, N) units to (N,) frames."""
        return self.generator.durations(units)[0]


class Vocoding(nn.Module):
    """Unit frames to waveform, as one stretch with silence around it."""

    def __init__(self, vocoder: CodeHiFiGANVocoder) -> None:
        super().__init__()
        self.generator = vocoder.generator

    def forward(self, units: Tensor) -> Tensor:
        """(1, F) the unit of every frame to (F * unit_samples,) waveform."""
        return self.generator.synthesize(self.generator.embed(units, None))[0, 0]


def check_exportable(model: EchoStreamModel) -> None:
    """
    Raises:
        ValueError: the encoder is not an Emformer.
    """
    kind = model.config.encoder.kind
    if not isinstance(model.config.encoder, EmformerConfig):
        raise ValueError(
            f"only systems with an Emformer encoder can be exported to ONNX, this one's is {kind!r}"
        )
