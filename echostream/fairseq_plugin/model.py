"""fairseq's view of :class:`~echostream.models.echostream_model.EchoStreamModel`.

The very same model, parameter for parameter: a checkpoint's weights load into it unchanged.
"""

# ruff: noqa: UP045  (fairseq turns annotations into flags and knows typing.Optional only)

import logging
import math
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from torch import Tensor

from echostream.checkpoint import load_model_dir
from echostream.config import EchoStreamConfig
from echostream.fairseq_plugin.architectures import ARCHITECTURES
from echostream.fairseq_plugin.sentences import (
    boundaries,
    gather,
    sentence_segment_ends,
    sentence_windows,
)
from echostream.models.chunk_conformer_encoder import ChunkConformerEncoder
from echostream.models.ctc_output import end_scores
from echostream.models.decoders.policy_visibility import ctc_emission, streaming_visibility
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder
from echostream.models.echostream_model import EchoStreamModel, ModelOutput
from echostream.models.encoder_exchange import start_from_conformer
from echostream.text import Vocabulary

logger = logging.getLogger(__name__)


def _flag(description: str) -> Any:
    return field(default=None, metadata={"help": description + " (default: the architecture's)"})


@dataclass
class EchoStreamModelConfig(FairseqDataclass):
    """Flags that change an architecture."""

    chunk_size: Optional[int] = _flag("default segment length, in encoder frames of 40 ms")
    encoder_layers: Optional[int] = _flag("encoder layers")
    encoder_embed_dim: Optional[int] = _flag("encoder width")
    encoder_ffn_embed_dim: Optional[int] = _flag("encoder feed-forward width")
    encoder_attention_heads: Optional[int] = _flag("encoder attention heads")
    conv_channels: Optional[int] = _flag("channels of the subsampling convolutions")
    conv_kernel_sizes: Optional[str] = _flag("kernel sizes of the subsampling convolutions: 5,5")
    subsampler: Optional[str] = _flag("Emformer: conv2d, conv1d_glu or conv1d_glu_linear")
    left_context_frames: Optional[int] = _flag("Emformer: left context")
    right_context_frames: Optional[int] = _flag("Emformer: look-ahead")
    memory_size: Optional[int] = _flag("Emformer: memory bank, in segments")
    depthwise_conv_kernel_size: Optional[int] = _flag("depthwise kernel; Emformer: 0 for none")
    asr_ctc_layers: Optional[int] = _flag("layers of the recognition CTC head")
    st_ctc_layers: Optional[int] = _flag("layers of the translation CTC head")
    translation_decoder_layers: Optional[int] = _flag("text decoder layers")
    translation_decoder_ffn_embed_dim: Optional[int] = _flag("text decoder feed-forward width")
    synthesizer_encoder_layers: Optional[int] = _flag("text-to-unit encoder layers")
    decoder_layers: Optional[int] = _flag("unit decoder layers")
    decoder_embed_dim: Optional[int] = _flag("width of the decoders")
    decoder_ffn_embed_dim: Optional[int] = _flag("feed-forward width of the decoders")
    decoder_attention_heads: Optional[int] = _flag("attention heads of the decoders")
    ctc_upsample_rate: Optional[int] = _flag("unit frames per text state")
    dropout: Optional[float] = _flag("dropout everywhere")
    attention_dropout: Optional[float] = _flag("must equal --dropout")
    relu_dropout: Optional[float] = _flag("must equal --dropout")
    attn_type: Optional[str] = _flag("streamspeech: espnet is the only one")
    pos_enc_type: Optional[str] = _flag("streamspeech: rel_pos is the only one")
    blank_prior: float = field(
        default=0.9,
        metadata={"help": "probability of blank that the text CTC heads start from; 0: random"},
    )
    init_from: str = field(
        default="",
        metadata={"help": "start from the weights of this model directory, e.g. a shipped one"},
    )
    continue_from: str = field(
        default="",
        metadata={
            "help": "start from the weights of this model directory in its own sizes, whatever "
            "--arch and its flags say"
        },
    )
    exchange_encoder: str = field(
        default="",
        metadata={
            "help": "start from this model directory, a StreamSpeech, with an Emformer of the same "
            "shape in its encoder's place that has its weights where it can; all else stays as it "
            "is, and of the flags here only those of the encoder count"
        },
    )
    uni_encoder: bool = field(
        default=False, metadata={"help": "accepted; the text-to-unit encoder always is"}
    )
    share_decoder_input_output_embed: bool = field(
        default=False, metadata={"help": "accepted; the unit decoder has one matrix anyway"}
    )


