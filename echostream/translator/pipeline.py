"""Audio in, transcript, translation, units and waveform out; knows nothing of SimulEval.

Each chunk is encoded as one segment and followed by one policy decision at once; the end of the
stream is one more decision over what is left. Encoder and CTC heads run through the whole stream;
text and speech live sentence by sentence, and a sentence that ends is decoded and spoken to its end
before the next one begins.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from echostream.config import BacklogConfig, EndpointConfig, PolicyConfig, SpeechConfig, Task
from echostream.models.cache_limits import TRIM_SLACK
from echostream.models.ctc_output import CTCOutput
from echostream.models.decoders.ctc_decoder_policy import (
    Counts,
    PolicyAction,
    PolicyState,
    whole_word_mode,
)
from echostream.models.decoders.hypothesis import Hypothesis
from echostream.models.encoder import Features
from echostream.text import Detokenizer, Vocabulary
from echostream.translator.backlog import waiting_ms
from echostream.translator.endpoint import EndpointFinder, FrameTokens
from echostream.translator.judging import agreed, judge, whole_words
from echostream.translator.restart import behind, unsettled
from echostream.translator.spans import Span, split
from echostream.translator.speech import Speaker, SpeakerState, Written
from echostream.translator.stages import Request, Stopwatch, ask
from echostream.translator.state import PipelineState, begin_with
from echostream.translator.stream import Decision, StreamPipeline, Taken
from echostream.translator.text_end import TextEnds, TextEndState
from echostream.translator.transcribing import Heard, TranscriptWriter

if TYPE_CHECKING:
    from torch import Tensor

    from echostream.checkpoint import System
    from echostream.models.decoders.mt_state import MTState

logger = logging.getLogger(__name__)

LEAD_FRAMES = 64  # encoder frames before a sentence's first word that its text may look at


@dataclass(frozen=True)
class Asked:
    """That the text decoder was asked for: what the policy decided, and the state before."""

    action: PolicyAction
    before: MTState
    request: Request


class Pipeline(StreamPipeline[PipelineState]):
    """A streaming translator over one loaded system; any number of streams can share it.

    Args:
        system: model, vocabularies and normalisation.
        chunk_ms: source per decision.
        task: ``asr`` stops behind the transcript, ``s2tt`` behind the translated text.
        policy, endpoint, backlog, speech: override the system's.
        options: of :class:`~echostream.translator.stream.StreamPipeline`.
    """

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
        **options: Any,
    ) -> None:
        self.speech_config = system.config.speech if speech is None else speech
        voice = system.voice(self.speech_config) if task == "s2st" else None
        super().__init__(
            system, chunk_ms=chunk_ms, task=task, policy=policy, voice=voice, **options
        )
        self.decide = self.policy.decide
        self.whole_word = whole_word_mode(self.policy_config, chunk_ms)
        self.endpoints = EndpointFinder(system.config.endpoint if endpoint is None else endpoint)
        self.backlog_config = system.config.backlog if backlog is None else backlog
        self.speaker = self._open_speaker() if task == "s2st" else None
        self.restarts = (
            self.endpoints.config.method != "off" and system.model.encoder.utterances_only
        )
        # An encoder that starts anew would have to hear the rest again, and say it again.
        config = self.endpoints.config
        goes_on = config.method == "learned" and not self.restarts and task != "asr"
        tokens = config.text_end_tokens if goes_on else 0
        self.text_ends = TextEnds(tokens, config.text_end_score)
        if not self.policy.counts_translation and not tokens:
            self.stages.transcribe_only = True
        self.frontend = system.frontend()
        self.source_frames = system.model.source_frames
        # The text decoder's transcripts are better than the ASR head's, where it writes any.
        self.transcript_vocabulary = system.source_vocabulary
        self.transcript_writer: TranscriptWriter | None = None
        own = self.policy_config.transcript == "decoder"
        if system.transcript_vocabulary is not None and own:
            self.transcript_vocabulary = system.transcript_vocabulary
            self.transcript_writer = TranscriptWriter(
                self.stages,
                system.model,
                system.config.target_vocab_size,
                system.transcript_vocabulary.starts_word,
            )
        self.transcriber = Detokenizer(self.transcript_vocabulary)
        self.translator = Detokenizer(system.target_vocabulary)

    def _open_speaker(self) -> Speaker:
        vocabulary = self.system.target_vocabulary
        settings: dict[str, Any] = {
            "speech": self.speech_config,
            "backlog": self.backlog_config,
            "chunk_ms": self.chunk_ms,
            "sample_rate": self.output_rate,
        }
        if self.stages.voice is None:
            return Speaker(self.stages, vocabulary.starts_word, **settings)
        # Its packages are optional.
        from echostream.translator.voiced import VoicedSpeaker

        return VoicedSpeaker(self.stages, vocabulary, **settings)

    def encoder_options(self) -> dict[str, int]:
        """How the encoder's state is opened, beside the chunk."""
        return {}

    def init_state(self) -> PipelineState:
        options = self.encoder_options()
        return PipelineState(
            frontend=self.frontend.init_state(),
            model=self.system.model.init_state(chunk_ms=self.chunk_ms, **options),
            policy=PolicyState(),
            transcript=self.transcriber.init_state(),
            translation=self.translator.init_state(),
            speech=SpeakerState() if self.speaker is None else self.speaker.init_state(),
        )

    def take(
        self, samples: np.ndarray, state: PipelineState
    ) -> Generator[Any, Any, Taken[PipelineState]]:
        """Take in one chunk, then READ or WRITE, once for every sentence that it touches."""
        watch, outputs = self.stages.watch(), []
        with watch("features"):
            features, frontend = self.frontend.step(
                samples, state.rate, state.frontend, final=state.finished
            )
            features = self.stages.place(features)
        state = replace(state, frontend=frontend, processed=state.processed + len(samples))
        if self.restarts and self.endpoints.nothing_for_long(state.endpoint):
            features, state = self._forget_silence(features, state)
        unheard: Features | None = features
        while unheard is not None:
            frames, emitted, listening = yield self.stages.listen(
                unheard, state.model.listening, state.finished, watch
            )
            state = replace(state, model=replace(state.model, listening=listening))
            spans, unheard, state = self._split(emitted, frames, unheard, state)
            for span in spans:
                heard, state = self._hear(span, watch, state)
                text_end = self.text_ends.observe(span.emitted, span.frames, state.text_end)
                state = replace(state, text_end=text_end)
                rest = self.text_ends.find(text_end)
                if rest is not None:
                    assert rest.frames is not None  # observed just now
                    before, span = split(span, rest.frames)
                    output, state = yield from self._write(
                        before, watch, state, heard, in_retrospect=True
                    )
                    heard = None
                    outputs.append(output)
                    watch = self.stages.watch()
                    state = begin_with(rest, span, self._next_sentence(state))
                output, state = yield from self._write(span, watch, state, heard)
                outputs.append(output)
                watch = self.stages.watch()
                if span.ends and not span.final:
                    state = self._next_sentence(state)
        return outputs, state

    def _split(
        self, emitted: CTCOutput, frames: Tensor, features: Features, state: PipelineState
    ) -> tuple[list[Span], Features | None, PipelineState]:
        """Assign the new source to sentences.

        Returns:
            The spans in order, the features that a restarted encoder reads next (or None), and
            the new state.
        """
        learned = self.endpoints.config.method == "learned"
        asr_ends = [learned and token == Vocabulary.eos for token in emitted.asr_tokens]
        boundaries, endpoint = self.endpoints.step(
            FrameTokens(emitted.frames, emitted.asr_frames, asr_ends), state.endpoint
        )
        rest = None
        if self.restarts:
            if boundaries:
                # What follows the boundary is read again, by an encoder that knows nothing else.
                boundaries, endpoint = boundaries[:1], self.endpoints.init_state()
            rest, recent = unsettled(features, state.recent, boundaries, emitted.frames)
            state = replace(state, recent=recent)
        state = replace(state, endpoint=endpoint)
        spans = []
        start = 0
        for stop in boundaries:
            part = emitted.cut(start, stop, Vocabulary.eos if learned else None)
            spans.append(Span(part, frames[:, start:stop], True, False))
            start = stop
        if rest is None and (start < emitted.frames or not boundaries or state.finished):
            part = emitted.cut(start, None, Vocabulary.eos if learned else None)
            spans.append(Span(part, frames[:, start:], state.finished, state.finished))
        return spans, rest, state

    def _forget_silence(
        self, features: Features, state: PipelineState
    ) -> tuple[Features, PipelineState]:
        """Start an encoder anew that remembers everything, where nobody has spoken for as long as
        the longest sentence: what it has not settled yet is read again, before ``features``."""
        if state.recent is not None:
            features = behind(state.recent, features)
        state = replace(state, recent=None, endpoint=self.endpoints.init_state())
        return features, self._restarted(state)

    def _restarted(self, state: PipelineState) -> PipelineState:
        """Encoder and CTC heads forget the source."""
        listening = self.system.model.init_listening(
            chunk_ms=self.chunk_ms, **self.encoder_options()
        )
        return replace(state, model=replace(state.model, listening=listening))

    def _next_sentence(self, state: PipelineState) -> PipelineState:
        """Text and speech start anew; the encoder goes on, or starts anew too."""
        if self.restarts:
            state = self._restarted(state)
        return replace(
            state,
            model=self.system.model.next_sentence(state.model),
            policy=PolicyState(),
            text_end=TextEndState(),
            written=0,
            asr_count=0,
            st_count=0,
            hypothesis=(),
            draft=(),
            sentence=state.sentence + 1,
            sentence_from=state.processed,
        )

    def _hear(
        self, span: Span, watch: Stopwatch, state: PipelineState
    ) -> tuple[Heard | None, PipelineState]:
        """Let the transcript read a span, where the text decoder writes it."""
        if self.transcript_writer is None:
            return None, state
        heard, inner, text = self.transcript_writer.read(
            span, watch, state.model, state.written_transcript
        )
        return heard, replace(state, model=inner, written_transcript=text)

    def _write(
        self,
        span: Span,
        watch: Stopwatch,
        state: PipelineState,
        heard: Heard | None,
        *,
        in_retrospect: bool = False,
    ) -> Generator[Any, Any, tuple[Decision, PipelineState]]:
        """Let the sentence under way read its share of a chunk, then READ or WRITE.

        Args:
            heard: what the transcript has read.
            in_retrospect: it turned out to have ended, in source that was read before.
        """
        model, emitted = self.system.model, span.emitted
        source_ms = 1000 * state.processed / state.rate
        if self.task != "asr":
            with watch("ctc"):
                state = replace(state, model=model.read(span.frames, state.model))
        state = replace(
            state,
            asr_count=state.asr_count + len(emitted.asr_tokens),
            st_count=state.st_count + len(emitted.st_tokens),
        )
        asked: Asked | None = None
        if self.task != "asr":
            asked, state = self._ask_for_text(emitted, span.ends, watch, state)
        answers = yield from ask(heard.request if heard else None, asked.request if asked else None)
        spoken, guessed, spoken_ends = emitted.asr_tokens, emitted.asr_tail, span.ends
        if self.transcript_writer is not None:
            text = state.written_transcript
            if heard is not None:
                inner, text = self.transcript_writer.write(heard, answers[0], state.model, text)
                state = replace(state, model=inner)
            spoken, guessed = text.waiting, self.transcript_writer.guessed(text)
            spoken_ends = span.ends and not in_retrospect
            state = replace(state, written_transcript=replace(text, waiting=()))
        words, transcript = self.transcriber.step(spoken, state.transcript, final=spoken_ends)
        state = replace(state, transcript=transcript)
        hypothesis: Hypothesis | None = None
        if asked is not None:
            hypothesis, state = self._write_text(answers[1], asked, span.ends, state)
        tokens = hypothesis.tokens if hypothesis else ()
        translated, translation = self.translator.step(tokens, state.translation, final=span.ends)
        state = replace(state, translation=translation, written=state.written + len(tokens))

        units: list[int] = []
        waveform = np.zeros(0, dtype=np.float32)
        if self.speaker is not None:
            written = Written(hypothesis, emitted.tail, span.ends, source_ms)
            units, waveform, inner, speech = yield from self.speaker.step(
                written, watch, state.model, state.speech
            )
            state = replace(state, model=inner, speech=speech)
        if self.endpoints.config.method != "off" and not state.asr_count:
            # Nobody has spoken yet: the silence before a sentence need not be kept for ever.
            state = replace(state, model=model.keep_source(LEAD_FRAMES, state.model))
        output = Decision(
            source_ms=source_ms,
            write=bool(tokens or units or len(waveform)),
            final=span.final,
            asr_tokens=emitted.asr_tokens,
            st_tokens=emitted.st_tokens,
            asr_tail=emitted.asr_tail,
            st_tail=emitted.st_tail,
            mt_tokens=tokens,
            units=tuple(units),
            transcript=tuple(words),
            translation=tuple(translated),
            transcript_tail=self.transcript_vocabulary.decode((*transcript.pending, *guessed)),
            translation_tail=self.system.target_vocabulary.decode(translation.pending),
            waveform=waveform,
            sample_rate=self.output_rate,
            encoder_frames=emitted.frames,
            compute_ms=watch.ms,
            sentence=state.sentence,
            sentence_end=span.ends,
            backlog_ms=waiting_ms(state.speech.backlog, source_ms),
        )
        return output, state

    def _ask_for_text(
        self, emitted: CTCOutput, ends: bool, watch: Stopwatch, state: PipelineState
    ) -> tuple[Asked | None, PipelineState]:
        """Ask the policy; None if it says READ. Where nothing was said, nothing is written."""
        counts = Counts(
            asr=state.asr_count + len(emitted.asr_tail),
            st=state.st_count + len(emitted.st_tail),
            written=state.written,
            source_ms=1000 * (state.processed - state.sentence_from) / state.rate,
            source_finished=ends,
        )
        if not counts.asr and (ends or self.endpoints.config.method != "off"):
            return None, state
        action, policy = self.decide(counts, state.policy, self.policy_config, self.whole_word)
        state = replace(state, policy=policy)
        tail, before = emitted.tail, state.model.mt
        heard_anything = before.source_length or (tail is not None and tail.shape[1])
        if not action.write or not heard_anything:
            return None, state
        stands = None
        if not action.until_eos:
            stands = judge(
                self.policy,
                self.policy_config,
                counts,
                emitted,
                state.hypothesis,
                self.source_frames,
            )
        request = self.stages.translate(
            before, action.max_new_tokens, action.until_eos, tail, watch, stands, state.draft
        )
        return Asked(action, before, request), state

    def _write_text(
        self, hypothesis: Hypothesis, asked: Asked, ends: bool, state: PipelineState
    ) -> tuple[Hypothesis, PipelineState]:
        """What is written of what was decoded."""
        action, before = asked.action, asked.before
        # A policy's own bound is no news.
        bounded = action.max_new_tokens < self.policy_config.max_len
        if action.until_eos and not hypothesis.finished and not bounded:
            logger.warning(
                "the last decision stopped at its limit of %d subwords, before an end of sentence",
                action.max_new_tokens,
            )
        refused = hypothesis.refused is not None
        wishes = not ends and not refused and len(hypothesis.tokens) < action.max_new_tokens
        answers = action.expected and not refused
        decoded = hypothesis.tokens
        if action.agreed:
            wishes = wishes and not decoded
            hypothesis = agreed(hypothesis, state.draft, before)
        if action.drop_last_word:
            keep = whole_words(hypothesis, self.system.target_vocabulary.starts_word)
            # Beyond the slack the caches cannot be rolled back; no word has that many pieces.
            if len(decoded) - keep <= TRIM_SLACK:
                hypothesis = hypothesis.keep(keep, before)
        if action.agreed:
            state = replace(state, draft=decoded[len(hypothesis.tokens) :])
        if "hypothesis" in self.policy.evidence:
            state = replace(state, hypothesis=state.hypothesis + hypothesis.tokens)
        # Neither a refused subword nor silence that nobody expected to be broken says whether the
        # decoder wants to end.
        if hypothesis.tokens or answers:
            text_end = self.text_ends.decided(wishes and not hypothesis.tokens, state.text_end)
            state = replace(state, text_end=text_end)
        return hypothesis, replace(state, model=replace(state.model, mt=hypothesis.state))
