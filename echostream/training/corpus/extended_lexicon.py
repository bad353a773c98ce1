"""The lexicon of the extension: the present one and further tables beside it."""

from __future__ import annotations

from functools import cache

import yaml

from echostream.training.corpus import english, spanish
from echostream.training.corpus.lexicon import DATA, Entry, Lexicon, load_lexicon, read_table

_TABLES = ("nouns", "adjectives", "verbs", "phrases")
# Tags of the present lexicon whose words fill the same places as those of the new tables.
_SHARED = {
    "thing": ("thing", "carry"),
    "wear": ("wear",),
    "food": ("food",),
    "fruit": ("fruit",),
    "drink": ("drink",),
    "place": ("place", "visit"),
    "person": ("prof", "staff"),
    "animal": ("animal",),
    "text": ("paper",),
    "issue": ("issue",),
    "event": ("event",),
    "city": ("city", "country"),
    "q": ("colour",),
    "kin": ("kin", "friend"),
    "act": ("act",),
}
_NOT_SHARED = {  # an article in one language only; nothing to iron
    ("place", "post office"),
    *(("wear", name) for name in ("watch", "handbag", "ring", "belt", "glasses")),
}


@cache
def load_extended_lexicon() -> Lexicon:
    """Read all tables; tags are those of the new tables and of ``_SHARED``.

    Raises:
        ValueError: a malformed line, named by file and number.
    """
    present = load_lexicon()
    by_tag: dict[str, list[Entry]] = {
        tag: [
            entry
            for shared in tags
            for entry in present.entries(shared)
            if (tag, entry.english) not in _NOT_SHARED
        ]
        for tag, tags in _SHARED.items()
    }
    for name in _TABLES:
        for tags, entry in read_table(f"{name}.tsv", f"extended_{name}.tsv"):
            for tag in tags:
                by_tag.setdefault(tag, []).append(entry)
    return Lexicon(
        {tag: tuple(dict.fromkeys(entries)) for tag, entries in by_tag.items()},
        spanish.Conjugator(present.conjugate.irregular | _yaml("extended_irregular_verbs.yaml")),
        english.Inflector(present.inflect.irregular | _yaml("extended_irregular_english.yaml")),
    )


def _yaml(name: str) -> dict:
    return yaml.safe_load((DATA / name).read_text("utf-8"))