@dataclass(frozen=True)
class TextPolicy:
    """The read/write policy under which the text decoder trains: token t waits for the
    ``lagging_k1``-th ST token behind the end of its stride of ``stride_n``."""

    lagging_k1: int
    stride_n: int


@register_model("echostream", dataclass=EchoStreamModelConfig)
class EchoStreamFairseqModel(EchoStreamModel, BaseFairseqModel):
    """The model with fairseq's hooks."""

    def __init__(self, config: EchoStreamConfig) -> None:
        super().__init__(config)

    @classmethod
    def build_model(cls, cfg: EchoStreamModelConfig, task) -> "EchoStreamFairseqModel":
        """Build what the task resolved from architecture, flags and data."""
        model = cls(task.resolve_model(cfg))
        if cfg.exchange_encoder:
            model.exchange_encoder(load_model_dir(cfg.exchange_encoder).model)
        elif cfg.continue_from:
            model.start_from(Path(cfg.continue_from))
        elif cfg.init_from:
            model.start_from(Path(cfg.init_from))
        elif cfg.blank_prior:
            model.start_from_blank(cfg.blank_prior)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        logger.info("%.3f M parameters", parameters / 1e6)
        return model

    def start_from(self, model_dir: Path) -> None:
        """Take over the weights of a model directory, but for its vocoder.

        Raises:
            FileNotFoundError, ValueError: no such model, or one of other sizes.
        """
        state = load_model_dir(model_dir).model.state_dict()
        state = {key: value for key, value in state.items() if not key.startswith("vocoder.")}
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{model_dir}: does not fit --arch: {error}") from error

    def exchange_encoder(self, other: EchoStreamModel) -> None:
        """Take over everything from a model with a chunk Conformer, the encoder's weights where an
        Emformer has a place for them.

        Raises:
            ValueError: the encoders are others, or the rest has other sizes.
        """
        if not isinstance(other.encoder, ChunkConformerEncoder) or not isinstance(
            self.encoder, EchoStreamSpeechEncoder
        ):
            raise ValueError(
                "--exchange-encoder puts an Emformer in a chunk Conformer's place, got "
                f"{type(self.encoder).__name__} and {type(other.encoder).__name__}"
            )
        parts = other.state_dict().items()
        state = {key: value for key, value in parts if not key.startswith(("encoder.", "vocoder."))}
        missing, unexpected = self.load_state_dict(state, strict=False)
        unfilled = [key for key in missing if not key.startswith("encoder.")]
        if unfilled or unexpected:
            raise ValueError(f"--exchange-encoder: does not fit: {(unfilled + unexpected)[0]}")
        taken = start_from_conformer(self.encoder, other.encoder)
        logger.info(
            "%d of the encoder's %d tensors start from the other encoder's",
            len(taken), len(list(self.encoder.parameters())),
        )  # fmt: skip

    @torch.no_grad()
    def start_from_blank(self, probability: float) -> None:
        """Let the text CTC heads write blank with this probability before they learn anything.

        Heads that start out even-handed must first learn that nearly every frame is blank. The
        quickest way there is to turn every encoder output into the same vector, from which deep
        stacks recover late or never; a bias spares them that lesson.

        Raises:
            ValueError: no probability.
        """
        if not 0 < probability < 1:
            raise ValueError(f"--blank-prior must lie between 0 and 1, got {probability}")
        for head in (self.source_unigram_decoder, self.ctc_target_unigram_decoder):
            bias = head.proj.bias
            others = bias.numel() - 1
            bias.zero_()
            bias[Vocabulary.blank] = math.log(probability / (1 - probability) * others)

    def segment_ends(self, frames: int, segment_frames: int) -> list[int]:
        """Cumulative end frames of the segments in which a stream of ``frames`` arrives."""
        if isinstance(self.encoder, EchoStreamSpeechEncoder):
            return list(accumulate(self.encoder.segments(frames, segment_frames)))
        # The chunk Conformer completes a chunk's last frame provisionally as the chunk arrives.
        return [*range(segment_frames, frames, segment_frames), frames]

    # The base's, with what training asks for beside it, and one more kind of answer.
    def forward(  # type: ignore[override]
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        *,
        segment_frames: Optional[int] = None,
        policy: Optional[TextPolicy] = None,
        visible_source: Optional[Tensor] = None,
        visible_text: Optional[Tensor] = None,
        waveform: bool = False,
        recognition_only: bool = False,
        encoder_only: bool = False,
        with_units: bool = True,
        sentences: Optional[Tensor] = None,
        hidden: bool = False,
    ) -> ModelOutput | tuple[dict[str, list[Tensor]], Optional[Tensor]]:
        """Teacher-forced pass; see :meth:`EchoStreamModel.forward`.

        Args:
            policy: derive ``visible_source`` from what this pass's CTC heads emit. No gradient
                flows through that decision.
            sentences: (N, 3) where the sentences of streams are (see :mod:`.sentences`); the
                target text then has a row per sentence.
            recognition_only: stop behind the recognition head and return the encoder's output
                and its (S, B, V) logits.
            encoder_only: stop behind the encoder and return its output and None.
            with_units: with ``policy``, whether units are wanted; their logits are (B, 0, units)
                if not.
            hidden: with any of these ways, whether the encoder's output holds its layers'.
        """
        if recognition_only or encoder_only:
            encoder_out = self.encoder(src_tokens, src_lengths, segment_frames, hidden)
            if encoder_only:
                return encoder_out, None
            return encoder_out, self.source_unigram_decoder(encoder_out["encoder_out"][0])
        if policy is None:
            return super().forward(
                src_tokens,
                src_lengths,
                prev_output_tokens,
                segment_frames=segment_frames,
                visible_source=visible_source,
                visible_text=visible_text,
                waveform=waveform,
            )
        if visible_source is not None or waveform:
            raise ValueError("policy excludes visible_source and waveform")
        segment = self.config.encoder.segment_frames if segment_frames is None else segment_frames
        if sentences is not None:
            encoder_out = self.encoder(src_tokens, src_lengths, segment, hidden)
            source = (encoder_out, src_lengths, sentences)
            return self.forward_streams(
                *source, prev_output_tokens, segment, policy, visible_text, with_units
            )
        # The parent's wiring, with the policy between the heads and the text decoder.
        encoder_out = self.encoder(src_tokens, src_lengths, segment, hidden)
        frames, masks = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"]
        asr = self.source_unigram_decoder(frames)
        st = self.ctc_target_unigram_decoder(frames)
        visible_source = self.policy_visibility(
            asr, st, prev_output_tokens.size(1), policy, segment
        )
        mt, unit = self.text_and_units(
            prev_output_tokens,
            frames,
            masks[0] if masks else None,
            visible_source,
            visible_text,
            with_units,
        )
        return ModelOutput(asr, st, mt, unit, encoder_out)

    def text_and_units(
        self,
        prev_output_tokens: Tensor,
        frames: Tensor,
        padding_mask: Optional[Tensor],
        visible_source: Tensor,
        visible_text: Optional[Tensor],
        with_units: bool,
    ) -> tuple[Tensor, Tensor]:
        """(S, B, D) encoder output to (B, T, V) text and (B, T * r, units) unit logits."""
        mt, hidden = self.target_unigram_decoder(
            prev_output_tokens, frames, padding_mask, visible_source
        )
        if not with_units:
            return mt, mt.new_zeros(mt.size(0), 0, self.config.num_units)
        padding = prev_output_tokens.eq(Vocabulary.pad)
        text_padding = padding if bool(padding.any()) else None
        if self.synthesizer_encoder is None or self.decoder is None:
            raise ValueError("units are wanted, and the model has no unit decoder")
        text = self.synthesizer_encoder(hidden.transpose(0, 1), text_padding)
        return mt, self.decoder(text.transpose(0, 1), text_padding, visible_text)

    def forward_streams(
        self,
        encoder_out: dict[str, list[Tensor]],
        src_lengths: Tensor,
        sentences: Tensor,
        prev_output_tokens: Tensor,
        segment: int,
        policy: TextPolicy,
        visible_text: Optional[Tensor],
        with_units: bool,
    ) -> ModelOutput:
        """:meth:`forward` on streams: encoder and CTC heads run through them, text and units live
        sentence by sentence, each with the source between two boundaries.

        Args:
            prev_output_tokens: (N, T).
            sentences: (N, 3).
        """
        frames, masks = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"]
        asr = self.source_unigram_decoder(frames)
        st = self.ctc_target_unigram_decoder(frames)
        total = frames.size(0)
        lengths = (
            (~masks[0]).sum(dim=1) if masks else src_lengths.new_full((frames.size(1),), total)
        )
        with torch.no_grad():
            windows = sentence_windows(sentences, lengths)
            says_end = end_scores(asr.float()).t()
            starts, ends = boundaries(windows, says_end)
            visible_source = self.stream_visibility(
                asr, st, prev_output_tokens.size(1), policy, segment, windows.stream, starts, ends
            )
        rows, padding = gather(frames.transpose(0, 1), windows.stream, starts, ends)
        mt, unit = self.text_and_units(
            prev_output_tokens,
            rows.transpose(0, 1),
            padding,
            visible_source,
            visible_text,
            with_units,
        )
        return ModelOutput(asr, st, mt, unit, encoder_out)

    @torch.no_grad()
    def stream_visibility(
        self,
        asr: Tensor,
        st: Tensor,
        target_length: int,
        policy: TextPolicy,
        segment: int,
        stream: Tensor,
        starts: Tensor,
        ends: Tensor,
    ) -> Tensor:
        """:meth:`policy_visibility` for the sentences of streams, (N, T): counts start anew at
        each sentence's first frame, and nothing behind its boundary is seen."""
        asr_emission, st_emission = (
            gather(
                ctc_emission(logits.transpose(0, 1), Vocabulary.blank, Vocabulary.eos),
                stream,
                starts,
                ends,
            )[0]
            for logits in (asr, st)
        )
        return streaming_visibility(
            asr_emission,
            st_emission,
            target_length,
            lagging_k1=policy.lagging_k1,
            stride_n=policy.stride_n,
            segment_ends=sentence_segment_ends(
                self.segment_ends(asr.size(0), segment), starts, ends
            ),
        )

    @torch.no_grad()
    def policy_visibility(
        self, asr: Tensor, st: Tensor, target_length: int, policy: TextPolicy, segment: int
    ) -> Tensor:
        """(S, B, V) logits of both CTC heads to the (B, T) source frames each token may see."""
        return streaming_visibility(
            ctc_emission(asr.transpose(0, 1), Vocabulary.blank),
            ctc_emission(st.transpose(0, 1), Vocabulary.blank),
            target_length,
            lagging_k1=policy.lagging_k1,
            stride_n=policy.stride_n,
            segment_ends=self.segment_ends(st.size(0), segment),
        )


def _register_architectures() -> None:
    """A name is all that fairseq needs: sizes come from :mod:`architectures`."""
    for name in ARCHITECTURES:
        if name != "echostream":  # registered with the model
            register_model_architecture("echostream", name)(lambda args: None)


_register_architectures()
