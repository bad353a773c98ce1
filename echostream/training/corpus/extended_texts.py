"""The texts of the extension: many constructions combined, and what training never combines.

Training and held-out sentences are made by the same grammar. A share of patterns and a share of
verb-noun and adjective-noun combinations is withheld, decided by a digest of each, so that no
list is needed: training sentences have none of them, those of ``combdev`` and ``combtest`` have a
withheld pattern and at least one withheld combination, in words and constructions of training.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from echostream.files import write_atomically
from echostream.training.corpus.composition import Composer, Retry
from echostream.training.corpus.constructions import Tree, sample_tree
from echostream.training.corpus.extended_lexicon import load_extended_lexicon
from echostream.training.corpus.pairs import MIN_TRAIN_COUNT, Chooser, digest, normalize, words
from echostream.training.corpus.speakers import speakers_of
from echostream.training.corpus.text_files import Utterance, parse_lines, table_lines

logger = logging.getLogger(__name__)

EXTENSION, COMBDEV, COMBTEST = "extension", "combdev", "combtest"
EXTENDED_SPLITS = (EXTENSION, COMBDEV, COMBTEST)
MIN_WORDS, MAX_WORDS = 4, 24
CHECKSUMS = "SHA256SUMS"
# Withheld: one pattern in 12 and one combination in 15.
_PATTERN_SHARE, _COMBINATION_SHARE = 1 / 12, 1 / 15
_TOPIC = "composition"


@dataclasses.dataclass(frozen=True)
class ExtendedSizes:
    """Sentences per split."""

    extension: int = 24000
    combdev: int = 300
    combtest: int = 300

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"sizes of the extension must be positive, got {self}")


@dataclasses.dataclass(frozen=True)
class Composed:
    """A sentence pair with what makes it a combination."""

    tree: Tree
    combinations: frozenset[tuple[str, str]]
    es: str
    en: str

    @property
    def pattern(self) -> str:
        return str(self.tree)

    def words(self) -> set[str]:
        return {f"es:{word}" for word in words(self.es)} | {f"en:{word}" for word in words(self.en)}


def is_withheld(share: float, *key: object) -> bool:
    """Whether a digest of ``key`` falls into the withheld share."""
    text = ":".join(map(str, key)).encode("utf-8")
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big") < share * 2**48


def withheld_pattern(seed: int, pattern: str) -> bool:
    return is_withheld(_PATTERN_SHARE, seed, "pattern", pattern)


def withheld_combination(seed: int, pair: tuple[str, str]) -> bool:
    return is_withheld(_COMBINATION_SHARE, seed, "combination", *pair)


def compose(tree: Tree, chooser: Chooser) -> Composed | None:
    """Fill a tree with words; None where the draw is useless or the sentence of wrong length."""
    composer = Composer(load_extended_lexicon(), chooser)
    try:
        es, en = composer(tree)
    except Retry:
        return None
    lengths = len(words(es)), len(words(en))
    if min(lengths) < MIN_WORDS or max(lengths) > MAX_WORDS:
        return None
    return Composed(tree, frozenset(composer.combinations), es, en)


class Novelty:
    """Sentences so far, in both languages; those of the present corpus to begin with."""

    def __init__(self, present: Mapping[str, Sequence[Utterance]]) -> None:
        self._known: set[str] = set()
        for rows in present.values():
            for row in rows:
                self._known |= self._keys(row.src_text, row.tgt_text)

    @staticmethod
    def _keys(es: str, en: str) -> set[str]:
        return {f"es:{normalize(es)}", f"en:{normalize(en)}"}

    def admit(self, es: str, en: str) -> bool:
        """Whether the pair is new in both languages; it is known from then on."""
        keys = self._keys(es, en)
        if keys & self._known:
            return False
        self._known |= keys
        return True


def compose_training(novelty: Novelty, seed: int, count: int) -> list[Composed]:
    """Training sentences one after another; few are the beginning of many."""
    chooser = Chooser(seed, "extension")
    training: list[Composed] = []
    while len(training) < count:
        tree = sample_tree(chooser)
        if withheld_pattern(seed, str(tree)):
            continue
        made = compose(tree, chooser)
        if made is None or any(withheld_combination(seed, pair) for pair in made.combinations):
            continue
        if novelty.admit(made.es, made.en):
            training.append(made)
    return training


def generate_extension(
    present: Mapping[str, Sequence[Utterance]], seed: int, sizes: ExtendedSizes
) -> dict[str, list[Composed]]:
    """Make the sentences of all splits.

    Args:
        present: the present corpus, none of whose sentences occurs again.
    """
    novelty = Novelty(present)
    training = compose_training(novelty, seed, sizes.extension)
    counts = Counter(word for made in training for word in made.words())
    labels = set().union(*(made.tree.labels() for made in training))
    chooser = Chooser(seed, "combinations")
    held_out: list[Composed] = []
    attempts = 0
    while len(held_out) < sizes.combdev + sizes.combtest:
        attempts += 1
        if attempts > 10000 * (sizes.combdev + sizes.combtest):
            raise ValueError(
                f"only {len(held_out)} held-out sentences have words that {len(training)} "
                f"training sentences contain {MIN_TRAIN_COUNT} times each"
            )
        tree = sample_tree(chooser)
        if not withheld_pattern(seed, str(tree)) or not tree.labels() <= labels:
            continue
        made = compose(tree, chooser)
        if made is None or not any(withheld_combination(seed, p) for p in made.combinations):
            continue
        if any(counts[word] < MIN_TRAIN_COUNT for word in made.words()):
            continue
        if novelty.admit(made.es, made.en):
            held_out.append(made)
    return {
        EXTENSION: training,
        COMBDEV: held_out[: sizes.combdev],
        COMBTEST: held_out[sizes.combdev :],
    }


def make_extension(
    present: Mapping[str, Sequence[Utterance]],
    seed: int = 1,
    sizes: ExtendedSizes | None = None,
) -> dict[str, list[Utterance]]:
    """The whole text of the extension, from a seed."""
    return assign_voices(generate_extension(present, seed, sizes or ExtendedSizes()), seed)


def assign_voices(made: Mapping[str, list[Composed]], seed: int) -> dict[str, list[Utterance]]:
    """Give every pair an id and a speaker: new ones in training, the present ones held out."""
    speakers = {EXTENSION: "extension", COMBDEV: "dev", COMBTEST: "test"}
    utterances = {}
    for split, rows in made.items():
        voices = speakers_of(speakers[split])
        names = Chooser(seed, "speakers", split).shuffled(
            [one.id for one in voices] * -(-len(rows) // len(voices))
        )
        utterances[split] = [
            Utterance(
                f"{split}_{number:05d}",
                name,
                _TOPIC,
                row.pattern,
                split != EXTENSION,
                row.es,
                row.en,
            )
            for number, (row, name) in enumerate(zip(rows, names, strict=False), 1)
        ]
    return utterances


def extension_digests(utterances: Mapping[str, Sequence[Utterance]]) -> dict[str, str]:
    """SHA-256 of every split's table, uncompressed."""
    return {split: digest(table_lines(rows)) for split, rows in utterances.items()}


def write_extension(utterances: Mapping[str, Sequence[Utterance]], folder: Path) -> None:
    """Write ``<split>.tsv.gz`` and the checksums of what is in them."""
    for split, rows in utterances.items():
        text = "".join(f"{line}\n" for line in table_lines(rows))
        # No time and no name inside, or the bytes would differ from run to run.
        packed = gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0)
        write_atomically(folder / f"{split}.tsv.gz", packed)
    sums = extension_digests(utterances)
    write_atomically(folder / CHECKSUMS, "".join(f"{sums[split]}  {split}.tsv\n" for split in sums))


def read_extension(folder: Path) -> dict[str, list[Utterance]]:
    """Read what :func:`write_extension` wrote.

    Raises:
        FileNotFoundError: a split file is missing.
        ValueError: damaged, or a malformed line, named by file and number.
    """
    utterances = {}
    for split in EXTENDED_SPLITS:
        path = folder / f"{split}.tsv.gz"
        if not path.is_file():
            raise FileNotFoundError(f"no such corpus text: {path}")
        try:
            with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
                utterances[split] = parse_lines(stream, path)
        except (gzip.BadGzipFile, EOFError) as error:
            raise ValueError(f"{path}: damaged: {error}") from error
    return utterances
