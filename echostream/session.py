"""One stream on a pipeline and what it has said so far; knows nothing of SimulEval.

SimulEval's agents, the command line and servers all need the same: somebody who owns a stream's
state, joins what decision after decision brought, and writes it down.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from echostream.translator.stream import Decision, StreamPipeline


@dataclass
class Sentence:
    """What was said of one sentence.

    Attributes:
        asr, st, mt, units: tokens of the CTC heads and the text decoder, and speech units.
        asr_tail, st_tail: provisional tokens behind them.
        transcript, translation: whole words.
        ended: nothing more will come.
    """

    asr: list[int] = field(default_factory=list)
    st: list[int] = field(default_factory=list)
    mt: list[int] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    asr_tail: tuple[int, ...] = ()
    st_tail: tuple[int, ...] = ()
    transcript: list[str] = field(default_factory=list)
    translation: list[str] = field(default_factory=list)
    ended: bool = False

    def add(self, output: Decision) -> None:
        """Take in a decision that adds to what was said."""
        self.asr += output.asr_tokens
        self.st += output.st_tokens
        self.mt += output.mt_tokens
        self.units += output.units
        self.asr_tail, self.st_tail = output.asr_tail, output.st_tail
        self.transcript += output.transcript
        self.translation += output.translation
        self.ended = output.sentence_end

    def revise(self, output: Decision, transcript: str, translation: str) -> None:
        """Take in a decision that replaces what was said."""
        self.asr, self.st = list(output.asr_tokens), list(output.st_tokens)
        self.mt, self.units = list(output.mt_tokens), list(output.units)
        self.transcript, self.translation = transcript.split(), translation.split()
        self.ended = output.final

    def forget_tokens(self) -> None:
        """Keep the words alone."""
        for tokens in (self.asr, self.st, self.mt, self.units):
            tokens.clear()
        self.asr_tail = self.st_tail = ()


class TraceWriter:
    """One JSON line per decision, in a file that is begun anew.

    A line holds ``index`` of the stream, ``source_ms``, ``write``, ``finished``, ``sentence`` and
    what was said of that sentence so far (``asr``, ``st``, ``mt``, ``units``, ``transcript``,
    ``translation``), the new ``samples``, ``backlog_ms`` and ``compute_ms`` per stage.
    """

    def __init__(self, path: Path) -> None:
        # Whoever writes may later work in another directory.
        self.path = path.resolve()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")

    def write(self, index: int, sentence: Sentence, output: Decision) -> None:
        line: dict[str, Any] = {
            "index": index,
            "source_ms": round(output.source_ms, 3),
            "write": output.write,
            "finished": output.final,
            "sentence": output.sentence,
            "asr": [*sentence.asr, *sentence.asr_tail],
            "st": [*sentence.st, *sentence.st_tail],
            "mt": sentence.mt,
            "units": sentence.units,
            "transcript": " ".join(sentence.transcript),
            "translation": " ".join(sentence.translation),
            "samples": len(output.waveform),
            "backlog_ms": round(output.backlog_ms, 3),
            "compute_ms": {stage: round(ms, 3) for stage, ms in output.compute_ms.items()},
        }
        if output.text is not None:
            line["text"] = output.text
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Session:
    """A stream under way. One thread may feed it while another one advances it.

    Args:
        pipeline: shared by any number of sessions.
        index: of the stream, for the trace.
        trace: where decisions are written down, if anywhere.
        keep_tokens: sentences that have ended keep their tokens and units, and not the words alone.
            A stream that never ends should not.

    Attributes:
        state: the pipeline's; None before the first push, since weights may still move.
        sentences: what was said, sentence by sentence; the last one may go on.
        samples_written: samples of speech so far.
    """

    def __init__(
        self,
        pipeline: StreamPipeline[Any],
        *,
        index: int = 0,
        trace: TraceWriter | None = None,
        keep_tokens: bool = True,
    ) -> None:
        self.pipeline, self.index, self.trace = pipeline, index, trace
        self.keep_tokens = keep_tokens
        self.state: Any = None
        self.sentences = [Sentence()]
        self.samples_written = 0
        self._lock = threading.Lock()  # of the state

    @property
    def model_rate(self) -> int:
        """Sample rate that the model reads at, in Hz."""
        return self.pipeline.system.config.frontend.sample_rate

    @property
    def received(self) -> int:
        """Samples pushed."""
        return 0 if self.state is None else self.state.received

    @property
    def processed(self) -> int:
        """Samples that went through the model."""
        return 0 if self.state is None else self.state.processed

    @property
    def ready(self) -> bool:
        """Whether there is anything to take in."""
        return self.state is not None and self.pipeline.ready(self.state)

    @property
    def finished(self) -> bool:
        return self.state is not None and self.state.finished

    @property
    def sentence(self) -> Sentence:
        """The one that was spoken of last."""
        return self.sentences[-1]

    @property
    def transcript(self) -> list[str]:
        """All source words so far."""
        return [word for sentence in self.sentences for word in sentence.transcript]

    @property
    def translation(self) -> list[str]:
        """All target words so far."""
        return [word for sentence in self.sentences for word in sentence.translation]

    @property
    def units(self) -> list[int]:
        """All speech units so far."""
        return [unit for sentence in self.sentences for unit in sentence.units]

    def push(self, samples: object, sample_rate: int, *, final: bool = False) -> list[Decision]:
        """Push audio; see :meth:`echostream.translator.stream.StreamPipeline.step`. Returns the
        decisions."""
        return list(self.iterate(samples, sample_rate, final=final))

    def iterate(
        self, samples: object, sample_rate: int, *, final: bool = False
    ) -> Iterator[Decision]:
        """:meth:`push`, one decision at a time. Must be run to its end."""
        self.feed(samples, sample_rate, final=final)
        for decision, following in self.pipeline.decide_queued(self.state):
            self.state = following
            if decision is not None:
                self._record(decision)
                yield decision

    def feed(self, samples: object, sample_rate: int, *, final: bool = False) -> None:
        """Queue audio; see :meth:`echostream.translator.stream.StreamPipeline.accept`."""
        with self._lock:
            state = self.pipeline.init_state() if self.state is None else self.state
            self.state = self.pipeline.accept(samples, sample_rate, state, final=final)

    def _went_on(self, before: Any, after: Any) -> None:
        """Take over the state that the model reached, with what was fed meanwhile."""
        with self._lock:
            fed = self.state
            if fed is not before:
                taken = len(before.pending) - len(after.pending)
                after = replace(
                    after, received=fed.received, pending=fed.pending[taken:], ended=fed.ended
                )
            self.state = after

    def advance(self) -> list[Decision]:
        """Take in what is queued, as far as it makes up whole chunks."""
        ((_, result),) = advance_sessions([self])
        if isinstance(result, Exception):
            raise result
        return result

    def _record(self, output: Decision) -> None:
        while len(self.sentences) <= output.sentence:
            self.sentences.append(Sentence())
        sentence = self.sentences[output.sentence]
        if self.pipeline.revises:
            system = self.pipeline.system
            sentence.revise(
                output,
                system.source_vocabulary.decode(output.asr_tokens),
                system.target_vocabulary.decode(output.mt_tokens),
            )
        else:
            sentence.add(output)
        self.samples_written += len(output.waveform)
        if self.trace is not None:
            self.trace.write(self.index, sentence, output)
        if sentence.ended and not self.keep_tokens:
            sentence.forget_tokens()


def advance_sessions(
    sessions: Sequence[Session], chunks: int | None = None
) -> Iterator[tuple[int, list[Decision] | Exception]]:
    """:meth:`Session.advance` several sessions of one pipeline, all of which have been fed,
    computed together where the model can.

    Args:
        chunks: of each, at most so many; None: all that wait.

    Returns:
        Each one's index, with its decisions, or with the exception that it led to; as soon as they
        are there, in any order.
    """
    if not sessions:
        return
    states = [session.state for session in sessions]
    for index, result in sessions[0].pipeline.step_states(states, chunks):
        if not isinstance(result, Exception):
            decisions, following = result
            sessions[index]._went_on(states[index], following)
            for decision in decisions:
                sessions[index]._record(decision)
            yield index, decisions
        else:
            yield index, result
