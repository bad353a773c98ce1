"""READ or WRITE: what a policy is, and those that decide from counts alone.

StreamSpeech (section 3.2): write when both the source transcript (ASR CTC) and the first-pass
translation (ST CTC) have grown, and write as many subwords as the ST CTC's count allows. The
decision is a pure function, testable without a model. Wait-k-stride-n stands behind the same
interface as the classic baseline. A policy that wants to see more than counts judges every subword
that the text decoder would write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from echostream.config import PolicyConfig

WHOLE_WORD_FROM_MS = 640


@dataclass(frozen=True)
class Counts:
    """What a decision is based on.

    Attributes:
        asr: tokens that the ASR CTC emitted so far.
        st: tokens that the ST CTC emitted so far.
        written: target subwords written so far.
        source_ms: source received.
        source_finished: no more source will come.
    """

    asr: int
    st: int
    written: int
    source_ms: float
    source_finished: bool


@dataclass(frozen=True)
class PolicyState:
    """Counts at the last time the policy let a write through."""

    asr: int = 0
    st: int = 0
    segments: int = 0


@dataclass(frozen=True)
class PolicyAction:
    """What to do now.

    Attributes:
        max_new_tokens: 0 is READ; otherwise decode at most this many subwords.
        until_eos: the source has ended: decode to end-of-sentence and flush everything.
        drop_last_word: the last word may be unfinished, do not write it.
        expected: the source calls for more text; so if the text decoder would rather end, it
            takes the sentence for complete.
        agreed: of what is decoded, only that is written which was decoded last time too.
    """

    max_new_tokens: int = 0
    until_eos: bool = False
    drop_last_word: bool = False
    expected: bool = True
    agreed: bool = False

    @property
    def write(self) -> bool:
        return self.max_new_tokens > 0


READ = PolicyAction()

Evidence = Literal["attention", "posteriors", "hypothesis"]


@dataclass(frozen=True)
class Draft:
    """A subword that the text decoder would write, and what it may be judged by; only what the
    policy asks for is there.

    Attributes:
        counts: what the decision to decode was based on.
        tokens: the new subwords of this decision; the last one is judged, the others stand.
        attention: weights that the decoder gave to the source frames it saw when it chose the
            subword, oldest first, heads averaged; they add up to 1.
        posteriors: log probabilities (S, V) of the ASR and the ST CTC head at the S encoder frames
            that are new in this decision; None where there are none.
        hypothesis: subwords of the sentence that were written before this decision.
    """

    counts: Counts
    tokens: tuple[int, ...]
    attention: Sequence[float] | None = None
    posteriors: tuple[Any, Any] | None = None
    hypothesis: tuple[int, ...] | None = None


class Policy(Protocol):
    """A rule of when to READ and when to WRITE; it holds no state.

    Attributes:
        evidence: what :meth:`stands` wants to see. Where it is empty, ``stands`` is never asked,
            and nothing is computed for it.
        counts_translation: whether it looks at what the ST CTC head emits. Where nobody does, the
            head does not run, and ``Counts.st`` is 0.
    """

    @property
    def evidence(self) -> frozenset[Evidence]: ...

    @property
    def counts_translation(self) -> bool: ...

    def decide(
        self, counts: Counts, state: PolicyState, config: PolicyConfig, whole_word: bool
    ) -> tuple[PolicyAction, PolicyState]:
        """Whether to decode, and how much; ``whole_word`` says that unfinished words wait."""
        ...

    def stands(self, draft: Draft, config: PolicyConfig) -> bool:
        """Whether the draft's last subword may be written. Decoding stops before the first one that
        may not. Not asked once the source has ended: then everything is written."""
        ...


@dataclass(frozen=True)
class CountingPolicy:
    """A policy that decides from counts alone, by a function."""

    rule: Callable[[Counts, PolicyState, PolicyConfig, bool], tuple[PolicyAction, PolicyState]]
    evidence: frozenset[Evidence] = frozenset()
    counts_translation: bool = True

    def decide(
        self, counts: Counts, state: PolicyState, config: PolicyConfig, whole_word: bool
    ) -> tuple[PolicyAction, PolicyState]:
        return self.rule(counts, state, config, whole_word)

    def stands(self, draft: Draft, config: PolicyConfig) -> bool:
        return True


def whole_word_mode(config: PolicyConfig, chunk_ms: float) -> bool:
    """Whether unfinished words are held back: as configured, else from 640 ms chunks on."""
    return chunk_ms >= WHOLE_WORD_FROM_MS if config.whole_word is None else config.whole_word


def _allowance(
    allowed: int, counts: Counts, whole_word: bool, config: PolicyConfig
) -> PolicyAction:
    # In whole-word mode one subword more is decoded, because the last word is dropped again.
    new = allowed + whole_word - counts.written
    return PolicyAction(min(max(new, 0), config.max_len), drop_last_word=whole_word)


def decide_ctc(
    counts: Counts, state: PolicyState, config: PolicyConfig, whole_word: bool
) -> tuple[PolicyAction, PolicyState]:
    """StreamSpeech's rule."""
    if counts.source_finished:
        return PolicyAction(config.max_len, until_eos=True), state
    stride = config.stride_n
    if counts.asr < state.asr + stride or counts.st < state.st + stride:
        return READ, state
    following = PolicyState(max(counts.asr, state.asr), max(counts.st, state.st))
    allowed = (counts.st - config.lagging_k1) // stride * stride
    return _allowance(allowed, counts, whole_word, config), following


