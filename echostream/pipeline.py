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
from echostream.config import ENCODER_FRAME_MS, ChunkConformerConfig, PolicyConfig
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
from echostream.text import Detokenizer, DetokenizerState

logger = logging.getLogger(__name__)

Task = Literal["asr", "s2tt", "s2st"]
MIN_CHUNK_MS, MAX_CHUNK_MS = 10, 3_600_000


@dataclass(frozen=True)
class PipelineState:
    """Everything one stream remembers.

    Attributes:
        frontend, model, policy: component states.
        sample_rate: of the input; None before the first samples.
        received: input samples pushed.
        processed: input samples that went through the model.
        pending: (T,) samples of the chunk under way.
        written: target subwords written.
        transcript, translation: words that may still grow.
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
        policy: overrides the system's.
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
        self.frontend = system.frontend()
        self.transcriber = Detokenizer(system.source_vocabulary)
        self.translator = Detokenizer(system.target_vocabulary)
        vocoder = system.config.vocoder
        self.output_rate = vocoder.sampling_rate if vocoder else system.config.frontend.sample_rate

    def init_state(self) -> PipelineState:
        options = {}
        if isinstance(self.system.config.encoder, ChunkConformerConfig):
            options["segment_frames"] = max(self.chunk_ms // ENCODER_FRAME_MS, 1)
        return PipelineState(
            frontend=self.frontend.init_state(),
            model=self.system.model.init_state(**options),
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
            output, state = self._decide(piece, replace(state, pending=available[used:]))
            yield output, state
        state = replace(state, pending=available[used:].copy())
        if final:
            output, state = self._decide(
                state.pending, replace(state, pending=available[:0], finished=True)
            )
            yield output, state
        else:
            yield None, state

    def _decide(
        self, samples: np.ndarray, state: PipelineState
    ) -> tuple[ChunkOutput, PipelineState]:
        """Take in one chunk, then READ or WRITE."""
        final = state.finished
        model, weight = self.system.model, next(self.system.model.parameters())
        watch = Stopwatch(weight.device)
        with watch("features"):
            features, frontend = self.frontend.step(
                samples, state.sample_rate, state.frontend, final=final
            )
            features = features.to(weight)
        with watch("encoder"):
            frames, tail, inner = model.encode(features, state.model, final=final)
        with watch("ctc"):
            heard, inner = model.listen(frames, tail, inner, transcribe_only=self.task == "asr")
        processed = state.processed + len(samples)
        state = replace(state, frontend=frontend, model=inner, processed=processed)
        source_ms = 1000 * processed / state.sample_rate

        words, transcript = self.transcriber.step(heard.asr_tokens, state.transcript, final=final)
        state = replace(state, transcript=transcript)
        hypothesis: Hypothesis | None = None
        if self.task != "asr":
            hypothesis, state = self._write_text(heard, source_ms, final, watch, state)
        tokens = hypothesis.tokens if hypothesis else ()
        translated, translation = self.translator.step(tokens, state.translation, final=final)
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
        output = ChunkOutput(
            source_ms=source_ms,
            write=bool(tokens or units or len(waveform)),
            final=final,
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
        )
        return output, state

    def _write_text(
        self,
        heard: Heard,
        source_ms: float,
        final: bool,
        watch: Stopwatch,
        state: PipelineState,
    ) -> tuple[Hypothesis | None, PipelineState]:
        """Ask the policy; decode if it says WRITE."""
        counts = Counts(
            asr=state.model.asr_collapse.count + len(heard.asr_tail),
            st=state.model.st_collapse.count + len(heard.st_tail),
            written=state.written,
            source_ms=source_ms,
            source_finished=final,
        )
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
