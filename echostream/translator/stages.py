"""The driver: what several streams ask of a model is computed together.

A stream's way through a chunk is written once, as a generator: it does what is its own (endpoints,
policy, words) in Python, and yields a :class:`Request` wherever the model has to compute. The
driver advances all streams to their next request, computes the requests of the earliest stage, in
groups of rows that can share a step, and hands each stream its answer. So streams that are at the
same stage always compute together, however differently they got there, and a single stream takes
the same way in groups of one.

Shapes: B rows, T filterbank frames, N text states.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from echostream.models.encoder import StreamFeatures

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from echostream.models.decoders.hypothesis import Stands
    from echostream.models.decoders.mt_state import MTState
    from echostream.models.echostream_model import EchoStreamModel, ListeningState, SpeechState
    from echostream.models.encoder import Features
    from echostream.voice.streaming_voice import Phrase, StreamingVoice, VoiceState

logger = logging.getLogger(__name__)

Clock = Callable[[], float]


class Stopwatch:
    """Milliseconds per named stage; waits for an accelerator so that its work is counted.

    Args:
        device: where the work is done; None: on the CPU, and without torch.
        clock: in seconds.
    """

    def __init__(self, device: torch.device | None, clock: Clock = time.perf_counter) -> None:
        self.device, self.clock = device, clock
        self.ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = self.clock()
        yield
        if self.device is not None and self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)
        self.ms[stage] = self.ms.get(stage, 0.0) + 1000 * (self.clock() - start)


@dataclass(frozen=True)
class Request:
    """What a stream asks of the model.

    Attributes:
        stage: index into the stages of :class:`Stages`, in the order in which a chunk meets them.
        group: requests of a stage with equal groups are computed together; None: this one alone.
        arguments: of the stage's function.
        watch: gets this stream's share of the time.
    """

    stage: int
    group: Hashable
    arguments: tuple[Any, ...]
    watch: Stopwatch


@dataclass(frozen=True)
class Together:
    """Requests of one stream that do not need each other's answers; they come as a list."""

    requests: tuple[Request, ...]


def ask(*requests: Request | None) -> Generator[Any, Any, list[Any]]:
    """Yield those requests that there are, together; their answers, None where there is none."""
    asked = tuple(request for request in requests if request is not None)
    answers = iter((yield Together(asked)) if asked else ())
    return [None if request is None else next(answers) for request in requests]


# The last two are a voice's, in place of the two before them.
LISTEN, TRANSLATE, SPEAK, VOCODE, PRONOUNCE, SOUND = range(6)

# A stream under way: yields requests and, between them, whatever it has for its owner.
Steps = Generator[Any, Any, Any]


@dataclass
class Stages:
    """What streams can ask for. Subclasses compute it: for each kind of request a function that
    answers all rows of a group.

    Args:
        model: the weights.
        clock: what stages are timed with.
        transcribe_only: run the ASR head alone; nobody asks what the ST head emits.
        beam: of the text decoder.
        dur_prediction: let the vocoder predict how long units last.
        attention_layer: of the text decoder, whose cross-attention subwords are judged by (-1: all
            layers averaged); None: by none.
        voice: speaks instead of the model's unit decoder and vocoder; None: they do.
    """

    model: EchoStreamModel | Any
    clock: Clock = field(default=time.perf_counter)
    transcribe_only: bool = False
    beam: int = 1
    dur_prediction: bool = True
    attention_layer: int | None = None
    voice: StreamingVoice | None = None

    @property
    def device(self) -> torch.device | None:
        """Where the work is done; None: on the CPU, and without torch."""
        return None

    def place(self, features: Features) -> Features:
        """Features as the model takes them."""
        return features

    def inference(self) -> AbstractContextManager[Any]:
        """What streams are advanced in."""
        return nullcontext()

    def watch(self) -> Stopwatch:
        """A stopwatch for a decision."""
        return Stopwatch(self.device, self.clock)

    def listen(
        self, features: Features, state: ListeningState, final: bool, watch: Stopwatch
    ) -> Request:
        """(1, T, bins) new features, to be answered by ``(frames (1, S, D), CTCOutput, state)``."""
        # Features with provisional ones come one stream at a time.
        group = None
        if self.model.encoder.joins_rows and not isinstance(features, StreamFeatures):
            group = _size(features.shape[1])
        return Request(LISTEN, group, (features, state, final), watch)

    def translate(
        self,
        state: MTState,
        limit: int,
        final: bool,
        tail: Tensor | None,
        watch: Stopwatch,
        stands: Stands | None = None,
        guess: Sequence[int] = (),
        least: int = 0,
    ) -> Request:
        """At most ``limit`` subwords and at ``least`` so many, as far as they ``stand``, to be
        answered by a :class:`~echostream.models.decoders.hypothesis.Hypothesis`; a right ``guess``
        saves time."""
        group = None if tail is not None and tail.shape[1] else final
        return Request(TRANSLATE, group, (state, limit, final, tail, stands, guess, least), watch)

    def speak(self, hidden: Tensor, state: SpeechState, watch: Stopwatch) -> Request:
        """(1, N, D) text states, to be answered by ``(units, state)``."""
        return Request(SPEAK, _size(hidden.shape[1]), (hidden, state), watch)

    def vocode(
        self, units: list[int], state: SpeechState, speed: float, watch: Stopwatch
    ) -> Request:
        """Units, at least one, to be answered by ``(samples (T,), state)``."""
        return Request(VOCODE, _size(len(units)), (units, state, speed), watch)

    def pronounce(self, phrase: Phrase, watch: Stopwatch) -> Request:
        """A phrase, to be answered by its :class:`~echostream.models.decoders.phone_prosody.
        Prosody`."""
        return Request(PRONOUNCE, _size(len(phrase)), (phrase,), watch)

    def sound(self, units: list[int], state: VoiceState, final: bool, watch: Stopwatch) -> Request:
        """A voice's units, also none, to be answered by ``(samples (T,), state)``; ``final`` gives
        out what is held back."""
        return Request(SOUND, _size(len(units)), (units, state, final), watch)

    def run(self, stage: int, rows: Sequence[tuple[Any, ...]], watch: Stopwatch) -> list[Any]:
        """Answer requests of one group."""
        functions = (
            self._listen,
            self._translate,
            self._speak,
            self._vocode,
            self._pronounce,
            self._sound,
        )
        return functions[stage](*zip(*rows, strict=True), watch)

    def _listen(self, *columns: Any) -> list[Any]:
        """Arguments of :meth:`listen`, a sequence of each, and a stopwatch."""
        raise NotImplementedError

    def _translate(self, *columns: Any) -> list[Any]:
        raise NotImplementedError

    def _speak(self, *columns: Any) -> list[Any]:
        raise NotImplementedError

    def _vocode(self, *columns: Any) -> list[Any]:
        raise NotImplementedError

    def _pronounce(self, *columns: Any) -> list[Any]:
        raise NotImplementedError

    def _sound(self, *columns: Any) -> list[Any]:
        raise NotImplementedError


