"""Audio in, transcript, translation, units and waveform out; knows nothing of SimulEval.

Incoming samples are cut into chunks of fixed duration, however they arrive. Each complete chunk is
encoded as one segment and followed by one policy decision at once; the end of the stream is one
more decision over what is left. So the result depends on the audio and the chunk size only, not on
how the audio was pushed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from echostream.audio import FrontendState, Resampler, check_same_rate, check_samples
from echostream.checkpoint import System
from echostream.config import (
    ENCODER_FRAME_MS,
    ChunkConformerConfig,
    EndpointConfig,
    PolicyConfig,
)
from echostream.models.decoders.ctc_decoder_policy import (
    POLICIES,
    Counts,
    PolicyState,
    complete_words,
    whole_word_mode,
)
from echostream.models.decoders.transformer_decoder import Hypothesis
from echostream.models.echostream_model import EchoStreamState, Heard
from echostream.models.transformer_layer import TRIM_SLACK
from echostream.streams.endpoint import EndpointFinder, EndpointState, FrameTokens
from echostream.streams.restart import Features, unsettled
from echostream.text import Detokenizer, DetokenizerState, Vocabulary

logger = logging.getLogger(__name__)

Task = Literal["asr", "s2tt", "s2st"]
MIN_CHUNK_MS, MAX_CHUNK_MS = 10, 3_600_000
LEAD_FRAMES = 64  # encoder frames before a sentence's first word that its text may look at


@dataclass(frozen=True)
class PipelineState:
    """Everything one stream remembers.

    Attributes:
        frontend, model, policy: component states.
        sample_rate: of the input; None before the first samples.
        received: input samples pushed.
        processed: input samples that went through the model.
        pending: (T,) samples of the chunk under way.
        written, asr_count, st_count: target subwords written and tokens that the CTC heads
            emitted in the sentence under way.
        transcript, translation: words that may still grow.
        endpoint: what the sentence's end depends on.
        sentence: index of the sentence under way.
        sentence_from: input samples that had gone through the model when it began.
        recent: (1, T, bins) features of frames that are not settled yet, for encoders that start
            anew with every sentence.
        finished: the stream has ended.
    """

    frontend: FrontendState
    model: EchoStreamState
    policy: PolicyState
    transcript: DetokenizerState
    translation: DetokenizerState
    sample_rate: int | None = None
    received: int = 0
    processed: int = 0
    pending: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    written: int = 0
    asr_count: int = 0
    st_count: int = 0
    endpoint: EndpointState = EndpointState()
    sentence: int = 0
    sentence_from: int = 0
    recent: torch.Tensor | None = None
    finished: bool = False


@dataclass(frozen=True)
class ChunkOutput:
    """What one policy decision brought.

    Attributes:
        source_ms: source consumed.
        write: whether the policy wrote target subwords, units or waveform.
        final: the stream ended with this decision.
        asr_tokens, st_tokens: new CTC tokens; ``asr_tail`` and ``st_tail`` are provisional.
        mt_tokens: new target subwords.
        units: new speech units.
        transcript, translation: newly completed words.
        waveform: (T,) float32 new samples.
        sample_rate: of the waveform.
        encoder_frames: frames encoded for this decision.
        compute_ms: wall time per stage.
        sentence: index of the sentence that all this belongs to.
        sentence_end: nothing more of that sentence will come.
    """

    source_ms: float
    write: bool
    final: bool
    asr_tokens: tuple[int, ...]
    st_tokens: tuple[int, ...]
    asr_tail: tuple[int, ...]
    st_tail: tuple[int, ...]
    mt_tokens: tuple[int, ...]
    units: tuple[int, ...]
    transcript: tuple[str, ...]
    translation: tuple[str, ...]
    waveform: np.ndarray
    sample_rate: int
    encoder_frames: int
    compute_ms: dict[str, float]
    sentence: int = 0
    sentence_end: bool = False


@dataclass(frozen=True)
class Piece:
    """Part of what a chunk brought that belongs to one sentence.

    Attributes:
        heard: its share of the CTC heads' tokens and frames.
        frames: (1, S, D) its completed encoder frames.
        ends: the sentence ends with it.
        final: the stream ends with it.
    """

    heard: Heard
    frames: torch.Tensor
    ends: bool
    final: bool


class Stopwatch:
    """Wall time per named stage; waits for an accelerator so that its work is counted."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ms[stage] = self.ms.get(stage, 0.0) + 1000 * (time.perf_counter() - start)


