"""When to read, to write, to end a sentence and to hurry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from echostream.config.checks import require
from echostream.config.loading import MAY_BE_MISSING


@dataclass(frozen=True)
class PolicyConfig:
    """When to READ and when to WRITE; names follow StreamSpeech's flags.

    ``whole_word`` ``None`` switches whole-word mode on from 640 ms chunks, as the original does.
    ``segment_size`` is wait-k's unit of source, in ms. ``max_len`` bounds what one decision may
    write, a guard against endless repetition at the end of the source.
    """

    name: Literal["ctc", "wait_k"] = "ctc"
    lagging_k1: int = 0
    stride_n: int = 1
    segment_size: int = 320
    whole_word: bool | None = None
    max_len: int = 200

    def __post_init__(self) -> None:
        require(self.lagging_k1 >= 0, f"policy: lagging_k1 must be >= 0, got {self.lagging_k1}")
        require(self.stride_n >= 1, f"policy: stride_n must be >= 1, got {self.stride_n}")
        require(
            self.segment_size >= 1, f"policy: segment_size must be >= 1, got {self.segment_size}"
        )
        require(self.max_len >= 1, f"policy: max_len must be >= 1, got {self.max_len}")


@dataclass(frozen=True)
class EndpointConfig:
    """Where sentences end inside a stream.

    ``off`` takes every stream for one sentence, as StreamSpeech does. ``learned`` needs weights
    whose recognition head emits end-of-sentence; ``pause`` works with any: no source token for
    ``endpoint_ms`` after at least ``min_tokens`` of them. With ``learned`` such a pause ends a
    sentence too, so give it a long one. ``max_sentence_ms`` bounds a sentence that finds no end.
    ``text_end_tokens`` above 0, with ``learned`` and an encoder that goes on: a sentence that the
    text decoder has ended, while at least so many source tokens were heard behind the frame where
    the recognition head found its end likeliest (a log probability of at least
    ``text_end_score``), ends there too.
    """

    method: Literal["off", "learned", "pause"] = "off"
    endpoint_ms: int = 640
    min_tokens: int = 3
    max_sentence_ms: int = 20_000
    text_end_tokens: int = field(default=0, metadata=MAY_BE_MISSING)
    text_end_score: float = field(default=-7.0, metadata=MAY_BE_MISSING)

    def __post_init__(self) -> None:
        for name in ("endpoint_ms", "min_tokens", "max_sentence_ms"):
            value = getattr(self, name)
            require(value >= 1, f"endpoint: {name} must be >= 1, got {value}")
        require(
            self.text_end_tokens >= 0,
            f"endpoint: text_end_tokens must be >= 0, got {self.text_end_tokens}",
        )
        require(
            self.text_end_score <= 0,
            f"endpoint: text_end_score must be <= 0, got {self.text_end_score}",
        )


@dataclass(frozen=True)
class BacklogConfig:
    """How far speech may fall behind: beyond ``max_ms`` of it waiting to be played (0: no limit),
    it is spoken faster, at most ``max_speed`` times."""

    max_ms: int = 0
    max_speed: float = 1.4

    def __post_init__(self) -> None:
        require(self.max_ms >= 0, f"backlog: max_ms must be >= 0, got {self.max_ms}")
        require(
            1 <= self.max_speed <= 3,
            f"backlog: max_speed must be between 1 and 3, got {self.max_speed}",
        )


@dataclass(frozen=True)
class SpeechConfig:
    """How translated text becomes pieces of speech.

    With ``whole_words``, text states of a word that may go on wait until it is finished, while its
    text is written; so no silence falls into a word. With ``fill_chunks`` above 0, a piece that
    would end before so many chunks have passed is spoken slower, at ``min_speed`` at the slowest.
    Speech of less than ``min_piece_ms`` waits for more, unless other speech is being played or the
    sentence ends.
    """

    whole_words: bool = False
    fill_chunks: float = 0.0
    min_speed: float = 0.75
    min_piece_ms: int = 0

    def __post_init__(self) -> None:
        require(self.fill_chunks >= 0, f"speech: fill_chunks must be >= 0, got {self.fill_chunks}")
        require(
            0.5 <= self.min_speed <= 1,
            f"speech: min_speed must be between 0.5 and 1, got {self.min_speed}",
        )
        require(
            self.min_piece_ms >= 0, f"speech: min_piece_ms must be >= 0, got {self.min_piece_ms}"
        )
