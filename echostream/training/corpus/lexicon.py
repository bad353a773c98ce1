"""The bilingual lexicon: entries by tag, read from the package's tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from echostream.training.corpus import english, spanish

DATA = files("echostream.training.corpus") / "data"


@dataclass(frozen=True)
class Entry:
    """One word or phrase in both languages.

    Attributes:
        kind: noun, adjective, verb, phrase or subject.
        es, en: singular, masculine, infinitive or base form.
        es_rest, en_rest: what follows the inflected word of a verb phrase.
        gender: m or f, where the kind has one.
        person: 1s, 2s, 3s, 1p or 3p, of subjects.
        es_plural, en_plural: of nouns.
        flags: "pl" plural only, "mass" no plural, "el" article el before a feminine noun,
            "drop" left out in Spanish.
    """

    kind: str
    es: str
    en: str
    es_rest: str = ""
    en_rest: str = ""
    gender: str = "m"
    person: str = "3s"
    es_plural: str = ""
    en_plural: str = ""
    flags: frozenset[str] = frozenset()

    @property
    def english(self) -> str:
        """The whole English text, by which patterns refer to an entry."""
        return f"{self.en} {self.en_rest}".strip()


def _rows(name: str) -> Iterator[tuple[str, list[str]]]:
    """Place and columns of each line of a table."""
    for number, line in enumerate((DATA / name).read_text("utf-8").splitlines(), 1):
        if line and not line.startswith("#"):
            yield f"{name}:{number}", line.split("\t")


def _noun(columns: list[str]) -> Entry:
    es, gender, en, *rest = columns
    options = rest[0].split(",") if rest else []
    given = dict(option.split("=") for option in options if "=" in option)
    flags = frozenset(flag for option in options if "=" not in option for flag in option.split())
    if "pl" in flags:
        es_plural, en_plural = es, en
    else:
        es_plural = given.pop("es_pl", "") or spanish.plural(es)
        en_plural = given.pop("en_pl", "") or english.plural(en)
    return Entry(
        "noun", es, en, gender=gender, es_plural=es_plural, en_plural=en_plural, flags=flags
    )


def _verb(columns: list[str]) -> Entry:
    es, es_rest, en, en_rest = (columns + [""])[:4]
    return Entry("verb", es, en, es_rest, en_rest)


def _phrase(columns: list[str]) -> Entry:
    es, en, *features = columns
    feature = features[0] if features else ""
    return Entry(
        "phrase",
        es,
        en,
        gender=feature if feature in ("m", "f") else "m",
        person=feature if feature in spanish.PERSONS else "3s",
    )


def _subject(columns: list[str]) -> Entry:
    es, en, person, gender, *flags = columns
    return Entry("subject", es, en, gender=gender, person=person, flags=frozenset(flags))


_READERS = {
    "nouns.tsv": _noun,
    "adjectives.tsv": lambda columns: Entry("adjective", columns[0], columns[1]),
    "verbs.tsv": _verb,
    "phrases.tsv": _phrase,
    "subjects.tsv": _subject,
}


@dataclass(frozen=True)
class Lexicon:
    """All entries by tag, and the two inflectors."""

    by_tag: dict[str, tuple[Entry, ...]]
    conjugate: spanish.Conjugator
    inflect: english.Inflector

    def entries(self, tag: str) -> tuple[Entry, ...]:
        try:
            return self.by_tag[tag]
        except KeyError:
            raise ValueError(
                f"no lexicon entry has the tag {tag!r}; tags: {', '.join(sorted(self.by_tag))}"
            ) from None


@cache
def load_lexicon() -> Lexicon:
    """Read the package's tables.

    Raises:
        ValueError: a malformed line, named by file and number.
    """
    by_tag: dict[str, list[Entry]] = {}
    for name, read in _READERS.items():
        for where, (tags, *columns) in _rows(name):
            try:
                entry = read(columns)
            except (ValueError, IndexError) as error:
                raise ValueError(f"{where}: malformed line: {error}") from error
            for tag in tags.split(","):
                by_tag.setdefault(tag, []).append(entry)
    tables = [
        yaml.safe_load((DATA / f"irregular_{name}.yaml").read_text("utf-8"))
        for name in ("verbs", "english")
    ]
    return Lexicon(
        {tag: tuple(found) for tag, found in by_tag.items()},
        spanish.Conjugator(tables[0]),
        english.Inflector(tables[1]),
    )