class Pipeline:
    """A streaming translator over one loaded system; any number of streams can share it.

    Args:
        system: model, vocabularies and normalisation.
        chunk_ms: source per decision.
        task: ``asr`` stops behind the transcript, ``s2tt`` behind the translated text.
        policy, endpoint: override the system's.
        beam: beam width of the text decoder.
        dur_prediction: let the vocoder predict how long units last.
    """

    def __init__(
        self,
        system: System,
        *,
        chunk_ms: int = 320,
        task: Task = "s2st",
        policy: PolicyConfig | None = None,
        endpoint: EndpointConfig | None = None,
        beam: int = 1,
        dur_prediction: bool = True,
    ) -> None:
        if not MIN_CHUNK_MS <= chunk_ms <= MAX_CHUNK_MS:
            raise ValueError(
                f"chunk_ms must lie between {MIN_CHUNK_MS} and {MAX_CHUNK_MS}, got {chunk_ms}"
            )
        if task == "s2st" and system.model.vocoder is None:
            raise ValueError("task 's2st' needs a model with a vocoder; use 's2tt' or 'asr'")
        if beam < 1:
            raise ValueError(f"beam must be at least 1, got {beam}")
        self.system, self.chunk_ms, self.task, self.beam = system, chunk_ms, task, beam
        self.dur_prediction = dur_prediction and (
            system.config.vocoder is not None
            and system.config.vocoder.dur_predictor_params is not None
        )
        self.policy_config = system.config.policy if policy is None else policy
        self.decide = POLICIES[self.policy_config.name]
        self.whole_word = whole_word_mode(self.policy_config, chunk_ms)
        self.endpoints = EndpointFinder(system.config.endpoint if endpoint is None else endpoint)
        # The Emformer hears streams; the chunk Conformer was trained on utterances, and its cost
        # grows with what it has heard.
        self.restarts = self.endpoints.config.method != "off" and isinstance(
            system.config.encoder, ChunkConformerConfig
        )
        self.frontend = system.frontend()
        self.transcriber = Detokenizer(system.source_vocabulary)
        self.translator = Detokenizer(system.target_vocabulary)
        vocoder = system.config.vocoder
        self.output_rate = vocoder.sampling_rate if vocoder else system.config.frontend.sample_rate

    def encoder_options(self) -> dict[str, int]:
        """How the encoder's state is opened."""
        if isinstance(self.system.config.encoder, ChunkConformerConfig):
            return {"segment_frames": max(self.chunk_ms // ENCODER_FRAME_MS, 1)}
        return {}

    def init_state(self) -> PipelineState:
        return PipelineState(
            frontend=self.frontend.init_state(),
            model=self.system.model.init_state(**self.encoder_options()),
            policy=PolicyState(),
            transcript=self.transcriber.init_state(),
            translation=self.translator.init_state(),
        )

    @torch.no_grad()
    def step(
        self,
        samples: object,
        sample_rate: int,
        state: PipelineState,
        *,
        final: bool = False,
    ) -> tuple[list[ChunkOutput], PipelineState]:
        """Push audio.

        Args:
            samples: (T,) or (T, channels), float or signed integer, any length.
            sample_rate: in Hz, the same throughout a stream.
            final: the stream ends with these samples.

        Returns:
            One output per decision (none while a chunk is filling up), and the new state.

        Raises:
            ValueError: unusable samples, a changed sample rate, or a stream that has ended.
        """
        outputs = []
        for output, following in self.iterate(samples, sample_rate, state, final=final):
            state = following
            if output is not None:
                outputs.append(output)
        return outputs, state

    @torch.no_grad()
    def iterate(
        self, samples: object, sample_rate: int, state: PipelineState, *, final: bool = False
    ) -> Iterator[tuple[ChunkOutput | None, PipelineState]]:
        """:meth:`step`, one decision at a time; always ends with a pair (maybe without output)
        whose state has taken in all samples."""
        if state.finished:
            raise ValueError("this stream has ended; start another with init_state()")
        new = check_samples(samples, state.received)
        check_same_rate(state.sample_rate, sample_rate)
        # Rates that cannot be converted are refused before anything is taken in.
        Resampler(sample_rate, self.system.config.frontend.sample_rate)
        chunk = math.ceil(self.chunk_ms * sample_rate / 1000)
        available = np.concatenate([state.pending, new])
        state = replace(state, sample_rate=sample_rate, received=state.received + len(new))
        used = 0
        while used + chunk <= len(available):
            piece = available[used : used + chunk]
            used += chunk
            outputs, state = self._decide(piece, replace(state, pending=available[used:]))
            yield from ((output, state) for output in outputs)
        state = replace(state, pending=available[used:].copy())
        if final:
            outputs, state = self._decide(
                state.pending, replace(state, pending=available[:0], finished=True)
            )
            yield from ((output, state) for output in outputs)
        else:
            yield None, state

    def _decide(
        self, samples: np.ndarray, state: PipelineState
    ) -> tuple[list[ChunkOutput], PipelineState]:
        """Take in one chunk, then READ or WRITE, once for every sentence that it touches."""
        final = state.finished
        model, weight = self.system.model, next(self.system.model.parameters())
        watch = Stopwatch(weight.device)
        with watch("features"):
            features, frontend = self.frontend.step(
                samples, state.sample_rate, state.frontend, final=final
            )
            unheard = features.to(weight)
        state = replace(state, frontend=frontend, processed=state.processed + len(samples))
        outputs: list[ChunkOutput] = []
        while unheard is not None:
            with watch("encoder"):
                frames, tail, inner = model.encode(unheard, state.model, final=final)
            with watch("ctc"):
                heard, inner = model.emit(frames, tail, inner, transcribe_only=self.task == "asr")
            state = replace(state, model=inner)
            pieces, unheard, state = self._split(heard, frames, unheard, state)
            for piece in pieces:
                output, state = self._write(piece, watch, state)
                outputs.append(output)
                watch = Stopwatch(weight.device)
                if piece.ends and not piece.final:
                    state = self._next_sentence(state)
        return outputs, state

    def _split(
        self, heard: Heard, frames: torch.Tensor, features: Features, state: PipelineState
    ) -> tuple[list[Piece], Features | None, PipelineState]:
        """Assign what was heard to sentences.

        Returns:
            The pieces in order, the features that a restarted encoder hears next (or None), and
            the new state.
        """
        learned = self.endpoints.config.method == "learned"
        asr_ends = [learned and token == Vocabulary.eos for token in heard.asr_tokens]
        boundaries, endpoint = self.endpoints.step(
            FrameTokens(heard.frames, heard.asr_frames, asr_ends), state.endpoint
        )
        rest = None
        if self.restarts:
            if boundaries:
                # What follows the boundary is heard again, by an encoder that knows nothing else.
                boundaries, endpoint = boundaries[:1], self.endpoints.init_state()
            rest, recent = unsettled(features, state.recent, boundaries, heard.frames)
            state = replace(state, recent=recent)
        state = replace(state, endpoint=endpoint)
        pieces = []
        start = 0
        for stop in boundaries:
            part = heard.cut(start, stop, Vocabulary.eos if learned else None)
            pieces.append(Piece(part, frames[:, start:stop], True, False))
            start = stop
        if rest is None and (start < heard.frames or not boundaries or state.finished):
            part = heard.cut(start, None, Vocabulary.eos if learned else None)
            pieces.append(Piece(part, frames[:, start:], state.finished, state.finished))
        return pieces, rest, state

    def _next_sentence(self, state: PipelineState) -> PipelineState:
        """Text and speech start anew; the encoder goes on, or starts anew too."""
        model = self.system.model.next_sentence(state.model)
        if self.restarts:
            model = self.system.model.restart_hearing(model, **self.encoder_options())
        return replace(
            state,
            model=model,
            policy=PolicyState(),
            written=0,
            asr_count=0,
            st_count=0,
            sentence=state.sentence + 1,
            sentence_from=state.processed,
        )

    def _write(
        self, piece: Piece, watch: Stopwatch, state: PipelineState
    ) -> tuple[ChunkOutput, PipelineState]:
        """Let the sentence under way read its share of a chunk, then READ or WRITE."""
        model, heard = self.system.model, piece.heard
        source_ms = 1000 * state.processed / state.sample_rate
        if self.task != "asr":
            with watch("ctc"):
                state = replace(state, model=model.read(piece.frames, state.model))
        state = replace(
            state,
            asr_count=state.asr_count + len(heard.asr_tokens),
            st_count=state.st_count + len(heard.st_tokens),
        )
        words, transcript = self.transcriber.step(
            heard.asr_tokens, state.transcript, final=piece.ends
        )
        state = replace(state, transcript=transcript)
        hypothesis: Hypothesis | None = None
        if self.task != "asr":
            hypothesis, state = self._write_text(heard, piece.ends, watch, state)
        tokens = hypothesis.tokens if hypothesis else ()
        translated, translation = self.translator.step(tokens, state.translation, final=piece.ends)
        state = replace(state, translation=translation, written=state.written + len(tokens))

        units: list[int] = []
        waveform = np.zeros(0, dtype=np.float32)
        if self.task == "s2st" and hypothesis is not None and hypothesis.hidden.size(1):
            with watch("units"):
                units, inner = model.speak(hypothesis.hidden, state.model)
            with watch("vocoder"):
                speech, inner = model.vocode(units, inner, dur_prediction=self.dur_prediction)
                waveform = speech.float().cpu().numpy()
            state = replace(state, model=inner)
        if self.endpoints.config.method != "off" and not state.asr_count:
            # Nobody has spoken yet: the silence before a sentence need not be kept for ever.
            state = replace(state, model=model.keep_source(LEAD_FRAMES, state.model))
        output = ChunkOutput(
            source_ms=source_ms,
            write=bool(tokens or units or len(waveform)),
            final=piece.final,
            asr_tokens=heard.asr_tokens,
            st_tokens=heard.st_tokens,
            asr_tail=heard.asr_tail,
            st_tail=heard.st_tail,
            mt_tokens=tokens,
            units=tuple(units),
            transcript=tuple(words),
            translation=tuple(translated),
            waveform=waveform,
            sample_rate=self.output_rate,
            encoder_frames=heard.frames,
            compute_ms=watch.ms,
            sentence=state.sentence,
            sentence_end=piece.ends,
        )
        return output, state

    def _write_text(
        self,
        heard: Heard,
        ends: bool,
        watch: Stopwatch,
        state: PipelineState,
    ) -> tuple[Hypothesis | None, PipelineState]:
        """Ask the policy; decode if it says WRITE. Where nothing was said, nothing is written."""
        counts = Counts(
            asr=state.asr_count + len(heard.asr_tail),
            st=state.st_count + len(heard.st_tail),
            written=state.written,
            source_ms=1000 * (state.processed - state.sentence_from) / state.sample_rate,
            source_finished=ends,
        )
        if not counts.asr and (ends or self.endpoints.config.method != "off"):
            return None, state
        decision, policy = self.decide(counts, state.policy, self.policy_config, self.whole_word)
        state = replace(state, policy=policy)
        heard_anything = state.model.mt.source_length or (
            heard.tail is not None and heard.tail.size(1)
        )
        if not decision.write or not heard_anything:
            return None, state
        with watch("mt"):
            before = state.model.mt
            hypothesis, inner = self.system.model.translate(
                state.model,
                tail=heard.tail,
                max_new_tokens=decision.max_new_tokens,
                final=decision.until_eos,
                beam=self.beam,
            )
            if decision.until_eos and not hypothesis.finished:
                logger.warning(
                    "the last decision stopped at its limit of %d subwords, before an end of "
                    "sentence",
                    decision.max_new_tokens,
                )
            if decision.drop_last_word:
                tokens = hypothesis.tokens
                keep = complete_words(tokens, self.system.target_vocabulary.starts_word)
                # Beyond the slack the caches cannot be rolled back; no word has that many pieces.
                if len(tokens) - keep <= TRIM_SLACK:
                    last = tokens[keep - 1] if keep else before.last_token
                    mt = hypothesis.state.truncate(before.length + keep, last)
                    hypothesis = replace(
                        hypothesis,
                        tokens=tokens[:keep],
                        hidden=hypothesis.hidden[:, :keep],
                        state=mt,
                    )
                    inner = replace(inner, mt=mt)
        return hypothesis, replace(state, model=inner)
