"""Sentence patterns and their realisation in Spanish and English.

A pattern is a pair of templates over the same slots. In a template ``{X}`` is the surface form of
slot X and ``{f X Y}`` applies a function of the language: determiners agree (``{el X}``,
``{this X}``), verbs inflect (``{pret V S}`` is the preterite of V for subject S), adjectives agree
(``{adj A X}``), pronouns refer (``{lo X}``, ``{obj X}``). Where a function expects a verb or an
adjective, a name that is no slot is the word itself (``{pres costar X}``, ``{adj =cerrado X}``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import yaml

from echostream.training.corpus import english, spanish
from echostream.training.corpus.lexicon import DATA, Entry, Lexicon

_SLOT = re.compile(r"\{([^{}]+)\}")
_DETERMINERS = {  # masculine and feminine singular, masculine and feminine plural
    "el": ("el", "la", "los", "las"),
    "un": ("un", "una", "unos", "unas"),
    "este": ("este", "esta", "estos", "estas"),
    "ese": ("ese", "esa", "esos", "esas"),
    "mi": ("mi", "mi", "mis", "mis"),
    "tu": ("tu", "tu", "tus", "tus"),
    "nuestro": ("nuestro", "nuestra", "nuestros", "nuestras"),
    "mucho": ("mucho", "mucha", "muchos", "muchas"),
    "lo": ("lo", "la", "los", "las"),
}
_SPANISH_TENSES = ("pres", "pret", "imperf", "fut", "subj", "perf", "inf", "ger", "imper")
_ENGLISH_FORMS = ("pres", "past", "base", "ing", "pp")
_BY_PERSON = {
    "se": ("me", "te", "se", "nos", "se"),
    "le": ("me", "te", "le", "nos", "les"),
}
_ENGLISH_PRONOUNS = {
    "1s": ("I", "me", "my"),
    "2s": ("you", "you", "your"),
    "3s m": ("he", "him", "his"),
    "3s f": ("she", "her", "her"),
    "1p": ("we", "us", "our"),
    "3p": ("they", "them", "their"),
    "3s n": ("it", "it", "its"),
}


@dataclass(frozen=True)
class Filler:
    """A lexicon entry in a slot, with the number a noun takes there."""

    entry: Entry
    number: str = "s"

    @property
    def person(self) -> str:
        return f"3{self.number}" if self.entry.kind == "noun" else self.entry.person

    @property
    def is_plural(self) -> bool:
        return self.person.endswith("p")


@dataclass(frozen=True)
class Slot:
    """What may fill a slot: a tag, a number ("s", "p" or "*" for either), and English texts that
    are the only ones allowed or are excluded."""

    tag: str
    number: str = "s"
    only: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Pattern:
    """One sentence pattern.

    Attributes:
        name: topic and running number.
        agree: slot whose gender and number must be those of another slot.
        unseen: kept out of training.
    """

    name: str
    topic: str
    es: str
    en: str
    slots: Mapping[str, Slot]
    agree: Mapping[str, str] = field(default_factory=dict)
    unseen: bool = False


@cache
def load_patterns() -> tuple[Pattern, ...]:
    """Read the package's patterns.

    Raises:
        ValueError: a pattern with an unknown key, or an option for a slot it does not have.
    """
    patterns = []
    topics = yaml.safe_load((DATA / "patterns.yaml").read_text("utf-8"))
    for topic, items in topics.items():
        for number, item in enumerate(items, 1):
            name = f"{topic}-{number:02d}"
            unknown = set(item) - {"slots", "es", "en", "only", "not", "agree", "unseen"}
            if unknown:
                raise ValueError(f"patterns.yaml: {name}: unknown key {sorted(unknown)[0]!r}")
            only, excluded = item.get("only", {}), item.get("not", {})
            stray = (set(only) | set(excluded) | set(item.get("agree", {}))) - set(item["slots"])
            if stray:
                raise ValueError(f"patterns.yaml: {name}: option for no slot {sorted(stray)[0]!r}")
            slots = {}
            for slot, tag in item["slots"].items():
                tag, _, count = tag.partition("/")
                slots[slot] = Slot(
                    tag,
                    count or "s",
                    frozenset(only.get(slot, ())),
                    frozenset(excluded.get(slot, ())),
                )
            patterns.append(
                Pattern(
                    name,
                    topic,
                    item["es"],
                    item["en"],
                    slots,
                    item.get("agree", {}),
                    item.get("unseen", False),
                )
            )
    return tuple(patterns)


class Realizer:
    """Turns a pattern with filled slots into a sentence pair."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon

    def __call__(self, pattern: Pattern, fillers: Mapping[str, Filler]) -> tuple[str, str]:
        """The Spanish and the English sentence."""
        try:
            es = _SLOT.sub(lambda m: self._spanish(m[1].split(), fillers), pattern.es)
            en = _SLOT.sub(lambda m: self._english(m[1].split(), fillers), pattern.en)
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(f"pattern {pattern.name}: {error!r}") from error
        return tidy(spanish.contract(es)), tidy(english.choose_articles(en))

    def _spanish(self, call: list[str], fillers: Mapping[str, Filler]) -> str:
        if len(call) == 1:
            return _spanish_surface(fillers[call[0]])
        function, *names = call
        if function in _SPANISH_TENSES:
            verb = fillers.get(names[0])
            infinitive = verb.entry.es if verb else names[0]
            person = fillers[names[1]].person if len(names) > 1 else "3s"
            text = self.lexicon.conjugate(infinitive, function, person)
            return f"{text} {verb.entry.es_rest}" if verb else text
        if function == "enc":
            return fillers[names[0]].entry.es + fillers[names[1]].entry.es
        if function == "adj":
            adjective = names[0][1:] if names[0][0] == "=" else fillers[names[0]].entry.es
            if names[1][0] == "=":
                return spanish.inflect_adjective(adjective, names[1][1], names[1][2])
            noun = fillers[names[1]]
            return spanish.inflect_adjective(
                adjective, noun.entry.gender, "p" if noun.is_plural else "s"
            )
        filler = fillers[names[0]]
        if function in _BY_PERSON:
            return _BY_PERSON[function][spanish.PERSONS.index(filler.person)]
        if function == "pro":
            return filler.entry.es
        if function == "plural":
            return filler.entry.es_plural
        if function in ("al", "del"):
            return f"{function[:-1] if function == 'al' else 'de'} {_determiner('el', filler)}"
        if function == "un_poco":
            return "un poco de"
        if function == "un" and "mass" in filler.entry.flags:
            return ""
        return _determiner(function, filler)

    def _english(self, call: list[str], fillers: Mapping[str, Filler]) -> str:
        if len(call) == 1:
            filler = fillers[call[0]]
            if filler.entry.kind == "noun":
                return filler.entry.en_plural if filler.number == "p" else filler.entry.en
            return filler.entry.en
        function, *names = call
        if function in _ENGLISH_FORMS:
            verb = fillers.get(names[0])
            base = verb.entry.en if verb else names[0]
            person = fillers[names[1]].person if len(names) > 1 else "3s"
            text = self.lexicon.inflect(base, function, person)
            return f"{text} {verb.entry.en_rest}" if verb else text
        filler = fillers[names[0]]
        if function == "obj" and filler.entry.kind == "subject" and not _is_pronoun(filler):
            return filler.entry.en
        if function in ("pronoun", "obj", "poss", "it", "pron"):
            column = {"pronoun": 0, "pron": 0, "it": 0, "obj": 1, "poss": 2}[function]
            return _ENGLISH_PRONOUNS[_pronoun_key(filler, human=function == "pron")][column]
        if function == "cmp":
            return english.comparative(filler.entry.en)
        if function == "plural":
            return filler.entry.en_plural
        plural = filler.number == "p" if filler.entry.kind == "noun" else filler.is_plural
        if function in ("a", "art"):
            if plural:
                return "some" if function == "a" else ""
            return "" if "mass" in filler.entry.flags else "a"
        if function in ("this", "that"):
            return {"this": "these", "that": "those"}[function] if plural else function
        raise ValueError(f"unknown English function {function!r}")


