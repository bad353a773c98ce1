"""Sampling of distinct sentence pairs and their division into train, dev and test.

Everything follows from one seed, on any platform: only ``random.Random.random`` is used, whose
sequence Python guarantees, and every pattern has its own stream, so a new pattern leaves the
sentences of the others as they are until the division.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from echostream.training.corpus.grammar import Filler, Pattern, Realizer, Slot, load_patterns
from echostream.training.corpus.lexicon import Entry, Lexicon, load_lexicon

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
MIN_WORDS, MAX_WORDS = 4, 16
# A word of dev or test must be heard in training this often; the sets measure translation of known
# words, not guessing of unknown ones.
MIN_TRAIN_COUNT = 4
ATTEMPTS_PER_PAIR = 40

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Pair:
    """One sentence in both languages, and the pattern it came from."""

    pattern: str
    topic: str
    unseen: bool
    es: str
    en: str


@dataclass(frozen=True)
class CorpusSizes:
    """Pairs per split; ``unseen`` of the test pairs are of patterns absent from training."""

    train: int = 12000
    dev: int = 300
    test: int = 300
    unseen: int = 60

    def __post_init__(self) -> None:
        if min(self.train, self.dev, self.test, self.unseen) < 1 or self.unseen > self.test:
            raise ValueError(f"corpus sizes must be positive and unseen at most test, got {self}")


def normalize(text: str) -> str:
    """Lower case without punctuation, as the text side of training and the references are."""
    return re.sub(r"[^\w\s]", "", text.lower())


def words(text: str) -> list[str]:
    return normalize(text).split()


class Chooser:
    """Seeded choice by ``random()`` alone."""

    def __init__(self, *seed: object) -> None:
        self._random = random.Random(":".join(map(str, seed)))

    def fraction(self) -> float:
        return self._random.random()

    def choice(self, items: Sequence[ItemT]) -> ItemT:
        return items[int(self._random.random() * len(items))]

    def shuffled(self, items: Iterable[ItemT]) -> list[ItemT]:
        keyed = [(self._random.random(), index, item) for index, item in enumerate(items)]
        return [item for _, _, item in sorted(keyed, key=lambda triple: triple[:2])]


def candidates(slot: Slot, lexicon: Lexicon) -> list[Filler]:
    """Every filler of a slot.

    Raises:
        ValueError: the slot names an English text that its tag does not have, or nothing is left.
    """
    fillers, named = [], set()
    for entry in lexicon.entries(slot.tag):
        names = {entry.english, entry.en_plural} - {""}
        named |= names
        if (slot.only and not names & slot.only) or names & slot.excluded:
            continue
        numbers = "sp" if slot.number == "*" else slot.number
        if "pl" in entry.flags:
            numbers = "p"
        elif "mass" in entry.flags:
            numbers = "s"
        fillers += [Filler(entry, number) for number in numbers]
    stray = (slot.only | slot.excluded) - named
    if stray:
        raise ValueError(f"no entry tagged {slot.tag!r} is called {sorted(stray)[0]!r}")
    if not fillers:
        raise ValueError(f"nothing tagged {slot.tag!r} is left to fill a slot")
    return fillers


def _fill(
    pattern: Pattern, options: Mapping[str, list[Filler]], chooser: Chooser
) -> dict[str, Filler] | None:
    """Fill all slots; None when the draw is useless (one word twice, no agreement)."""
    fillers: dict[str, Filler] = {}
    seen: set[tuple[str, str]] = set()
    # Slots that agree with another come after it.
    for name in sorted(pattern.slots, key=lambda slot: slot in pattern.agree):
        choices = options[name]
        other = fillers.get(pattern.agree.get(name, ""))
        if other is not None:
            choices = [
                Filler(filler.entry, "p" if other.is_plural else "s")
                for filler in choices
                if filler.entry.gender == other.entry.gender
            ]
        filler = chooser.choice(choices)
        entry: Entry = filler.entry
        if (entry.kind, entry.english) in seen:
            return None
        seen.add((entry.kind, entry.english))
        fillers[name] = filler
    return fillers


def sample_pattern(pattern: Pattern, count: int, seed: int, lexicon: Lexicon) -> list[Pair]:
    """Up to ``count`` distinct pairs of one pattern, fewer where it holds no more."""
    realize, chooser = Realizer(lexicon), Chooser(seed, "pattern", pattern.name)
    try:
        options = {name: candidates(slot, lexicon) for name, slot in pattern.slots.items()}
    except ValueError as error:
        raise ValueError(f"pattern {pattern.name}: {error}") from error
    pairs: dict[str, Pair] = {}
    english: set[str] = set()
    for _ in range(count * ATTEMPTS_PER_PAIR):
        if len(pairs) == count:
            break
        fillers = _fill(pattern, options, chooser)
        if fillers is None:
            continue
        es, en = realize(pattern, fillers)
        lengths = len(words(es)), len(words(en))
        if min(lengths) < MIN_WORDS or max(lengths) > MAX_WORDS:
            continue
        key_es, key_en = normalize(es), normalize(en)
        if key_es not in pairs and key_en not in english:
            pairs[key_es] = Pair(pattern.name, pattern.topic, pattern.unseen, es, en)
            english.add(key_en)
    return list(pairs.values())


def _level(samples: Sequence[list[Pair]], count: int, what: str) -> list[Pair]:
    """Take pairs from all patterns in turn until ``count``, none twice in either language."""
    taken: list[Pair] = []
    seen: set[str] = set()
    for rank in range(max(map(len, samples), default=0)):
        for sample in samples:
            if rank >= len(sample) or len(taken) == count:
                continue
            keys = {"es:" + normalize(sample[rank].es), "en:" + normalize(sample[rank].en)}
            if not keys & seen:
                seen |= keys
                taken.append(sample[rank])
    if len(taken) < count:
        raise ValueError(f"the {what} patterns hold {len(taken)} pairs, {count} were asked for")
    return taken


def _words_of(pair: Pair) -> set[str]:
    return {"es:" + word for word in words(pair.es)} | {"en:" + word for word in words(pair.en)}


def generate_pairs(seed: int = 1, sizes: CorpusSizes | None = None) -> dict[str, list[Pair]]:
    """Make the corpus text.

    Returns:
        pairs by split, test with its seen-pattern pairs first.
    """
    sizes = CorpusSizes() if sizes is None else sizes
    lexicon, patterns = load_lexicon(), load_patterns()
    seen_patterns = [pattern for pattern in patterns if not pattern.unseen]
    unseen_patterns = [pattern for pattern in patterns if pattern.unseen]
    wanted = sizes.train + sizes.dev + sizes.test - sizes.unseen
    # Small patterns run dry, so the others give more than their even share.
    per_pattern = 3 * wanted // (2 * len(seen_patterns)) + 3
    pool = _level(
        [sample_pattern(pattern, per_pattern, seed, lexicon) for pattern in seen_patterns],
        wanted,
        "training",
    )
    counts = Counter(word for pair in pool for word in _words_of(pair))
    held_out: list[Pair] = []
    for pair in Chooser(seed, "split").shuffled(pool):
        if len(held_out) == sizes.dev + sizes.test - sizes.unseen:
            break
        if all(counts[word] > MIN_TRAIN_COUNT for word in _words_of(pair)):
            held_out.append(pair)
            counts.subtract(_words_of(pair))
    chosen = set(held_out)
    train = [pair for pair in pool if pair not in chosen]
    if len(held_out) < sizes.dev + sizes.test - sizes.unseen:
        raise ValueError(
            f"dev and test need {sizes.dev + sizes.test - sizes.unseen} pairs of seen patterns "
            f"whose words training has {MIN_TRAIN_COUNT} times each, found {len(held_out)}"
        )
    known = {normalize(pair.es) for pair in pool} | {normalize(pair.en) for pair in pool}

    def is_fair(pair: Pair) -> bool:
        """New to training as a sentence, in words that training has."""
        return not {normalize(pair.es), normalize(pair.en)} & known and all(
            counts[word] >= MIN_TRAIN_COUNT for word in _words_of(pair)
        )

    samples = [
        sample_pattern(pattern, 3 * sizes.unseen, seed, lexicon) for pattern in unseen_patterns
    ]
    fair = [[pair for pair in sample if is_fair(pair)] for sample in samples]
    unseen = _level(fair, sizes.unseen, "unseen")
    splits = {
        "train": Chooser(seed, "train").shuffled(train),
        "dev": held_out[: sizes.dev],
        "test": held_out[sizes.dev :] + unseen,
    }
    logger.info("%s", {name: len(pairs) for name, pairs in splits.items()})
    return splits


def digest(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text."""
    return hashlib.sha256("".join(line + "\n" for line in lines).encode("utf-8")).hexdigest()
