"""What a policy gets to see of the subwords that the text decoder would write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from echostream.config import MTDecoderConfig, PolicyConfig
from echostream.models.cache_limits import TRIM_SLACK
from echostream.models.ctc_output import CTCOutput
from echostream.models.decoders.ctc_decoder_policy import (
    Counts,
    Draft,
    Policy,
    common_prefix,
    complete_words,
)
from echostream.models.decoders.hypothesis import Hypothesis, Stands


def attention_layer(policy: Policy, config: PolicyConfig, decoder: MTDecoderConfig) -> int | None:
    """The layer of the text decoder whose attention a policy sees; None: it sees none.

    Raises:
        ValueError: the decoder has no such layer.
    """
    if "attention" not in policy.evidence:
        return None
    if config.attention_layer >= decoder.layers:
        raise ValueError(
            f"policy: attention_layer must be below the text decoder's {decoder.layers} layers, "
            f"got {config.attention_layer}"
        )
    return config.attention_layer


def judge(
    policy: Policy,
    config: PolicyConfig,
    counts: Counts,
    emitted: CTCOutput,
    hypothesis: tuple[int, ...],
    source_frames: int = 1,
) -> Stands | None:
    """The policy's judgement of new subwords, for the text decoder to ask; None: all stand.

    Args:
        counts: what the decision to decode was based on.
        emitted: what the CTC heads brought with it.
        hypothesis: what was written of the sentence, if the policy asks for it.
        source_frames: frames that the text decoder sees of each encoder frame; policies count the
            latter.
    """
    asks = policy.evidence
    if not asks:
        return None
    posteriors = None
    asr, st = emitted.asr_logits, emitted.st_logits
    if "posteriors" in asks and asr is not None and st is not None:
        posteriors = asr.float().log_softmax(dim=-1), st.float().log_softmax(dim=-1)
    before = hypothesis if "hypothesis" in asks else None

    def stands(tokens: tuple[int, ...], attention: Sequence[float] | None) -> bool:
        if attention is not None and source_frames > 1:
            starts = range(0, len(attention), source_frames)
            attention = [sum(attention[at : at + source_frames]) for at in starts]
        return policy.stands(Draft(counts, tokens, attention, posteriors, before), config)

    return stands


def agreed(hypothesis: Hypothesis, draft: tuple[int, ...], before: Any) -> Hypothesis:
    """What the draft before has too of what was decoded.

    Args:
        draft: what was decoded last time behind what is written.
        before: state of the text decoder that decoding began with.
    """
    tokens = hypothesis.tokens
    # More than the slack cannot be taken back.
    keep = max(common_prefix(tokens, draft), len(tokens) - TRIM_SLACK)
    if keep == len(tokens):
        return hypothesis
    return replace(hypothesis.keep(keep, before), refused=tokens[keep])


def whole_words(hypothesis: Hypothesis, starts_word: Callable[[int], bool]) -> int:
    """How many of the new tokens make up words that are known to be complete. A token that may not
    stand still says where the word before it ends."""
    refused = () if hypothesis.refused is None else (hypothesis.refused,)
    return complete_words((*hypothesis.tokens, *refused), starts_word)