def _spanish_surface(filler: Filler) -> str:
    entry = filler.entry
    if entry.kind == "noun":
        return entry.es_plural if filler.number == "p" else entry.es
    return "" if "drop" in entry.flags else entry.es


def _determiner(name: str, filler: Filler) -> str:
    if name not in _DETERMINERS:
        raise ValueError(f"unknown Spanish function {name!r}")
    feminine, plural = filler.entry.gender == "f", filler.is_plural
    if name in ("el", "un") and "el" in filler.entry.flags and not plural:
        feminine = False
    return _DETERMINERS[name][2 * plural + feminine]


def _is_pronoun(filler: Filler) -> bool:
    return filler.entry.en in {forms[0] for forms in _ENGLISH_PRONOUNS.values()}


def _pronoun_key(filler: Filler, *, human: bool) -> str:
    if filler.person != "3s":
        return filler.person
    thing = filler.entry.kind == "noun" and not human
    return f"3s {'n' if thing else filler.entry.gender}"


def tidy(text: str) -> str:
    """Clean spaces and capitalise the first word of every sentence."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([,.?!])", r"\1", text)
    text = re.sub(r"([¿¡]) ", r"\1", text)
    return re.sub(r"(^|[.?!] )([¿¡]?)(\w)", lambda m: m[1] + m[2] + m[3].upper(), text)
