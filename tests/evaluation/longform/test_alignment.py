"""Words go to the sentences that OmniSTEval would put them to, also in very long talks."""

import random

import pytest

pytest.importorskip("omnisteval")

from omnisteval import alignment, resegment  # noqa: E402

from echostream.evaluation.longform import alignment as ours  # noqa: E402

VOCABULARY = "the a red dog cat . , ! on no eht hte see sees seen Dog çá".split()


def words(rng, most):
    return [alignment.Word(rng.choice(VOCABULARY)) for _ in range(rng.randrange(most))]


@pytest.mark.parametrize("seed", range(40))
def test_the_table_has_the_same_path(seed):
    """Ties too: few letters and repeated words make many."""
    rng = random.Random(seed)
    reference, hypothesis = words(rng, 25), words(rng, 25)
    expected = alignment.align_sequences(reference, hypothesis, False)
    found = ours.align_sequences(reference, hypothesis)
    for theirs, mine in zip(expected, found, strict=True):
        assert [id(word) for word in theirs] == [id(word) for word in mine]


@pytest.mark.parametrize("seed", range(3))
def test_sentences_get_what_omnisteval_gives_them(seed):
    rng = random.Random(seed)
    talks, out = {}, {}
    references, hypotheses, segmentation, targets = [], [], [], []
    for talk in ("one", "two"):
        sentences = [
            ours.SpokenSentence(
                talk, 1000.0 * i, 1000.0 * i + 900, "x", " ".join(w.text for w in words(rng, 8))
            )
            for i in range(12)
        ]
        said = [ours.TimedWord(w.text, 100.0 * i, 100.0 * i + 7) for i, w in
                enumerate(words(rng, 90))]  # fmt: skip
        talks[talk], out[talk] = sentences, said
        end = max(10900 + 1000, said[-1].elapsed_ms) + 1
        spoken = []
        for sentence in sentences:
            spoken += [alignment.Word(w, seq_id=len(targets)) for w in sentence.target.split()]
            targets.append(sentence.target)
            segmentation.append(
                {
                    "offset": sentence.start_ms,
                    "duration": 900.0,
                    "time_to_recording_end": end - sentence.start_ms,
                }
            )
        references.append(spoken)
        hypotheses.append(
            [alignment.Word(w.text, emission_cu=w.time_ms, emission_ca=w.elapsed_ms) for w in said]
        )
    expected, _ = resegment(references, hypotheses, segmentation, targets)
    found = ours.resegment(talks, out)
    assert len(found) == 24
    for theirs, mine in zip(expected, found, strict=True):
        assert mine.prediction == theirs.prediction and mine.reference == theirs.reference
        assert mine.source_length == theirs.source_length
        assert mine.emission_cu == (theirs.emission_cu or [])
        assert mine.emission_ca == (theirs.emission_ca or [])


def test_the_table_of_a_long_talk_is_small():
    """Bytes, not Python objects: 2000 x 2000 words take 4 MB, and an hour 80 MB."""
    import tracemalloc

    rng = random.Random(1)
    reference = [alignment.Word(f"w{rng.randrange(200)}") for _ in range(2000)]
    hypothesis = [alignment.Word(word.text) for word in reference]
    tracemalloc.start()
    aligned = ours.align_sequences(reference, hypothesis)
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [a.text for a in aligned[0]] == [b.text for b in aligned[1]]
    assert highest < 8e6
