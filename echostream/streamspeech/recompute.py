"""StreamSpeech's agents, step by step, as they were published.

At every policy call the original computes everything again from the whole source received:
resampling, filterbank, encoder, CTC heads, the text decoder without cache (so that old positions
see new source), units, and the waveform of all units, of which it keeps the tail. This module does
exactly that work and reaches exactly its decisions, as the baseline for comparisons of quality and
cost. Everything that depends on the order of checks is kept in the original's order, because
counters advance on some paths to READ and not on others.

The original crashes on a prefix beyond its length limit and on an utterance too short for a
single frame; here both end the utterance. It also marks the last write of an utterance as
unfinished, which SimulEval overlooks because the source has ended; here it is marked finished.

Letters: S encoder frames, N text positions, D width.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echostream.checkpoint import System
from echostream.config import ENCODER_FRAME_MS, ChunkConformerConfig, PolicyConfig, Task
from echostream.models.chunk_conformer_encoder import s2st_conv_chunk, text_conv_chunk
from echostream.models.decoders.ctc_collapse import UNIT_OFFSET, CollapseState, collapse
from echostream.models.decoders.ctc_decoder_policy import (
    Counts,
    PolicyAction,
    PolicyState,
    whole_word_mode,
)
from echostream.models.decoders.mt_state import MTState
from echostream.streamspeech.frontend import StreamSpeechFrontend, whole_features
from echostream.streamspeech.search import CachedPredictor, Predictor, best_labels, greedy
from echostream.text import Vocabulary
from echostream.translator.backlog import BacklogState, after_write, waiting_ms
from echostream.translator.pipeline import Pipeline
from echostream.translator.stages import Stopwatch
from echostream.translator.stream import Decision, StreamPipeline, StreamState, Taken

# Length limits of the original's searches, in text tokens: a constant for speech output; for text
# output one token per filterbank frame and 200 more, within the decoder's positions.
SPEECH_MAX_TOKENS = 100
TEXT_EXTRA_TOKENS = 200
TEXT_MAX_TOKENS = 1199


def conv_chunk(task: Task, attention_chunk: int) -> int:
    """Convolution chunk that the original's agent for ``task`` pairs with an attention chunk."""
    return s2st_conv_chunk(attention_chunk) if task == "s2st" else text_conv_chunk(attention_chunk)


def length_limit(task: Task, frames: int) -> int:
    """Text tokens at which the original's agents stop at the end of a source of that many
    filterbank frames."""
    if task == "s2st":
        return SPEECH_MAX_TOKENS
    return min(frames + TEXT_EXTRA_TOKENS, TEXT_MAX_TOKENS)


