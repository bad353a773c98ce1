"""Boundaries depend on what was emitted at which frame, not on how frames arrive."""

import random

import pytest

from echostream.config import EndpointConfig
from echostream.translator.endpoint import EndpointFinder, EndpointState, FrameTokens


def run(finder, frames, tokens, ends=(), cuts=()):
    """Boundaries of a stream whose tokens and ends stand at given frames, pushed in pieces."""
    found, state = [], finder.init_state()
    for start, stop in zip((0, *cuts), (*cuts, frames), strict=True):
        inside = [(f - start, f in ends) for f in sorted([*tokens, *ends]) if start <= f < stop]
        heard = FrameTokens(stop - start, [f for f, _ in inside], [e for _, e in inside])
        boundaries, state = finder.step(heard, state)
        found += [start + boundary for boundary in boundaries]
    return found


def finder(method, **options):
    return EndpointFinder(EndpointConfig(method, **options))


def test_off_finds_nothing():
    assert run(finder("off"), 5000, [1, 2, 3, 900], [950, 2000]) == []


def test_a_learned_end_is_the_boundary():
    assert run(finder("learned"), 100, [10, 20, 60], [25, 70]) == [26, 71]


def test_an_end_without_words_is_no_sentence():
    assert run(finder("learned"), 100, [40], [5, 30, 50, 55]) == [51]


def test_pauses_end_sentences_of_weights_that_never_learned():
    pause = finder("pause", endpoint_ms=320, min_tokens=2)
    assert run(pause, 100, [10, 20, 60, 65]) == [20 + 8 + 1, 65 + 8 + 1]
    # A single token is too little to believe in.
    assert run(pause, 100, [10, 60, 65]) == [65 + 8 + 1]
    # The symbol is a token like others to weights that never learned it.
    assert run(pause, 60, [10], [12]) == [12 + 8 + 1]


def test_a_long_pause_ends_a_sentence_whose_end_was_missed():
    learned = finder("learned", endpoint_ms=800, min_tokens=2)
    assert run(learned, 100, [10, 12, 60, 62], [64]) == [12 + 20 + 1, 65]


def test_endless_speech_is_cut_at_the_longest_pause_that_comes():
    config = {"endpoint_ms": 400, "max_sentence_ms": 4000}  # pause of 10, sentence of 100 frames
    every_two = list(range(0, 400, 2))
    cuts = run(finder("learned", **config), 400, every_two)
    assert len(cuts) >= 3
    assert all(b - a <= 125 + 2 for a, b in zip([0, *cuts], cuts, strict=False))
    # With a pause of 6 frames on the way, that is where it is cut.
    with_pause = [f for f in every_two if not 110 <= f < 116]
    assert run(finder("learned", **config), 130, with_pause)[0] in range(112, 116)


def test_speech_at_every_frame_is_cut_all_the_same():
    cuts = run(finder("pause", endpoint_ms=400, max_sentence_ms=4000), 1000, list(range(1000)))
    assert cuts == list(range(126, 1000, 126))


@pytest.mark.parametrize("method", ["learned", "pause"])
@pytest.mark.parametrize("seed", range(5))
def test_any_cut_finds_the_same_boundaries(method, seed):
    rng = random.Random(seed)
    tokens = sorted(rng.sample(range(600), 80))
    ends = sorted(rng.sample([f for f in range(600) if f not in tokens], 8))
    find = finder(method, endpoint_ms=480, max_sentence_ms=5000)
    whole = run(find, 600, tokens, ends)
    assert whole
    for _ in range(10):
        cuts = sorted(rng.sample(range(1, 600), rng.randint(1, 60)))
        assert run(find, 600, tokens, ends, cuts) == whole


def test_two_boundaries_in_one_chunk():
    heard = FrameTokens(8, [0, 2, 4, 6], [False, True, False, True])
    boundaries, state = finder("learned").step(heard, EndpointState(tokens=3, first=20))
    assert boundaries == [3, 7] and state == EndpointState(silent=1)


@pytest.mark.parametrize("name", ["endpoint_ms", "min_tokens", "max_sentence_ms"])
def test_impossible_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be >= 1"):
        EndpointConfig(**{name: 0})