def decide_wait_k(
    counts: Counts, state: PolicyState, config: PolicyConfig, whole_word: bool
) -> tuple[PolicyAction, PolicyState]:
    """Wait-k-stride-n over source segments of fixed duration, in StreamSpeech's counting:
    ``(segments - k) // n * n`` subwords after that many segments. With n = 1 the first subword
    comes with segment k + 1, one later than in the textbook's counting."""
    if counts.source_finished:
        return PolicyAction(config.max_len, until_eos=True), state
    segments = int(counts.source_ms // config.segment_size)
    if segments <= state.segments:
        return READ, state
    following = PolicyState(segments=segments)
    allowed = (segments - config.lagging_k1) // config.stride_n * config.stride_n
    return _allowance(allowed, counts, whole_word, config), following


def decide_wait_k_ctc(
    counts: Counts, state: PolicyState, config: PolicyConfig, whole_word: bool
) -> tuple[PolicyAction, PolicyState]:
    """Wait-k over source subwords that ASR CTC has found, instead of source time (Zeng et al.,
    "RealTranS", Findings of ACL 2021, waits for words so): ``target_per_source`` subwords for each
    of them behind the first k. It needs no head that counts the translation, and pauses with the
    speaker."""
    if counts.source_finished:
        return PolicyAction(config.max_len, until_eos=True), state
    if counts.asr <= state.asr:
        return READ, state
    following = PolicyState(asr=counts.asr)
    allowed = int((counts.asr - config.lagging_k1) * config.target_per_source)
    allowed = allowed // config.stride_n * config.stride_n
    return _allowance(allowed, counts, whole_word, config), following


def decide_local_agreement(
    counts: Counts, state: PolicyState, config: PolicyConfig, whole_word: bool
) -> tuple[PolicyAction, PolicyState]:
    """Local agreement of two (Liu, Spanakis, Niehues, "Low-Latency Sequence-to-Sequence Speech
    Recognition and Translation by Partial Hypothesis Selection", Interspeech 2020): whenever ASR
    CTC has found more, the sentence is translated to its end as if no more would come, and the
    beginning that the translation before has too is written. Drafts and the last translation are
    bounded by twice as many subwords as the source calls for: a decoder that is lost goes on."""
    longest = int(2 * counts.asr * config.target_per_source) + config.stride_n
    new = min(max(longest - counts.written, 0), config.max_len)
    if counts.source_finished:
        return PolicyAction(new, until_eos=True), state
    if counts.asr <= state.asr:
        return READ, state
    action = PolicyAction(new, drop_last_word=whole_word, agreed=True)
    return action, PolicyState(asr=counts.asr)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two drafts begin with alike."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))


def complete_words(tokens: Sequence[int], starts_word: Callable[[int], bool]) -> int:
    """How many of the new tokens to keep so that the last, possibly unfinished, word is dropped:
    those before the last token that starts a word; none if no token starts one."""
    for index in range(len(tokens) - 1, -1, -1):
        if starts_word(tokens[index]):
            return index
    return 0
