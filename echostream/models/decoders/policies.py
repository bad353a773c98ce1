"""All policies by the names that configuration gives them."""

from __future__ import annotations

from echostream.models.decoders.alignatt_policy import AlignAttPolicy
from echostream.models.decoders.ctc_decoder_policy import (
    CountingPolicy,
    Policy,
    decide_ctc,
    decide_local_agreement,
    decide_wait_k,
    decide_wait_k_ctc,
)

POLICIES: dict[str, Policy] = {
    "ctc": CountingPolicy(decide_ctc),
    "wait_k": CountingPolicy(decide_wait_k),
    "wait_k_ctc": CountingPolicy(decide_wait_k_ctc, counts_translation=False),
    "local_agreement": CountingPolicy(decide_local_agreement, counts_translation=False),
    "alignatt": AlignAttPolicy(),
}
