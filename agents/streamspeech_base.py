"""What the StreamSpeech agents share: the choice between incremental work and the original's."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import numpy as np
from simuleval.agents.actions import Action, ReadAction, WriteAction
from simuleval.data.segments import SpeechSegment

from echostream.agents.base import EchoStreamAgent, StreamStates
from echostream.config import ChunkConformerConfig, given_settings
from echostream.session import Session
from echostream.streamspeech.recompute import RecomputePipeline, StreamSpeechPipeline
from echostream.translator.pipeline import Pipeline
from echostream.translator.stream import Decision, StreamPipeline


class StreamSpeechAgent(EchoStreamAgent):
    """Base of the StreamSpeech agents; subclasses mix in how output is written.

    Incremental work is the default. With ``--recompute`` every policy call does what the
    published agents do, and decides what they decide.
    """

    pipeline: StreamPipeline[Any]

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        incremental = self.pipeline
        assert isinstance(incremental, Pipeline)  # every agent begins with one
        kind = incremental.system.config.encoder.kind
        if not isinstance(incremental.system.config.encoder, ChunkConformerConfig):
            raise ValueError(
                f"{args.model_dir}: StreamSpeech agents need a chunk_conformer encoder, this "
                f"model has {kind!r}; use the echostream agents"
            )
        if args.recompute and args.beam != 1:
            raise ValueError(f"--recompute searches with a beam of 1 only, got --beam {args.beam}")
        if args.recompute and "policy.max_len" in (given := given_settings(args)):
            raise ValueError(
                "--recompute keeps the published agents' own length limits, which --max-len does "
                f"not change, got --max-len {given['policy.max_len']}"
            )
        self.recompute = args.recompute
        options: dict[str, Any] = {
            "chunk_ms": incremental.chunk_ms,
            "task": self.task,
            "policy": incremental.policy_config,
            "dur_prediction": args.dur_prediction,
        }
        if self.recompute:
            self.pipeline = RecomputePipeline(incremental.system, **options)
        else:
            self.pipeline = StreamSpeechPipeline(
                incremental.system,
                beam=args.beam,
                endpoint=incremental.endpoints.config,
                backlog=incremental.backlog_config,
                speech=incremental.speech_config,
                **options,
            )
        self.states = self.build_states()
        self.extra_output = Path(args.extra_output_dir) if args.extra_output_dir else None
        if self.extra_output is not None:
            self.extra_output.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        EchoStreamAgent.add_args(parser)
        parser.add_argument(
            "--recompute",
            action="store_true",
            help="compute everything again at every step, as the published agents do",
        )
        parser.add_argument(
            "--extra-output-dir",
            default=None,
            metavar="DIR",
            help="append each utterance's transcript, translation and units to asr.txt, st.txt "
            "and unit.txt there",
        )

    def _tell(self, output: Decision, session: Session) -> None:
        super()._tell(output, session)
        if output.final and self.extra_output is not None:
            lines = {
                "asr.txt": " ".join(session.transcript),
                "st.txt": " ".join(session.translation),
                "unit.txt": " ".join(map(str, session.units)),
            }
            for name, line in lines.items():
                with (self.extra_output / name).open("a", encoding="utf-8") as file:
                    file.write(line + "\n")

    def _recomputed_action(self, outputs: list[Decision], states: StreamStates) -> Action:
        if not any(output.write for output in outputs) and not states.source_finished:
            return ReadAction()
        if self.task == "s2st":
            pieces = [output.waveform for output in outputs]
            content = SpeechSegment(
                content=np.concatenate(pieces).tolist(),
                sample_rate=self.pipeline.output_rate,
                finished=states.source_finished,
            )
        else:
            content = "".join(output.text or "" for output in outputs)
        return WriteAction(content, finished=states.source_finished)

    def _action(self, outputs: list, states: StreamStates) -> Action:
        if self.recompute:
            return self._recomputed_action(outputs, states)
        return super()._action(outputs, states)
