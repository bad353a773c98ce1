"""When to read, to write, to end a sentence and to hurry.

These are the settings that a run may change without other weights. Every field is a flag of all
commands and agents, and a key of their YAML files (:mod:`echostream.config.flags`): to add one, add
a field.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from echostream.config.checks import require
from echostream.config.fields import check_ranges, setting


@dataclass(frozen=True)
class PolicyConfig:
    """When to READ and when to WRITE; names follow StreamSpeech's flags.

    ``whole_word`` ``None`` switches whole-word mode on from 640 ms chunks, as the original does.
    ``segment_size`` is wait-k's unit of source, in ms. ``max_len`` bounds what one decision may
    write, a guard against endless repetition at the end of the source. ``attention_frames`` and
    ``attention_layer`` are AlignAtt's: a subword waits that attends most to one of so many newest
    encoder frames, in that layer of the text decoder (counted from 0; -1: its alignment heads, or
    all layers averaged).
    """

    name: Literal["ctc", "wait_k", "wait_k_ctc", "local_agreement", "alignatt"] = setting(
        "ctc", "READ/WRITE rule", flag="policy"
    )
    lagging_k1: int = setting(
        0, "subwords that writing lags behind ST CTC (wait_k_ctc: behind ASR CTC)", at_least=0
    )
    stride_n: int = setting(1, "subwords written at a time", at_least=1)
    segment_size: int = setting(320, "source segment of wait_k", unit="ms", at_least=1)
    whole_word: bool | None = setting(
        None, "hold back unfinished words (auto: from chunks of 640 ms on)"
    )
    target_per_source: float = setting(
        1.0,
        "subwords that wait_k_ctc writes for each source subword; local_agreement writes twice "
        "as many at most",
        at_least=0.01,
        may_be_missing=True,
    )
    max_len: int = setting(200, "most subwords that one decision writes", at_least=1)
    attention_frames: int = setting(
        20,
        "newest encoder frames, of 40 ms, that no subword of alignatt may attend to most",
        at_least=1,
        may_be_missing=True,
    )
    attention_layer: int = setting(
        -1,
        "layer of the text decoder that alignatt looks at, from 0 (-1: its alignment heads, or all "
        "layers averaged)",
        at_least=-1,
        may_be_missing=True,
    )
    transcript: Literal["decoder", "head"] = setting(
        "decoder",
        "what writes the transcript: the text decoder, where it can, or the recognition head, "
        "which costs less and hears less",
        may_be_missing=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self, "policy")


@dataclass(frozen=True)
class EndpointConfig:
    """Where sentences end inside a stream.

    ``off`` takes every stream for one sentence, as StreamSpeech does. ``learned`` needs weights
    whose recognition head emits end-of-sentence; ``pause`` works with any: no source token for
    ``endpoint_ms`` after at least ``min_tokens`` of them. With ``learned`` such a pause ends a
    sentence too, so give it a long one. ``max_sentence_ms`` bounds a sentence that finds no end.
    ``text_end_tokens`` above 0, with ``learned`` and an encoder that goes on: a sentence that the
    text decoder has ended, while at least so many source tokens came behind the frame where
    the recognition head found its end likeliest (a log probability of at least
    ``text_end_score``), ends there too.
    """

    method: Literal["off", "learned", "pause"] = setting(
        "off",
        "where sentences end inside a stream: nowhere, where the weights say so, or after a pause",
        flag="endpoint",
    )
    endpoint_ms: int = setting(
        640, "time without a source token that ends a sentence", unit="ms", at_least=1
    )
    min_tokens: int = setting(
        3, "source tokens before a pause can end a sentence", flag="endpoint-min-tokens", at_least=1
    )
    max_sentence_ms: int = setting(
        20_000, "longest sentence, beyond which the next best pause ends it", unit="ms", at_least=1
    )
    text_end_tokens: int = setting(
        0,
        "source tokens behind a complete translation that end its sentence (0: never)",
        at_least=0,
        may_be_missing=True,
    )
    text_end_score: float = setting(
        -7.0,
        "log probability of a sentence's end from which a complete translation ends it",
        at_most=0,
        may_be_missing=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self, "endpoint")


@dataclass(frozen=True)
class BacklogConfig:
    """How far speech may fall behind. While more than ``max_ms`` of it waits to be played (0: no
    limit), it is spoken faster, at most ``max_speed`` times."""

    max_ms: int = setting(
        0,
        "speak faster while more than this waits to be played (0: never)",
        flag="max-backlog-ms",
        unit="ms",
        at_least=0,
    )
    max_speed: float = setting(1.4, "fastest speed for --max-backlog-ms", at_least=1, at_most=3)

    def __post_init__(self) -> None:
        check_ranges(self, "backlog")


@dataclass(frozen=True)
class SpeechConfig:
    """How translated text becomes segments of speech.

    With ``whole_words``, text states of a word that may go on wait until it is finished, while its
    text is written. So no silence falls into a word. With ``fill_chunks`` above 0, a segment that
    would end before so many chunks have passed is spoken slower, at ``min_speed`` at the slowest.
    Speech of less than ``min_piece_ms`` waits for more, unless other speech is being played or the
    sentence ends.

    ``voice`` says who speaks: ``None`` the model's unit decoder and vocoder; ``shipped`` the voice
    that comes with the package (English), ``own`` the one in the model directory's ``voice/``, and
    anything else is the folder of one (:mod:`echostream.voice.folder`). A voice waits for
    ``voice_words`` words, or the sentence's end. It may see up to ``voice_ahead`` subwords that the
    text decoder would write next, to say what comes before them as it is said inside a sentence.
    """

    whole_words: bool = setting(
        False,
        "speak a word when it is finished, while its text is written as ever",
        flag="speak-whole-words",
    )
    fill_chunks: float = setting(
        0.0,
        "speak a segment slower if it would end before so many chunks have passed (0: never)",
        at_least=0,
    )
    min_speed: float = setting(0.75, "slowest speed for --fill-chunks", at_least=0.5, at_most=1)
    min_piece_ms: int = setting(
        0,
        "speech shorter than that waits for more, unless other speech is being played or the "
        "sentence ends (0: none waits)",
        unit="ms",
        at_least=0,
    )
    voice: str | None = setting(
        None,
        "who speaks: the model's unit decoder (none), the package's voice (shipped), that of the "
        "model directory (own), or the folder of a voice",
        unit="dir",
        may_be_missing=True,
    )
    voice_words: int = setting(2, "words that a voice waits for", at_least=1, may_be_missing=True)
    voice_ahead: int = setting(
        0,
        "guessed subwords, not written yet, that a voice sees (0: none)",
        at_least=0,
        may_be_missing=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self, "speech")
        require(self.voice != "", "speech: voice must be null or name a voice, got ''")


@dataclass(frozen=True)
class Settings:
    """All that a run may change without other weights, section by section; the same names as in
    :class:`~echostream.config.model_config.EchoStreamConfig`."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    backlog: BacklogConfig = field(default_factory=BacklogConfig)
    speech: SpeechConfig = field(default_factory=SpeechConfig)

    @classmethod
    def of(cls, config: Any) -> Settings:
        """Those of a whole configuration."""
        return cls(**{f.name: getattr(config, f.name) for f in dataclasses.fields(cls)})

    def sections(self) -> dict[str, Any]:
        """Sections by name: keyword arguments of a pipeline, or of ``dataclasses.replace`` on a
        whole configuration."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
