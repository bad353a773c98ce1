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
from torch.nn.utils.rnn import pad_sequence

from echostream.config import ChunkConformerConfig, CTCHeadConfig, EchoStreamConfig
from echostream.models.ctc_output import CTCOutput
from echostream.models.decoders.ctc_collapse import (
    NEVER,
    UNIT_OFFSET,
    CollapseState,
    label_emissions,
    label_units,
)
from echostream.models.decoders.ctc_decoder import (
    CTCDecoder,
    CTCDecoderWithTransformerLayer,
    greedy_labels,
)
from echostream.models.decoders.hypothesis import Hypothesis, Stands
from echostream.models.decoders.mt_state import MTState
from echostream.models.decoders.transformer_decoder import TransformerMTDecoder
from echostream.models.decoders.unit_decoder import (
    CTCTransformerUnitDecoder,
    T2UEncoder,
    UnitState,
)
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder
from echostream.models.decoders.vocoder_integration import StreamingVocoder, VocoderState
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder
from echostream.models.encoder import Encoded, Encoder, Features
from echostream.models.kv_cache import KVCache
from echostream.streaming import PerRow
from echostream.text import Vocabulary


def build_encoder(config: EchoStreamConfig) -> Encoder:
    """The encoder that the configuration names."""
    if isinstance(config.encoder, ChunkConformerConfig):
        from echostream.models.chunk_conformer_encoder import ChunkConformerEncoder

        return ChunkConformerEncoder(config.encoder)
    return EchoStreamSpeechEncoder(config.encoder)


@dataclass(frozen=True)
class ListeningState:
    """What encoder and CTC heads remember of B streams, from their beginning on.

    Attributes:
        encoder: the encoder's own state.
        asr, st: of the heads' layers, if they have any.
        asr_collapse, st_collapse: a :class:`CollapseState` of each row.
    """

    encoder: Any
    asr: KVCache
    st: KVCache
    asr_collapse: PerRow
    st_collapse: PerRow


@dataclass(frozen=True)
class SpeechState:
    """What the text-to-unit model and the vocoder remember of B sentences.

    Attributes:
        t2u, unit: of the networks.
        collapse: a :class:`CollapseState` of each row.
        vocoder: None for a model that has none.
    """

    t2u: KVCache
    unit: UnitState
    collapse: PerRow
    vocoder: VocoderState | None


@dataclass(frozen=True)
class EchoStreamState:
    """Streaming state of every component, of B rows.

    Attributes:
        listening: lives as long as the stream.
        mt, speech: live sentence by sentence; no speech without a unit decoder.
        transcript: of the text decoder where it writes the transcript too; None: the ASR head does.
    """

    listening: ListeningState
    mt: MTState
    speech: SpeechState | None
    transcript: MTState | None = None