class StreamSpeechPipeline(Pipeline):
    """The incremental pipeline with the filterbank and the convolution chunks of StreamSpeech's
    agents. It reads what they read at every decision, and goes on from what it has written."""

    def __init__(self, system: System, **options: Any) -> None:
        super().__init__(system, **options)
        self.frontend = StreamSpeechFrontend(system.config.frontend, system.cmvn)
        self._decide_by_counts, self.decide = self.decide, self._decide_within_limit

    def _decide_within_limit(
        self, counts: Counts, state: PolicyState, config: PolicyConfig, whole_word: bool
    ) -> tuple[PolicyAction, PolicyState]:
        """The policy's decision, at the end of the source within the original's length limit or
        the policy's ``max_len``, whichever is shorter."""
        decision, state = self._decide_by_counts(counts, state, config, whole_word)
        if decision.until_eos:
            frontend = self.system.config.frontend
            overlap_ms = frontend.window_ms - frontend.shift_ms
            frames = int((counts.source_ms - overlap_ms) // frontend.shift_ms)
            room = length_limit(self.task, frames) - counts.written
            most = max(min(room, decision.max_new_tokens), 0)
            decision = replace(decision, max_new_tokens=most)
        return decision, state

    def encoder_options(self) -> dict[str, int]:
        chunk = max(int(self.chunk_ms) // ENCODER_FRAME_MS, 1)
        return {"segment_frames": chunk, "conv_chunk_frames": conv_chunk(self.task, chunk)}


@dataclass(frozen=True, kw_only=True)
class RecomputeState(StreamState):
    """What the original's agents remember of an utterance.

    Attributes:
        samples: (T,) all source samples that went through the model.
        asr_count, st_count: CTC tokens at the last call that passed the growth check.
        prefix: text tokens written; None before the first.
        fed: text positions given to the unit decoder last; None before the first.
        units: units spoken; None before the first.
        text: what the text agents wrote.
        search: caches of the speech-to-text agent's search; None before the first.
        asr, st: CTC tokens at the last call.
        transcript, translation: what two calls in a row have agreed on.
        backlog: speech that waits to be played.
    """

    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    asr_count: int = 0
    st_count: int = 0
    prefix: tuple[int, ...] | None = None
    fed: int | None = None
    units: tuple[int, ...] | None = None
    text: str = ""
    search: MTState | None = None
    asr: tuple[int, ...] = ()
    st: tuple[int, ...] = ()
    transcript: AgreedWords = field(default_factory=lambda: AgreedWords())
    translation: AgreedWords = field(default_factory=lambda: AgreedWords())
    backlog: BacklogState = BacklogState()


@dataclass(frozen=True)
class AgreedWords:
    """Words of a text that is computed again at every call: what two calls in a row agree on is
    taken as said.

    Attributes:
        said: how many words are.
        before: the whole text at the last call.
    """

    said: int = 0
    before: tuple[str, ...] = ()

    def add(self, words: tuple[str, ...], final: bool) -> tuple[tuple[str, ...], str, AgreedWords]:
        """The whole text as of now to newly agreed words, the rest, and the new state."""
        agreed = 0
        while agreed < min(len(words), len(self.before)) and words[agreed] == self.before[agreed]:
            agreed += 1
        upto = len(words) if final else max(agreed - 1, 0)  # the last one may still grow
        said = max(self.said, upto)
        return words[self.said : upto], " ".join(words[said:]), AgreedWords(said, words)


@dataclass
class _Call:
    """One policy call under way: its source, and what it decides to write."""

    final: bool
    frames: int
    encoder_out: Tensor
    watch: Stopwatch
    write: bool = False
    text: str = ""
    waveform: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))


