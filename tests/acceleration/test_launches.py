"""What the driver starts for a chunk does not depend on how many streams it computes: on an
accelerator starting kernels is what costs. Counted with the profiler on the CPU."""

from __future__ import annotations

from collections import Counter

import pytest
from torch.profiler import ProfilerActivity, profile

from echostream.bench.crowd import speech
from echostream.bench.systems import RATE, Rates, forced_pipeline, load_system
from echostream.session import Session, advance_sessions

# Operators that compute.
ARITHMETIC = (
    "mm addmm bmm baddbmm convolution _scaled_dot_product_flash_attention_for_cpu softmax "
    "_softmax native_layer_norm embedding gelu silu glu argmax"
).split()
# What looks at a tensor and starts nothing.
VIEWS = (
    "view _unsafe_view slice select unsqueeze squeeze transpose t permute expand as_strided unbind "
    "split split_with_sizes chunk narrow detach alias reshape flatten unflatten unfold lift_fresh "
    "detach_ empty empty_strided empty_like new_empty resolve_conj resolve_neg item "
    "_local_scalar_dense is_nonzero result_type real view_as size numel"
).split()
CHUNK = 5120


@pytest.fixture(scope="module")
def pipeline():
    return forced_pipeline("tiny", load_system("tiny"), Rates(3.125, 25.0), chunk_ms=320)


def operators(pipeline, streams: int, rounds: int = 6) -> Counter:
    """What one chunk of so many streams under way starts, by operator."""
    sessions = [Session(pipeline) for _ in range(streams)]
    clip = speech(rounds * 0.32)
    for number in range(rounds):
        for session in sessions:
            session.feed(clip[number * CHUNK : (number + 1) * CHUNK], RATE)
        if number < rounds - 1:
            assert not [r for _, r in advance_sessions(sessions) if isinstance(r, Exception)]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        results = dict(advance_sessions(sessions))
    assert all(decision.units for decisions in results.values() for decision in decisions)
    found = Counter()
    for event in profiler.events():
        library, _, name = event.name.partition("::")
        if library == "aten" and name not in VIEWS:
            found[name] += 1
    return found


def test_arithmetic_is_started_once_for_all_streams(pipeline):
    """But for what every stream does by itself: its filterbank, which is the host's; the text
    decoder's reading, which appends to a memory of any length; and looking up its units."""
    found = {streams: operators(pipeline, streams) for streams in (1, 4, 16)}
    more = {
        name: (found[16][name] - found[4][name]) / 12
        for name in ARITHMETIC
        if found[16][name] != found[4][name]
    }
    layers = pipeline.system.config.mt.layers
    assert more == {"mm": 1, "addmm": 2 * layers, "embedding": 1}
    counts = {streams: sum(own[name] for name in ARITHMETIC) for streams, own in found.items()}
    per_row = sum(more.values())
    assert counts[1] - per_row > 100
    # Several streams start what one starts.
    assert counts[4] - 4 * per_row == counts[1] - per_row
    # The rest is copying: rows put together and taken apart again.
    everything = {streams: sum(own.values()) for streams, own in found.items()}
    assert (everything[16] - everything[4]) / 12 < 0.2 * everything[1]
