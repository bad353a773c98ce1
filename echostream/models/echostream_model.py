"""The whole model: wiring of encoder, CTC heads, text decoder, unit decoder and vocoder.

Parameter names follow StreamSpeech (``source_unigram_decoder``, ``target_unigram_decoder``, ...),
so its weights load by name.

Shapes: B batch, T target positions, S encoder frames, N text states, r upsample ratio, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from echostream.config import ChunkConformerConfig, EchoStreamConfig
from echostream.models.decoders.ctc_decoder import (
    CollapseState,
    CTCDecoder,
    CTCDecoderWithTransformerLayer,
    collapse,
    emissions,
    greedy_labels,
)
from echostream.models.decoders.transformer_decoder import (
    Hypothesis,
    MTState,
    TransformerMTDecoder,
)
from echostream.models.decoders.unit_decoder import (
    CTCTransformerUnitDecoder,
    T2UEncoder,
    UnitState,
)
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder
from echostream.models.decoders.vocoder_integration import (
    StreamingVocoder,
    VocoderState,
    streaming_state,
)
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder, EncoderState
from echostream.models.heard import Heard
from echostream.models.transformer_layer import UnidirectionalState
from echostream.text import SPECIALS, Vocabulary

UNIT_OFFSET = len(SPECIALS)  # unit u is token u + 4
NEVER = (Vocabulary.pad, Vocabulary.unk)  # CTC heads never choose these


def build_encoder(config: EchoStreamConfig) -> nn.Module:
    """The encoder that the configuration names."""
    if isinstance(config.encoder, ChunkConformerConfig):
        from echostream.models.chunk_conformer_encoder import ChunkConformerEncoder

        return ChunkConformerEncoder(config.encoder)
    return EchoStreamSpeechEncoder(config.encoder)


@dataclass(frozen=True)
class EchoStreamState:
    """Streaming state of every component."""

    encoder: EncoderState
    asr: UnidirectionalState
    st: UnidirectionalState
    mt: MTState
    t2u: UnidirectionalState
    unit: UnitState
    vocoder: VocoderState | None
    asr_collapse: CollapseState = CollapseState()
    st_collapse: CollapseState = CollapseState()
    unit_collapse: CollapseState = CollapseState()


@dataclass(frozen=True)
class ModelOutput:
    """Logits of every head.

    Attributes:
        asr: (S, B, V_source) logits.
        st: (S, B, V_target) logits.
        mt: (B, T, V_target) logits.
        unit: (B, T * r, units) logits.
        encoder_out: fairseq's encoder dictionary.
        waveform: (samples,) per batch row, if asked for.
    """

    asr: Tensor
    st: Tensor
    mt: Tensor
    unit: Tensor
    encoder_out: dict[str, list[Tensor]]
    waveform: list[Tensor] | None = None


class EchoStreamModel(nn.Module):
    """Speech to transcript, translation, units and waveform.

    Args:
        config: the whole system.
    """

    def __init__(self, config: EchoStreamConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        width = self.encoder.embed_dim
        self.source_unigram_decoder = _ctc_head(config.asr_ctc, width, config.source_vocab_size)
        self.ctc_target_unigram_decoder = _ctc_head(config.st_ctc, width, config.target_vocab_size)
        self.target_unigram_decoder = TransformerMTDecoder(
            config.mt,
            width,
            config.target_vocab_size,
            pad=Vocabulary.pad,
            eos=Vocabulary.eos,
        )
        self.synthesizer_encoder = T2UEncoder(config.t2u, config.mt.embed_dim)
        self.decoder = CTCTransformerUnitDecoder(
            config.unit, config.num_units + UNIT_OFFSET + 1, pad=Vocabulary.pad
        )
        self.unit_blank = config.num_units + UNIT_OFFSET
        self.vocoder = (
            CodeHiFiGANVocoder(config.vocoder, config.num_units) if config.vocoder else None
        )

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        *,
        segment_frames: int | Sequence[int] | None = None,
        visible_source: Tensor | None = None,
        visible_text: Tensor | None = None,
        waveform: bool = False,
    ) -> ModelOutput:
        """Teacher-forced pass over whole utterances.

        Args:
            src_tokens: (B, frames, bins) normalised features.
            src_lengths: (B,).
            prev_output_tokens: (B, T) target text shifted right, padded.
            segment_frames: encoder segment length or partition; None: the configured default.
            visible_source: (B, T) source frames that each text position may see (the policy in
                training form); None: all.
            visible_text: (B, T) or (1, T) text states that each state's units may see; None: all.
            waveform: also synthesise each row's greedy units.
        """
        encoder_out = self.encoder(src_tokens, src_lengths, segment_frames=segment_frames)
        frames = encoder_out["encoder_out"][0]
        masks = encoder_out["encoder_padding_mask"]
        mt_logits, hidden = self.target_unigram_decoder(
            prev_output_tokens, frames, masks[0] if masks else None, visible_source
        )
        padding = prev_output_tokens.eq(Vocabulary.pad)
        text_padding = padding if bool(padding.any()) else None
        text = self.synthesizer_encoder(hidden.transpose(0, 1), text_padding)
        unit_logits = self.decoder(text.transpose(0, 1), text_padding, visible_text)
        speech = None
        if waveform:
            lengths = (~padding).sum(dim=1) * self.config.unit.upsample_ratio
            speech = [
                self._require_vocoder().generate(self._collapse_units(row[:length])[0])[0]
                for row, length in zip(unit_logits, lengths.tolist(), strict=True)
            ]
        return ModelOutput(
            self.source_unigram_decoder(frames),
            self.ctc_target_unigram_decoder(frames),
            mt_logits,
            unit_logits,
            encoder_out,
            speech,
        )

    def init_state(self, **encoder_options: int) -> EchoStreamState:
        """Fresh state of one stream, on the weights' device."""
        return EchoStreamState(
            encoder=self.encoder.init_state(1, **encoder_options),
            asr=self.source_unigram_decoder.init_state(1),
            st=self.ctc_target_unigram_decoder.init_state(1),
            **self.text_state(),
        )

    def encode(
        self, features: Tensor, state: EchoStreamState, *, final: bool = False
    ) -> tuple[Tensor, Tensor | None, EchoStreamState]:
        """(1, frames, bins) new features to (1, S, D) completed encoder frames, the (1, P, D)
        frames that will still change (or None), and the new state."""
        out, encoder = self.encoder.step(features, state.encoder, final=final)
        frames, tail = (out, None) if isinstance(out, Tensor) else (out.final, out.tail)
        return frames, tail, replace(state, encoder=encoder)

    def listen(
        self,
        frames: Tensor,
        tail: Tensor | None,
        state: EchoStreamState,
        *,
        transcribe_only: bool = False,
    ) -> tuple[Heard, EchoStreamState]:
        """Run the CTC heads over new encoder frames and hand them to the text decoder.

        Args:
            frames, tail: what :meth:`encode` returned.
            transcribe_only: run the ASR head alone, for streaming recognition.
        """
        heard, state = self.emit(frames, tail, state, transcribe_only=transcribe_only)
        return heard, state if transcribe_only else self.read(frames, state)

    def emit(
        self,
        frames: Tensor,
        tail: Tensor | None,
        state: EchoStreamState,
        *,
        transcribe_only: bool = False,
    ) -> tuple[Heard, EchoStreamState]:
        """The CTC heads' part of :meth:`listen`."""
        asr, asr_tail, asr_frames, asr_head, asr_collapse, logits = self._ctc(
            self.source_unigram_decoder, frames, tail, state.asr, state.asr_collapse
        )
        state = replace(state, asr=asr_head, asr_collapse=asr_collapse)
        st: tuple[int, ...] = ()
        st_tail: tuple[int, ...] = ()
        st_frames: tuple[int, ...] = ()
        if not transcribe_only:
            st, st_tail, st_frames, st_head, st_collapse, _ = self._ctc(
                self.ctc_target_unigram_decoder, frames, tail, state.st, state.st_collapse
            )
            state = replace(state, st=st_head, st_collapse=st_collapse)
        count = frames.size(1)
        heard = Heard(asr, st, asr_tail, st_tail, tail, count, asr_frames, st_frames, logits)
        return heard, state

    def read(self, frames: Tensor, state: EchoStreamState) -> EchoStreamState:
        """The text decoder's part of :meth:`listen`: (1, S, D) new source frames."""
        return replace(state, mt=self.target_unigram_decoder.read(frames, state.mt))

    def keep_source(self, frames: int, state: EchoStreamState) -> EchoStreamState:
        """Forget source frames before about the last ``frames`` read."""
        sources = tuple(cache.trim(frames) for cache in state.mt.sources)
        return replace(state, mt=replace(state.mt, sources=sources))

    def next_sentence(self, state: EchoStreamState) -> EchoStreamState:
        """Forget what was read, written and spoken; encoder and CTC heads go on, and so does the
        speed of speech."""
        following = replace(state, **self.text_state())
        if state.vocoder is None:
            return following
        return replace(following, vocoder=replace(following.vocoder, speed=state.vocoder.speed))

    def text_state(self) -> dict[str, Any]:
        """Fresh states of everything that lives sentence by sentence."""
        return {
            "mt": self.target_unigram_decoder.init_state(1),
            "t2u": self.synthesizer_encoder.init_state(1),
            "unit": self.decoder.init_state(1),
            "vocoder": streaming_state(self.vocoder) if self.vocoder is not None else None,
            "unit_collapse": CollapseState(),
        }

    def restart_hearing(self, state: EchoStreamState, **encoder_options: int) -> EchoStreamState:
        """Forget what was heard: encoder and CTC heads start anew, for encoders that were trained
        on single utterances."""
        fresh = self.init_state(**encoder_options)
        names = ("encoder", "asr", "st", "asr_collapse", "st_collapse")
        return replace(state, **{name: getattr(fresh, name) for name in names})

    def _ctc(
        self,
        head: CTCDecoder | CTCDecoderWithTransformerLayer,
        frames: Tensor,
        tail: Tensor | None,
        head_state: UnidirectionalState,
        collapse_state: CollapseState,
    ) -> tuple[
        tuple[int, ...],
        tuple[int, ...],
        tuple[int, ...],
        UnidirectionalState,
        CollapseState,
        Tensor | None,
    ]:
        """Tokens of completed frames, tokens that the provisional ones add, frames of the former,
        the state behind the completed ones, and their (S, V) logits (None: there are none)."""
        tokens: list[list[int]] = [[], []]
        positions: list[int] = []
        completed: Tensor | None = None
        following = (head_state, collapse_state)
        for index, part in enumerate((frames, tail)):
            if part is None or not part.size(1):
                continue
            logits, head_state = head.step(part, following[0])
            tokens[index], emitted, collapse_state = label_emissions(
                best_labels(logits)[0], following[1]
            )
            if index == 0:
                following = (head_state, collapse_state)
                positions = emitted
                completed = logits[0]
        return tuple(tokens[0]), tuple(tokens[1]), tuple(positions), *following, completed

    def translate(
        self,
        state: EchoStreamState,
        *,
        tail: Tensor | None = None,
        max_new_tokens: int,
        final: bool,
        beam: int = 1,
    ) -> tuple[Hypothesis, EchoStreamState]:
        """Write up to ``max_new_tokens`` target subwords against the source heard so far.

        Args:
            tail: provisional encoder frames, seen by this call only.
        """
        decoder, mt = self.target_unigram_decoder, state.mt
        seen = decoder.read(tail, mt) if tail is not None else mt
        hypothesis = decoder.decode(seen, max_new_tokens=max_new_tokens, final=final, beam=beam)
        kept = replace(hypothesis.state, sources=mt.sources)
        return replace(hypothesis, state=kept), replace(state, mt=kept)

    def speak(self, hidden: Tensor, state: EchoStreamState) -> tuple[list[int], EchoStreamState]:
        """(1, N, D) new text decoder states to newly emitted units."""
        text, t2u = self.synthesizer_encoder.step(hidden, state.t2u)
        logits, unit = self.decoder.step(text, state.unit)
        units, unit_collapse = self._collapse_units(logits[0], state.unit_collapse)
        return units, replace(state, t2u=t2u, unit=unit, unit_collapse=unit_collapse)

    def _collapse_units(
        self, logits: Tensor, state: CollapseState | None = None
    ) -> tuple[list[int], CollapseState]:
        specials = tuple(range(UNIT_OFFSET))
        labels = greedy_labels(logits, NEVER)
        tokens, state = collapse(labels, state or CollapseState(), self.unit_blank, specials)
        return [token - UNIT_OFFSET for token in tokens], state

    def _require_vocoder(self) -> CodeHiFiGANVocoder:
        if self.vocoder is None:
            raise ValueError("this model has no vocoder, it cannot produce a waveform")
        return self.vocoder

    def vocode(
        self,
        units: Sequence[int],
        state: EchoStreamState,
        *,
        dur_prediction: bool = True,
        speed: float = 1.0,
    ) -> tuple[Tensor, EchoStreamState]:
        """New units to (samples,) new waveform, spoken ``speed`` times as fast as predicted."""
        streaming = StreamingVocoder(self._require_vocoder(), dur_prediction=dur_prediction)
        samples, _, vocoder = streaming.step(units, state.vocoder, speed=speed)
        return samples, replace(state, vocoder=vocoder)


def best_labels(logits: Tensor) -> list[list[int]]:
    """(B, T, V) logits of a CTC head to each stream's T labels."""
    frames = logits.size(1)
    labels = greedy_labels(logits.flatten(0, 1), NEVER)
    return [labels[row * frames : (row + 1) * frames] for row in range(logits.size(0))]


def label_emissions(
    labels: list[int], state: CollapseState
) -> tuple[list[int], list[int], CollapseState]:
    """Labels of new frames to the tokens they emit, at which of the frames, and the state behind
    them."""
    emitted, state = emissions(labels, state, Vocabulary.blank, (Vocabulary.pad,))
    return [labels[position] for position in emitted], emitted, state


def _ctc_head(config, width: int, vocab_size: int) -> nn.Module:
    if config.layers == 0:
        return CTCDecoder(width, vocab_size)
    return CTCDecoderWithTransformerLayer(config, width, vocab_size)


def freeze(model: EchoStreamModel) -> EchoStreamModel:
    """Ready for inference: no dropout, no gradients."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def seeded_model(config: EchoStreamConfig, seed: int = 0) -> EchoStreamModel:
    """A model with reproducible random weights, ready for inference."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return freeze(EchoStreamModel(config))
