"""What all SimulEval agents share: flags, streaming state, trace.

The agent holds weights and options only; everything a stream remembers lives in
:class:`StreamStates`, so one agent object can serve several streams
(``agent.pushpop(segment, states)``).
"""

from __future__ import annotations

import itertools
import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from simuleval.agents import GenericAgent
from simuleval.agents.actions import Action, ReadAction, WriteAction
from simuleval.agents.states import AgentStates
from simuleval.data.segments import EmptySegment, Segment, SpeechSegment

from echostream.acceleration.compiled import compile_encoder
from echostream.checkpoint import load_model_dir, normalize_device
from echostream.config import Task, add_setting_args, settings_from_args
from echostream.config.compute import DTYPES, add_compile_arg, add_threads_arg
from echostream.evaluation import simuleval_compat
from echostream.precision import check_dtype
from echostream.session import Session, TraceWriter, advance_sessions
from echostream.threads import use_threads
from echostream.translator.pipeline import Pipeline
from echostream.translator.stream import Decision, StreamPipeline

logger = logging.getLogger("echostream.agents")


class StreamStates(AgentStates):
    """SimulEval's states plus a session, which keeps what was said and what was not read yet.

    Args:
        open_session: makes the session of a new utterance.
    """

    source_sample_rate: int

    def __init__(self, open_session: Callable[[], Session]) -> None:
        self.open_session = open_session
        super().__init__()

    def reset(self) -> None:
        super().reset()
        # Opened when first needed: resets happen before the weights are on their device.
        self.session: Session | None = None
        # Decisions that were computed together with other streams', before the policy is called.
        self.decided: list[Decision] | None = None

    def update_source(self, segment) -> None:
        if self.target_finished:
            # Left over from an utterance that the evaluator did not reset.
            self.reset()
        if self.session is None:
            self.session = self.open_session()
        content, rate = np.zeros(0, dtype=np.float32), self.source_sample_rate
        if not isinstance(segment, EmptySegment):
            content, rate = segment.content, segment.sample_rate
            self.source_sample_rate = rate
            self.tgt_lang = segment.tgt_lang
        self.source_finished = segment.finished
        self.session.feed(content, rate or self.session.model_rate, final=segment.finished)