def drive(stages: Stages, streams: Sequence[Steps]) -> Iterator[tuple[int, Any]]:
    """Run streams to their ends.

    Returns:
        Index and item of everything that a stream yields beside its requests, as soon as it is
        there, streams in any order; an exception that it raises is its last item.
    """
    waiting: dict[tuple[int, int], Request] = {}  # by stream, and number of its requests
    answered: dict[int, dict[int, Any]] = {}
    single: dict[int, bool] = {}

    def advance(index: int, move: Callable[[], Any]) -> Iterator[tuple[int, Any]]:
        """Take one stream to its next request."""
        try:
            with stages.inference():
                item = move()
            while not isinstance(item, (Request, Together)):
                yield index, item
                with stages.inference():
                    item = next(streams[index])
            single[index], answered[index] = isinstance(item, Request), {}
            requests = (item,) if isinstance(item, Request) else item.requests
            waiting.update(((index, place), request) for place, request in enumerate(requests))
        except StopIteration:
            return
        except Exception as problem:  # noqa: BLE001  (handed to the stream's owner)
            yield index, problem

    def answer_all(index: int) -> Iterator[tuple[int, Any]]:
        """Go on with a stream all of whose requests are answered."""
        answers = [answer for _, answer in sorted(answered.pop(index).items())]
        problem = next((one for one in answers if isinstance(one, Exception)), None)
        stream = streams[index]
        if problem is not None:
            return advance(index, functools.partial(stream.throw, problem))
        return advance(
            index, functools.partial(stream.send, answers[0] if single[index] else answers)
        )

    for index, stream in enumerate(streams):
        yield from advance(index, stream.__next__)
    while waiting:
        # The earliest stage first: the streams that are ahead wait for those behind.
        stage = min(request.stage for request in waiting.values())
        groups: dict[Hashable, list[tuple[int, int]]] = {}
        for place, request in waiting.items():
            if request.stage == stage:
                key = (place,) if request.group is None else request.group
                groups.setdefault(key, []).append(place)
        for places in groups.values():
            requests = [waiting.pop(place) for place in places]
            for (index, number), answer in zip(places, _answers(stages, requests), strict=True):
                answered[index][number] = answer
            for index in dict.fromkeys(index for index, _ in places):
                if not any(other == index for other, _ in waiting):
                    yield from answer_all(index)


def _answers(stages: Stages, requests: Sequence[Request]) -> list[Any]:
    """What each of a group's requests asked for, or the exception that it led to."""
    rows = [request.arguments for request in requests]
    shared = stages.watch()
    try:
        with stages.inference():
            answers = stages.run(requests[0].stage, rows, shared)
    except Exception as problem:  # noqa: BLE001  (handed to the stream's owner)
        if len(requests) == 1:
            return [problem]
        # One of them is to blame: each is computed alone, and that one fails alone.
        logger.exception("%d streams could not compute together", len(requests))
        return [_answers(stages, [request])[0] for request in requests]
    for request in requests:
        for name, ms in shared.ms.items():
            request.watch.ms[name] = request.watch.ms.get(name, 0.0) + ms / len(requests)
    return answers


def _size(length: int) -> int:
    """Lengths with the same size are padded to the longest: it is at most half as long again."""
    step = max(length.bit_length() - 2, 0)
    return (length >> step) + (step << 8)