@dataclass(frozen=True)
class ModelOutput:
    """Logits of every head.

    Attributes:
        asr: (S, B, V_source) logits.
        st: (S, B, V_target) logits.
        mt: (B, T, V_target) logits.
        unit: (B, T * r, units) logits; None without a unit decoder.
        encoder_out: fairseq's encoder dictionary.
        waveform: (samples,) per batch row, if asked for.
    """

    asr: Tensor
    st: Tensor
    mt: Tensor
    unit: Tensor | None
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
        self.synthesizer_encoder: T2UEncoder | None = None
        self.decoder: CTCTransformerUnitDecoder | None = None
        if config.num_units:
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
        mt_logits, hidden = self.target_unigram_decoder(
            prev_output_tokens, *self.text_source(encoder_out), visible_source
        )
        padding = prev_output_tokens.eq(Vocabulary.pad)
        unit_logits, speech = None, None
        if self.decoder is not None:
            assert self.synthesizer_encoder is not None  # comes with the decoder
            text_padding = padding if bool(padding.any()) else None
            text = self.synthesizer_encoder(hidden.transpose(0, 1), text_padding)
            unit_logits = self.decoder(text.transpose(0, 1), text_padding, visible_text)
        if waveform:
            vocoder = self._require_vocoder()
            if unit_logits is None:
                raise ValueError("this model has no unit decoder (its num_units is 0)")
            lengths = (~padding).sum(dim=1) * self.config.unit.upsample_ratio
            speech = [
                vocoder.generate(self._collapse_units(row[:length]))[0]
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

    @property
    def source_frames(self) -> int:
        """Frames that the text decoder sees of each encoder frame."""
        encoder = self.encoder
        if self.config.mt.source == "stack" and isinstance(encoder, EchoStreamSpeechEncoder):
            return encoder.stack_frames
        return 1

    def text_source(self, encoder_out: dict[str, list[Tensor]]) -> tuple[Tensor, Tensor | None]:
        """What the text decoder sees of an encoder's output: (k S, B, D) frames, k being
        :attr:`source_frames`, and their (B, k S) padding mask."""
        masks = encoder_out["encoder_padding_mask"]
        mask = masks[0] if masks else None
        if self.source_frames == 1:
            return encoder_out["encoder_out"][0], mask
        if mask is not None:
            mask = mask.repeat_interleave(self.source_frames, dim=1)
        return encoder_out["stack_out"][0], mask

    def init_state(
        self, batch_size: int = 1, *, chunk_ms: int = 320, **encoder_options: int
    ) -> EchoStreamState:
        """Fresh state of streams in chunks of ``chunk_ms``, on the weights' device."""
        return EchoStreamState(
            self.init_listening(batch_size, chunk_ms=chunk_ms, **encoder_options),
            self.target_unigram_decoder.init_state(batch_size),
            self.init_speech(batch_size),
            self._init_transcript(batch_size),
        )

    def _init_transcript(self, batch_size: int) -> MTState | None:
        if not self.config.mt.transcribes:
            return None
        return self.target_unigram_decoder.init_state(batch_size, transcribes=True)

    def init_listening(
        self, batch_size: int = 1, *, chunk_ms: int = 320, **encoder_options: int
    ) -> ListeningState:
        """Before any source."""
        none = PerRow.of(CollapseState(), batch_size)
        return ListeningState(
            self.encoder.open_stream(batch_size, chunk_ms, **encoder_options),
            self.source_unigram_decoder.init_state(batch_size),
            self.ctc_target_unigram_decoder.init_state(batch_size),
            none,
            none,
        )

    def init_speech(self, batch_size: int = 1) -> SpeechState | None:
        """Before anything was spoken; None without a unit decoder."""
        if self.decoder is None or self.synthesizer_encoder is None:
            return None
        return SpeechState(
            self.synthesizer_encoder.init_state(batch_size),
            self.decoder.init_state(batch_size),
            PerRow.of(CollapseState(), batch_size),
            None
            if self.vocoder is None
            else StreamingVocoder(self.vocoder, dur_prediction=False).init_state(batch_size),
        )

    def encode(
        self,
        features: Features,
        state: ListeningState,
        *,
        lengths: Sequence[int] | None = None,
        final: bool | Sequence[bool] = False,
    ) -> tuple[Encoded, ListeningState]:
        """New features of B streams to encoder frames; see
        :meth:`echostream.models.encoder.Encoder.encode`."""
        encoded, encoder = self.encoder.encode(
            features, state.encoder, lengths=lengths, final=final
        )
        return encoded, replace(state, encoder=encoder)

    def emit(
        self, encoded: Encoded, state: ListeningState, *, transcribe_only: bool = False
    ) -> tuple[list[CTCOutput], ListeningState]:
        """Run the CTC heads over new encoder frames.

        Args:
            encoded: what :meth:`encode` returned.
            transcribe_only: run the ASR head alone, for streaming recognition.

        Returns:
            What each row emitted, and the new state.
        """
        asr, asr_state, asr_collapse = self._emit(
            self.source_unigram_decoder, encoded, state.asr, state.asr_collapse
        )
        state = replace(state, asr=asr_state, asr_collapse=asr_collapse)
        st = [_Emitted() for _ in encoded.counts]
        if not transcribe_only:
            st, st_state, st_collapse = self._emit(
                self.ctc_target_unigram_decoder, encoded, state.st, state.st_collapse
            )
            state = replace(state, st=st_state, st_collapse=st_collapse)
        outputs = [
            CTCOutput(
                a.tokens,
                s.tokens,
                a.tail,
                s.tail,
                encoded.tail,
                count,
                a.frames,
                s.frames,
                a.logits,
                s.logits,
            )
            for a, s, count in zip(asr, st, encoded.counts, strict=True)
        ]
        return outputs, state

    @staticmethod
    def _emit(
        head: CTCDecoder | CTCDecoderWithTransformerLayer,
        encoded: Encoded,
        state: KVCache,
        before: PerRow,
    ) -> tuple[list[_Emitted], KVCache, PerRow]:
        """What each row's completed and provisional frames emit, and the states behind the
        completed ones."""
        found = [_Emitted() for _ in before]
        if encoded.frames.size(1):
            logits, state = head.step(encoded.frames, state, lengths=encoded.counts)
            found, before = _emitted(logits, encoded.counts, before)
        tail = encoded.tail
        if tail is not None and tail.size(1):
            logits, _ = head.step(tail, state)
            guessed, _ = _emitted(logits, [tail.size(1)] * len(before), before)
            found = [replace(a, tail=b.tokens) for a, b in zip(found, guessed, strict=True)]
        return found, state, before

    def text_frames(self, encoded: Encoded) -> Tensor:
        """(B, S, k D) of completed encoder frames, what the text decoder sees of each."""
        if self.source_frames == 1:
            return encoded.frames
        assert encoded.stack is not None  # an encoder that merges frames hands them out
        return encoded.stack

    def _unfolded(self, frames: Tensor) -> Tensor:
        """(B, S, k D) to (B, k S, D)."""
        if self.source_frames == 1:
            return frames
        return frames.unflatten(2, (self.source_frames, -1)).flatten(1, 2)

    def read(self, frames: Tensor, state: EchoStreamState) -> EchoStreamState:
        """Hand (1, S, k D) new source frames (:meth:`text_frames`) to the text decoder."""
        return replace(state, mt=self.target_unigram_decoder.read(self._unfolded(frames), state.mt))

    def hear(self, frames: Tensor, state: EchoStreamState) -> EchoStreamState:
        """:meth:`read`, for the transcript. It has sentences of its own: those of the translation
        may end in retrospect."""
        assert state.transcript is not None  # else nobody asks
        heard = self.target_unigram_decoder.read(self._unfolded(frames), state.transcript)
        return replace(state, transcript=heard)

    def keep_source(self, frames: int, state: EchoStreamState) -> EchoStreamState:
        """Forget source frames before about the last ``frames`` encoder frames read."""
        kept = frames * self.source_frames
        return replace(
            state,
            mt=_trimmed(state.mt, kept),
            transcript=None if state.transcript is None else _trimmed(state.transcript, kept),
        )

    def next_transcript(self, state: EchoStreamState) -> EchoStreamState:
        """Forget what was heard and written of a sentence's transcript."""
        return replace(state, transcript=self._init_transcript(len(state.mt.last_tokens)))

    def next_sentence(self, state: EchoStreamState) -> EchoStreamState:
        """Forget what was read, written and spoken; encoder and CTC heads go on, and so do the
        transcript and the speed of speech."""
        rows = len(state.mt.last_tokens)
        speech = self.init_speech(rows)
        before = None if state.speech is None else state.speech.vocoder
        if speech is not None and speech.vocoder is not None and before is not None:
            vocoder = speech.vocoder.at_speed_of(before)
            speech = replace(speech, vocoder=vocoder)
        return replace(state, mt=self.target_unigram_decoder.init_state(rows), speech=speech)

    def translate(
        self,
        state: MTState,
        limits: Sequence[int],
        final: bool | Sequence[bool],
        *,
        tail: Tensor | None = None,
        beam: int = 1,
        stands: Sequence[Stands | None] | None = None,
        attention_layer: int | None = None,
        guesses: Sequence[Sequence[int]] | None = None,
        least: Sequence[int] | None = None,
    ) -> list[Hypothesis]:
        """Write target subwords against the source so far; see
        :meth:`TransformerMTDecoder.decode_rows`.

        Args:
            tail: (B, P, D) provisional encoder frames, seen by this call only.
        """
        decoder = self.target_unigram_decoder
        seen = state if tail is None else decoder.read(tail, state)
        written = decoder.decode_rows(
            seen,
            limits,
            final,
            beam=beam,
            stands=stands,
            attention_layer=attention_layer,
            guesses=guesses,
            least=least,
        )
        if tail is None:
            return written
        if len(written) > 1:
            raise ValueError("provisional frames are seen by one row at a time")
        return [replace(one, state=replace(one.state, sources=state.sources)) for one in written]

    def speak(
        self, hidden: Sequence[Tensor], state: SpeechState
    ) -> tuple[list[list[int]], SpeechState]:
        """(1, N, D) new text decoder states of each row to its newly emitted units.

        Raises:
            ValueError: the model has no unit decoder.
        """
        if self.decoder is None or self.synthesizer_encoder is None:
            raise ValueError("this model has no unit decoder (its num_units is 0)")
        lengths = [row.size(1) for row in hidden]
        padded = pad_sequence([row[0] for row in hidden], batch_first=True)
        text, t2u = self.synthesizer_encoder.step(padded, state.t2u, lengths=lengths)
        logits, unit = self.decoder.step(text, state.unit, lengths=lengths)
        ratio = self.config.unit.upsample_ratio
        units, following = [], []
        # All at once: an accelerator would be waited for at every row.
        labels = _rows_of_labels(logits)
        for row, length, before in zip(labels, lengths, state.collapse, strict=True):
            spoken, after = self._collapse_labels(row[: length * ratio], before)
            units.append(spoken)
            following.append(after)
        return units, replace(state, t2u=t2u, unit=unit, collapse=PerRow(following))

    def _collapse_units(self, logits: Tensor) -> list[int]:
        """(T, V) logits of a whole utterance to its units."""
        return self._collapse_labels(greedy_labels(logits, NEVER), CollapseState())[0]

    def _collapse_labels(
        self, labels: list[int], state: CollapseState
    ) -> tuple[list[int], CollapseState]:
        return label_units(labels, state, self.config.num_units)

    def _require_vocoder(self) -> CodeHiFiGANVocoder:
        if self.vocoder is None:
            raise ValueError("this model has no vocoder, it cannot produce a waveform")
        return self.vocoder

    def vocode(
        self,
        units: Sequence[Sequence[int]],
        state: SpeechState,
        speeds: Sequence[float],
        *,
        dur_prediction: bool = True,
    ) -> tuple[list[Tensor], SpeechState]:
        """New units of each row to (samples,) new waveforms, each spoken so many times as fast as
        predicted; see :meth:`StreamingVocoder.step_rows`."""
        streaming = StreamingVocoder(self._require_vocoder(), dur_prediction=dur_prediction)
        before = state.vocoder or streaming.init_state(len(units))
        samples, _, vocoder = streaming.step_rows(units, before, speeds)
        return samples, replace(state, vocoder=vocoder)


def _trimmed(state: MTState, frames: int) -> MTState:
    """Without the source before about the last ``frames``."""
    return replace(state, sources=state.sources.trim(frames))


@dataclass(frozen=True)
class _Emitted:
    """What one head emitted in one row: tokens, at which frames, provisional tokens behind them,
    and the (S, V) logits of the completed frames."""

    tokens: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()
    logits: Tensor | None = None


def _emitted(
    logits: Tensor, counts: Sequence[int], before: Sequence[CollapseState]
) -> tuple[list[_Emitted], PerRow]:
    """(B, S, V) logits to what each row's first ``counts`` frames emit, and the states behind."""
    found, following = [], []
    labels = _rows_of_labels(logits)
    for row, (own, count, state) in enumerate(zip(labels, counts, before, strict=True)):
        tokens, frames, state = label_emissions(own[:count], state)
        kept = logits[row, :count] if count else None
        found.append(_Emitted(tuple(tokens), tuple(frames), logits=kept))
        following.append(state)
    return found, PerRow(following)


def _rows_of_labels(logits: Tensor) -> list[list[int]]:
    """(B, T, V) logits to each row's T best labels."""
    frames = logits.size(1)
    labels = greedy_labels(logits.flatten(0, 1), NEVER)
    return [labels[row * frames : (row + 1) * frames] for row in range(logits.size(0))]


def _ctc_head(
    config: CTCHeadConfig, width: int, vocab_size: int
) -> CTCDecoder | CTCDecoderWithTransformerLayer:
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