class EchoStreamAgent(GenericAgent):
    """Base of the speech-to-speech, speech-to-text and ASR agents.

    Subclasses mix in SimulEval's agent type and set ``task``.
    """

    task: Task = "s2st"
    pipeline: StreamPipeline[Any]

    def __init__(self, args: Namespace) -> None:
        device = normalize_device(getattr(args, "device", None))
        self.dtype = _dtype(args)
        system = load_model_dir(args.model_dir, device=device, dtype=self.dtype)
        logger.info("threads: %d", use_threads(system.model, args.threads))
        chunk_ms = args.chunk_ms or getattr(args, "source_segment_size", None) or 320
        if args.compile:
            package = compile_encoder(system.model, chunk_ms=int(chunk_ms))
            logger.info("encoder: %s", package or "CUDA graphs")
        self.pipeline = Pipeline(
            system,
            chunk_ms=int(chunk_ms),
            task=self.task,
            beam=args.beam,
            dur_prediction=args.dur_prediction,
            **settings_from_args(args, system.config).sections(),
        )
        self.show_text = args.output_asr_translation
        # SimulEval builds the agent of a --system-dir in that directory, and runs it elsewhere.
        self.trace = TraceWriter(Path(args.trace)) if args.trace else None
        # Shared by all streams of an agent: no two utterances collide.
        self.utterance_numbers = itertools.count()
        super().__init__(args)

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        # SimulEval's first call: it has not read its own options yet, nor made an evaluator.
        simuleval_compat.apply()
        parser.add_argument(
            "--model-dir", required=True, help="model directory (see `echostream info`)"
        )
        parser.add_argument(
            "--chunk-ms",
            type=int,
            default=None,
            help="source per policy decision in ms (default: --source-segment-size)",
        )
        # SimulEval defines the segment size, except when it builds an agent from --system-dir.
        if "--source-segment-size" not in parser._option_string_actions:
            # That parser sees the whole command line: its --source and --output must not be
            # taken for abbreviations of flags defined here.
            parser.allow_abbrev = False
            parser.add_argument(
                "--source-segment-size", type=int, default=None, help="source per segment in ms"
            )
        # SimulEval knows fp16 and fp32; what else there is, the agent loads by itself.
        if "--dtype" in parser._option_string_actions:
            parser._option_string_actions["--dtype"].choices = list(DTYPES)
        add_compile_arg(parser)
        add_threads_arg(parser)
        add_setting_args(parser)
        parser.add_argument("--beam", type=int, default=1, help="beam width of the text decoder")
        parser.add_argument(
            "--dur-prediction",
            action="store_true",
            default=True,
            help="predict how long each unit lasts (the default, for reduced units)",
        )
        parser.add_argument(
            "--no-dur-prediction",
            dest="dur_prediction",
            action="store_false",
            help="one frame per unit (for unreduced units)",
        )
        parser.add_argument(
            "--output-asr-translation",
            action="store_true",
            help="print the running transcript and translation",
        )
        parser.add_argument(
            "--trace",
            default=None,
            metavar="FILE",
            help="write one JSON line per policy call: decision, tokens, units, compute times",
        )

    def build_states(self) -> StreamStates:
        return StreamStates(self.open_session)

    def open_session(self) -> Session:
        """A session for the next utterance."""
        return Session(self.pipeline, index=next(self.utterance_numbers), trace=self.trace)

    def to(self, device: str, *args, fp16: bool = False, **kwargs) -> None:
        """Move the weights; called by SimulEval after construction."""
        model = self.pipeline.system.model
        device = normalize_device(device)
        check_dtype(self.dtype, device)
        self.pipeline.system.move(device)
        if fp16:
            model.half()
        self.reset()

    def policy(self, states: StreamStates | None = None) -> Action:
        """Feed the new samples, emit what the pipeline decided to write."""
        states = self.states if states is None else states
        session = states.session
        outputs, states.decided = states.decided, None
        if outputs is None:
            outputs = [] if session is None else session.advance()
        if session is not None:
            for output in outputs:
                self._tell(output, session)
        action = self._action(outputs, states)
        if states.source_finished:
            states.target_finished = True
        return action

    def pushpop_batch(
        self, segments: Sequence[Segment], states: Sequence[StreamStates]
    ) -> list[Segment]:
        """``pushpop`` of several streams, which listen together where they can.

        Args:
            segments: the next one of each stream.
            states: of each stream, all different, from :meth:`build_states`.
        """
        for segment, stream in zip(segments, states, strict=True):
            self.push(segment, stream)
        going = [
            (stream, stream.session)
            for stream in states
            if stream.session is not None and not stream.target_finished
        ]
        for index, result in advance_sessions([session for _, session in going]):
            if isinstance(result, Exception):
                raise result
            going[index][0].decided = result
        return [self.pop(stream) for stream in states]

    def _action(self, outputs: list[Decision], states: StreamStates) -> Action:
        raise NotImplementedError

    def _tell(self, output: Decision, session: Session) -> None:
        """The running transcript and translation, if asked for."""
        if self.show_text and (self.pipeline.revises or output.transcript or output.translation):
            sentence = session.sentences[output.sentence]
            print("Streaming ASR:", " ".join(sentence.transcript))
            if self.task != "asr":
                print("Simultaneous translation:", " ".join(sentence.translation))


class SpeechOutput(EchoStreamAgent):
    """Writes the new waveform."""

    def _action(self, outputs: list[Decision], states: StreamStates) -> Action:
        pieces = [output.waveform for output in outputs]
        samples = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)
        if not len(samples) and not states.source_finished:
            return ReadAction()
        segment = SpeechSegment(
            content=samples.tolist(),
            sample_rate=self.pipeline.output_rate,
            finished=states.source_finished,
        )
        return WriteAction(segment, finished=states.source_finished)


class TextOutput(EchoStreamAgent):
    """Writes newly completed words."""

    def _words(self, output: Decision) -> tuple[str, ...]:
        return output.transcript if self.task == "asr" else output.translation

    def _action(self, outputs: list[Decision], states: StreamStates) -> Action:
        words = [word for output in outputs for word in self._words(output)]
        if not words and not states.source_finished:
            return ReadAction()
        return WriteAction(" ".join(words), finished=states.source_finished)


def _dtype(args: Namespace) -> str:
    return getattr(args, "dtype", None) or ("fp16" if getattr(args, "fp16", False) else "fp32")