class RecomputePipeline(StreamPipeline[RecomputeState]):
    """StreamSpeech's agents on a loaded system with a chunk Conformer encoder.

    Args:
        system: model, vocabularies and normalisation.
        chunk_ms: source per policy call.
        task: which of the original's agents.
        policy: overrides the system's.
        options: of :class:`~echostream.translator.stream.StreamPipeline`; the search
            has a beam of 1.
    """

    min_chunk_ms = 1
    revises = True
    joins_last_chunk = True  # SimulEval marks a last chunk that is full as the last one

    def __init__(
        self,
        system: System,
        *,
        chunk_ms: int = 320,
        task: Task = "s2st",
        policy: PolicyConfig | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(system.config.encoder, ChunkConformerConfig):
            raise ValueError(
                "recomputing is for StreamSpeech's chunk_conformer encoder, this model has "
                f"{system.config.encoder.kind!r}"
            )
        if chunk_ms < self.min_chunk_ms:
            raise ValueError(f"chunk_ms must be at least {self.min_chunk_ms}, got {chunk_ms}")
        super().__init__(system, chunk_ms=chunk_ms, task=task, policy=policy, **options)
        if self.policy_config.name != "ctc":
            raise ValueError(
                f"StreamSpeech's agents have the 'ctc' policy, got {self.policy_config.name!r}"
            )
        # The text agents write unfinished words in any case.
        self.whole_word = task == "s2st" and whole_word_mode(self.policy_config, chunk_ms)
        self.attention_chunk = max(int(chunk_ms) // ENCODER_FRAME_MS, 1)
        self.conv_chunk = conv_chunk(task, int(chunk_ms) // ENCODER_FRAME_MS)

    def init_state(self) -> RecomputeState:
        return RecomputeState()

    def take(
        self, samples: np.ndarray, state: RecomputeState
    ) -> Generator[Any, Any, Taken[RecomputeState]]:
        """One policy call on all source so far, of no use to other streams."""
        yield from ()
        everything = np.concatenate([state.samples, samples])
        state = replace(state, samples=everything, processed=len(everything))
        watch = self.stages.watch()
        with watch("features"):
            features = self.features(everything, state.rate)
        output, state = self.decide(features, state, watch)
        return (output,), state

    def features(self, samples: np.ndarray, sample_rate: int) -> Tensor:
        """Normalised filterbank (frames, bins) of all source so far."""
        return whole_features(samples, sample_rate, self.system.config.frontend, self.system.cmvn)

    @torch.no_grad()
    def decide(
        self, features: Tensor, state: RecomputeState, watch: Stopwatch | None = None
    ) -> tuple[Decision, RecomputeState]:
        """One policy call on the (frames, bins) features of all source so far;
        ``state.finished`` says that the source has ended."""
        model = self.system.model
        weight = next(model.parameters())
        watch = watch or self.stages.watch()
        final = state.finished
        call = _Call(final, features.size(0), weight.new_zeros(0), watch)
        if features.size(0) == 0:
            call.write = final
            return self._output(call, state)
        with watch("encoder"):
            encoded = model.encoder(
                features[None].to(weight),
                torch.tensor([features.size(0)], device=weight.device),
                self.attention_chunk,
                conv_chunk_frames=self.conv_chunk,
            )
            call.encoder_out = encoded["encoder_out"][0]  # (S, 1, D)
        with watch("ctc"):
            asr = self._ctc(model.source_unigram_decoder(call.encoder_out))
            st = self._ctc(model.ctc_target_unigram_decoder(call.encoder_out))
        state = replace(state, asr=asr, st=st)
        if self.task == "asr":
            state = self._write_text(call, asr, self.system.source_vocabulary, state)
        else:
            new_tokens, state = self._new_tokens(final, state)
            if new_tokens is None or new_tokens > 0:
                state = self._translate(call, new_tokens, state)
        return self._output(call, state)

    def _output(self, call: _Call, state: RecomputeState) -> tuple[Decision, RecomputeState]:
        rate = state.sample_rate or self.system.config.frontend.sample_rate
        source_ms = 1000 * state.processed / rate
        written = () if self.task == "asr" else state.prefix or ()
        heard = self.system.source_vocabulary.decode(state.asr)
        said = self.system.target_vocabulary.decode(written)
        transcript, heard_tail, heard_state = state.transcript.add(tuple(heard.split()), call.final)
        translation, said_tail, said_state = state.translation.add(tuple(said.split()), call.final)
        backlog = after_write(state.backlog, len(call.waveform), self.output_rate, source_ms)
        decision = Decision(
            source_ms=source_ms,
            write=call.write,
            final=call.final,
            asr_tokens=state.asr,
            st_tokens=state.st,
            mt_tokens=state.prefix or (),
            units=state.units or (),
            text=call.text,
            transcript=transcript,
            translation=translation,
            transcript_tail=heard_tail,
            translation_tail=said_tail,
            waveform=call.waveform,
            sample_rate=self.output_rate,
            compute_ms=call.watch.ms,
            sentence_end=call.final,
            backlog_ms=waiting_ms(backlog, source_ms),
        )
        following = replace(state, transcript=heard_state, translation=said_state, backlog=backlog)
        return decision, following

    @staticmethod
    def _ctc(logits: Tensor) -> tuple[int, ...]:
        """(S, 1, V) logits to collapsed tokens."""
        labels = best_labels(logits[:, 0])
        tokens, _ = collapse(labels, CollapseState(), Vocabulary.blank, (Vocabulary.pad,))
        return tuple(tokens)

    def _new_tokens(self, final: bool, state: RecomputeState) -> tuple[int | None, RecomputeState]:
        """How many text tokens to write at most: none yet (0), or until the end (None)."""
        if final:
            return None, state
        stride = self.policy_config.stride_n
        asr, st = len(state.asr), len(state.st)
        if asr < state.asr_count + stride or st < state.st_count + stride:
            return 0, state
        # From here on the counters have advanced, whatever comes of it.
        state = replace(
            state, asr_count=max(asr, state.asr_count), st_count=max(st, state.st_count)
        )
        allowed = (st - self.policy_config.lagging_k1) // stride * stride + self.whole_word
        return max(allowed - len(state.prefix or ()), 0), state

    def _translate(
        self, call: _Call, new_tokens: int | None, state: RecomputeState
    ) -> RecomputeState:
        """Extend the text; then write it, or speak it."""
        decoder = self.system.model.target_unigram_decoder
        before = state.prefix or ()
        if new_tokens is not None:
            limit = len(before) + new_tokens
        else:
            limit = length_limit(self.task, call.frames)
        with call.watch("mt"):
            if self.task == "s2st":
                tokens = greedy(Predictor(decoder, call.encoder_out), before, limit)
            else:
                predict = CachedPredictor(decoder, call.encoder_out, state.search)
                tokens = greedy(predict, before, limit)
                state = replace(state, search=predict.state)
        if self.whole_word and not call.final:
            tokens = tokens[: self._last_word(tokens)]
            if not tokens:
                return state
        if tokens == state.prefix:
            call.write = call.final
            return state
        state = replace(state, prefix=tokens)
        if self.task == "s2st":
            return self._speak(call, tokens, state)
        return self._write_text(call, tokens, self.system.target_vocabulary, state)

    def _last_word(self, tokens: Sequence[int]) -> int:
        """Where the last word starts; 0 if none does."""
        starts = self.system.target_vocabulary.starts_word
        return next((i for i in range(len(tokens) - 1, -1, -1) if starts(tokens[i])), 0)

    def _write_text(
        self, call: _Call, tokens: Sequence[int], vocabulary: Vocabulary, state: RecomputeState
    ) -> RecomputeState:
        """Write what is longer than before, counted in characters, revised or not."""
        text = " ".join(vocabulary.pieces[token] for token in tokens)
        call.write, call.text = True, text[len(state.text) :]
        return replace(state, text=text)

    def _speak(self, call: _Call, tokens: tuple[int, ...], state: RecomputeState) -> RecomputeState:
        """Units of the whole text, and the waveform of the new ones."""
        model = self.system.model
        decoder = model.target_unigram_decoder
        fed = [decoder.eos, *tokens]
        if self.whole_word and call.final:
            # The original reserves one position too many here, and it yields units too.
            fed.append(decoder.pad)
        if not call.final and state.fed is not None and len(fed) <= state.fed:
            return state
        state = replace(state, fed=len(fed))
        call.write = call.final
        inputs = torch.tensor([fed], device=call.encoder_out.device)
        units = self._units(inputs, call.encoder_out, call.watch)
        new = len(units) - len(state.units or ())
        if new < 1:
            return state
        assert model.vocoder is not None  # the task needs one
        with call.watch("vocoder"):
            waveform, durations = model.vocoder.generate(
                units, dur_prediction=self.stages.dur_prediction
            )
            samples = int(durations[-new:].sum()) * model.vocoder.unit_samples
        call.write, call.waveform = True, waveform[-samples:].float().cpu().numpy()
        return replace(state, units=units)

    def _units(self, inputs: Tensor, encoder_out: Tensor, watch: Stopwatch) -> tuple[int, ...]:
        """Units of the whole text, of which (1, N) ``inputs`` are the text decoder's."""
        model = self.system.model
        decoder = model.target_unigram_decoder
        assert model.synthesizer_encoder is not None and model.decoder is not None  # it speaks
        with watch("mt"):
            _, hidden = decoder(inputs, encoder_out)  # (N, 1, D)
        padding = inputs.eq(decoder.pad)
        mask = padding if bool(padding.any()) else None
        with watch("units"):
            text = model.synthesizer_encoder(hidden.transpose(0, 1), mask)
            labels = best_labels(model.decoder(text.transpose(0, 1), mask)[0])
            labels, _ = collapse(labels, CollapseState(), model.unit_blank, (Vocabulary.pad,))
        return tuple(label - UNIT_OFFSET for label in labels if label >= UNIT_OFFSET)
