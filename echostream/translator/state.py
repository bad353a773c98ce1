"""What a stream through :class:`~echostream.translator.pipeline.Pipeline` remembers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from echostream.config import ENCODER_FRAME_MS
from echostream.models.decoders.ctc_decoder_policy import PolicyState
from echostream.samples import FrontendState
from echostream.text import DetokenizerState
from echostream.translator.endpoint import EndpointState
from echostream.translator.spans import Span
from echostream.translator.speech import SpeakerState
from echostream.translator.stream import StreamState
from echostream.translator.text_end import TextEndState
from echostream.translator.transcribing import TranscriptState

if TYPE_CHECKING:
    from torch import Tensor

    from echostream.models.echostream_model import EchoStreamState


@dataclass(frozen=True, kw_only=True)
class PipelineState(StreamState):
    """Everything one stream remembers.

    Attributes:
        frontend, model, policy: component states.
        written, asr_count, st_count: target subwords written and tokens that the CTC heads
            emitted in the sentence under way.
        hypothesis: those subwords, where the policy asks for them.
        draft: subwords that the text decoder would have written behind them, where the policy waits
            for it to say so twice.
        transcript, translation: words that may still grow.
        written_transcript: of the transcript that the text decoder writes, if it does.
        endpoint, text_end: what the sentence's end depends on.
        sentence: index of the sentence under way.
        sentence_from: input samples that had gone through the model when it began.
        recent: (1, T, bins) features of frames that are not settled yet, for encoders that start
            anew with every sentence.
        speech: what waits to be spoken and to be played.
    """

    frontend: FrontendState
    model: EchoStreamState
    policy: PolicyState
    transcript: DetokenizerState
    translation: DetokenizerState
    written: int = 0
    asr_count: int = 0
    st_count: int = 0
    hypothesis: tuple[int, ...] = ()
    draft: tuple[int, ...] = ()
    written_transcript: TranscriptState = TranscriptState()
    endpoint: EndpointState = EndpointState()
    text_end: TextEndState = TextEndState()
    sentence: int = 0
    sentence_from: int = 0
    recent: Tensor | None = None
    speech: SpeakerState = SpeakerState()


def begin_with(rest: TextEndState, span: Span, state: PipelineState) -> PipelineState:
    """Begin a sentence, of which ``span`` is to be written, with the source that the one
    before had read beyond its end."""
    assert rest.frames is not None and state.sample_rate is not None  # some of it was heard
    frames, rate, emitted = rest.frames.shape[1], state.sample_rate, span.emitted
    if not span.ends:
        first = frames - 1 - rest.asr[0]
        endpoint = replace(state.endpoint, tokens=len(rest.asr), first=first)
        state = replace(state, endpoint=endpoint)
    source_samples = frames * ENCODER_FRAME_MS * rate // 1000
    return replace(
        state,
        text_end=rest,
        # Tokens of the span are counted when it is written; earlier ones have been shown.
        asr_count=len(rest.asr) - len(emitted.asr_tokens),
        st_count=len(rest.st) - len(emitted.st_tokens),
        sentence_from=state.processed - source_samples,
    )
