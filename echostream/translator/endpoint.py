"""Where a sentence ends inside a stream, judged by what the recognition head emits.

Encoder and CTC heads run on without interruption; everything behind them lives sentence by
sentence. Two finders stand behind one interface. ``learned`` takes the end-of-sentence symbol that
the head was taught to emit: the frame of emission is the boundary. ``pause`` is for weights that
never learned it: no token for a while. Both cut a sentence that grows beyond a limit, at the
longest pause that comes. Frames are judged one by one, so that no boundary depends on how the
stream was cut into chunks, and the state is five numbers however long a sentence lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echostream.config import ENCODER_FRAME_MS, EndpointConfig

# Beyond the longest sentence, the pause that ends it shrinks to nothing within this share more.
OVERTIME = 0.25


@dataclass(frozen=True)
class EndpointState:
    """What the finder knows of the sentence under way.

    Attributes:
        tokens: source tokens in it.
        first: frames since its first token; -1 before it.
        silent: frames since its last token.
    """

    tokens: int = 0
    first: int = -1
    silent: int = 0


@dataclass(frozen=True)
class FrameTokens:
    """What the recognition head emitted, frame by frame.

    Attributes:
        frames: how many frames.
        positions: frame of each emitted token, ascending.
        ends: whether each token is the end-of-sentence symbol.
    """

    frames: int
    positions: Sequence[int]
    ends: Sequence[bool]


class EndpointFinder:
    """Finds boundaries as ``config`` says; ``off`` finds none."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self.pause_frames = max(config.endpoint_ms // ENCODER_FRAME_MS, 1)
        self.longest_frames = max(config.max_sentence_ms // ENCODER_FRAME_MS, 1)

    def init_state(self) -> EndpointState:
        return EndpointState()

    def step(self, tokens: FrameTokens, state: EndpointState) -> tuple[list[int], EndpointState]:
        """Judge new frames.

        Returns:
            The frames behind which a sentence ends, as counts of new frames (1 to ``frames``,
            ascending), and the new state.
        """
        boundaries: list[int] = []
        if self.config.method == "off":
            return boundaries, state
        emitted = dict.fromkeys(range(tokens.frames), 0)
        ended = set()
        for position, end in zip(tokens.positions, tokens.ends, strict=True):
            if end and self.config.method == "learned":
                ended.add(position)
            else:
                emitted[position] += 1
        for frame in range(tokens.frames):
            state = self._next(state, emitted[frame])
            # Without a token there is no sentence that could end.
            if state.tokens and (frame in ended or self._too_long_ago(state)):
                boundaries.append(frame + 1)
                state = EndpointState()
        return boundaries, state

    def nothing_for_long(self, state: EndpointState) -> bool:
        """Whether no token has come for as long as the longest sentence, and none before."""
        return not state.tokens and state.silent >= self.longest_frames

    @staticmethod
    def _next(state: EndpointState, tokens: int) -> EndpointState:
        first = state.first + 1 if state.tokens else (0 if tokens else -1)
        silent = 0 if tokens else state.silent + 1
        return EndpointState(state.tokens + tokens, first, silent)

    def _too_long_ago(self, state: EndpointState) -> bool:
        """Whether the pause since the last token ends the sentence."""
        over = state.first - self.longest_frames
        if over >= 0:
            left = 1 - over / (OVERTIME * self.longest_frames)
            return state.silent >= left * self.pause_frames
        return state.silent >= self.pause_frames and state.tokens >= self.config.min_tokens
