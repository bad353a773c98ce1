"""Audio in, transcript, translation, units and waveform out; knows nothing of SimulEval.

Each chunk is encoded as one segment and followed by one policy decision at once; the end of the
stream is one more decision over what is left. Encoder and CTC heads run through the whole stream;
text and speech live sentence by sentence, and a sentence that ends is decoded and spoken to its end
before the next one begins.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch

from echostream.checkpoint import System
from echostream.config import (
    ENCODER_FRAME_MS,
    BacklogConfig,
    ChunkConformerConfig,
    EndpointConfig,
    PolicyConfig,
    SpeechConfig,
)
from echostream.models.decoders.ctc_decoder_policy import (
    POLICIES,
    Counts,
    PolicyState,
    complete_words,
    whole_word_mode,
)
from echostream.models.decoders.transformer_decoder import Hypothesis
from echostream.models.heard import Heard
from echostream.models.transformer_layer import TRIM_SLACK
from echostream.pipeline_state import ChunkOutput, PipelineState, take_over
from echostream.spine import Stopwatch, StreamPipeline, Task
from echostream.streams.backlog import waiting_ms
from echostream.streams.endpoint import EndpointFinder, FrameTokens
from echostream.streams.pieces import Piece, split
from echostream.streams.restart import Features, unsettled
from echostream.streams.speaking import Speaker, Written
from echostream.streams.text_end import TextEnds, TextEndState
from echostream.text import Detokenizer, Vocabulary

logger = logging.getLogger(__name__)

LEAD_FRAMES = 64  # encoder frames before a sentence's first word that its text may look at


class Pipeline(StreamPipeline[PipelineState, ChunkOutput]):
    """A streaming translator over one loaded system; any number of streams can share it.

    Args:
        system: model, vocabularies and normalisation.
        chunk_ms: source per decision.
        task: ``asr`` stops behind the transcript, ``s2tt`` behind the translated text.
        policy, endpoint, backlog, speech: override the system's.
        beam: beam width of the text decoder.
        dur_prediction: let the vocoder predict how long units last.
    """

    joins_streams = True

    def __init__(
        self,
        system: System,
        *,
        chunk_ms: int = 320,
        task: Task = "s2st",
        policy: PolicyConfig | None = None,
        endpoint: EndpointConfig | None = None,
        backlog: BacklogConfig | None = None,
        speech: SpeechConfig | None = None,
        beam: int = 1,
        dur_prediction: bool = True,
    ) -> None:
        super().__init__(system, chunk_ms=chunk_ms, task=task, policy=policy)
        if beam < 1:
            raise ValueError(f"beam must be at least 1, got {beam}")
        self.beam = beam
        self.decide = POLICIES[self.policy_config.name]
        self.whole_word = whole_word_mode(self.policy_config, chunk_ms)
        self.endpoints = EndpointFinder(system.config.endpoint if endpoint is None else endpoint)
        self.backlog_config = system.config.backlog if backlog is None else backlog
        self.speech_config = system.config.speech if speech is None else speech
        self.speaker = None
        if task == "s2st":
            self.speaker = Speaker(
                system.model,
                system.target_vocabulary.starts_word,
                speech=self.speech_config,
                backlog=self.backlog_config,
                chunk_ms=chunk_ms,
                dur_prediction=dur_prediction,
            )
        # The Emformer hears streams; the chunk Conformer was trained on utterances, and its cost
        # grows with what it has heard.
        self.restarts = self.endpoints.config.method != "off" and isinstance(
            system.config.encoder, ChunkConformerConfig
        )
        # An encoder that starts anew would have to hear the rest again, and say it again.
        config = self.endpoints.config
        goes_on = config.method == "learned" and not self.restarts and task != "asr"
        tokens = config.text_end_tokens if goes_on else 0
        self.text_ends = TextEnds(tokens, config.text_end_score)
        self.frontend = system.frontend()
        self.transcriber = Detokenizer(system.source_vocabulary)
        self.translator = Detokenizer(system.target_vocabulary)

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

    def take(
        self, samples: np.ndarray, state: PipelineState
    ) -> tuple[list[ChunkOutput], PipelineState]:
        """Take in one chunk, then READ or WRITE, once for every sentence that it touches."""
        watch = Stopwatch(next(self.system.model.parameters()).device)
        with watch("features"):
            features, state = self.features(samples, state)
        return self.follow(features, None, watch, state)

    def features(
        self, samples: np.ndarray, state: PipelineState
    ) -> tuple[torch.Tensor, PipelineState]:
        """(T,) the samples of a chunk to the (1, frames, bins) that it completes."""
        features, frontend = self.frontend.step(
            samples, state.sample_rate, state.frontend, final=state.finished
        )
        state = replace(state, frontend=frontend, processed=state.processed + len(samples))
        return features.to(next(self.system.model.parameters())), state

    def follow(
        self,
        features: torch.Tensor,
        listened: tuple[torch.Tensor, Heard] | None,
        watch: Stopwatch,
        state: PipelineState,
    ) -> tuple[list[ChunkOutput], PipelineState]:
        """Everything behind the features of a chunk.

        Args:
            features: (1, frames, bins) of the chunk.
            listened: encoder frames and tokens, where the model's state has taken them in already.
        """
        model, outputs = self.system.model, []
        if self.restarts and self.endpoints.nothing_for_long(state.endpoint):
            features, state = self._forget_silence(features, state)
        unheard: Features | None = features
        while unheard is not None:
            if listened is None:
                with watch("encoder"):
                    frames, tail, inner = model.encode(unheard, state.model, final=state.finished)
                with watch("ctc"):
                    heard, inner = model.emit(
                        frames, tail, inner, transcribe_only=self.task == "asr"
                    )
                state = replace(state, model=inner)
            else:
                (frames, heard), listened = listened, None
            pieces, unheard, state = self._split(heard, frames, unheard, state)
            for piece in pieces:
                text_end = self.text_ends.hear(piece.heard, piece.frames, state.text_end)
                state = replace(state, text_end=text_end)
                rest = self.text_ends.find(text_end)
                if rest is not None:
                    before, piece = split(piece, rest.frames)
                    output, state = self._write(before, watch, state)
                    outputs.append(output)
                    watch = Stopwatch(watch.device)
                    state = take_over(rest, piece, self._next_sentence(state))
                output, state = self._write(piece, watch, state)
                outputs.append(output)
                watch = Stopwatch(watch.device)
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

    def _forget_silence(
        self, features: torch.Tensor, state: PipelineState
    ) -> tuple[torch.Tensor, PipelineState]:
        """Start an encoder anew that remembers everything, where nobody has spoken for as long as
        the longest sentence: what it has not settled yet is heard again, before ``features``."""
        if state.recent is not None:
            features = torch.cat([state.recent, features], dim=1)
        model = self.system.model.restart_hearing(state.model, **self.encoder_options())
        endpoint = self.endpoints.init_state()
        return features, replace(state, model=model, recent=None, endpoint=endpoint)

    def _next_sentence(self, state: PipelineState) -> PipelineState:
        """Text and speech start anew; the encoder goes on, or starts anew too."""
        model = self.system.model.next_sentence(state.model)
        if self.restarts:
            model = self.system.model.restart_hearing(model, **self.encoder_options())
        return replace(
            state,
            model=model,
            policy=PolicyState(),
            text_end=TextEndState(),
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
        if self.speaker is not None:
            written = Written(hypothesis, heard.tail, piece.ends, source_ms)
            units, waveform, inner, speech = self.speaker.step(
                written, watch, state.model, state.speech
            )
            state = replace(state, model=inner, speech=speech)
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
            backlog_ms=waiting_ms(state.speech.backlog, source_ms),
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
            wishes = not ends and len(hypothesis.tokens) < decision.max_new_tokens
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
        text_end = self.text_ends.decided(wishes and not hypothesis.tokens, state.text_end)
        return hypothesis, replace(state, model=inner, text_end=text_end)
