"""Noun phrases of the extension: determiners, numbers and adjectives in both languages."""

from __future__ import annotations

from dataclasses import dataclass

from echostream.training.corpus import spanish
from echostream.training.corpus.lexicon import Entry
from echostream.training.corpus.pairs import Chooser

_TENS = {
    30: ("treinta", "thirty"),
    40: ("cuarenta", "forty"),
    50: ("cincuenta", "fifty"),
    60: ("sesenta", "sixty"),
    70: ("setenta", "seventy"),
    80: ("ochenta", "eighty"),
    90: ("noventa", "ninety"),
}
_SMALL = dict(
    zip(
        (*range(2, 21), 25),
        zip(
            "dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince "
            "dieciséis diecisiete dieciocho diecinueve veinte veinticinco".split(),
            "two three four five six seven eight nine ten eleven twelve thirteen fourteen "
            "fifteen sixteen seventeen eighteen nineteen twenty twenty-five".split(),
            strict=True,
        ),
        strict=True,
    )
)
_DETERMINERS = {  # masculine, feminine, plural masculine and feminine; English singular, plural
    "the": ("el", "la", "los", "las", "the", "the"),
    "a": ("un", "una", "unos", "unas", "a", "some"),
    "my": ("mi", "mi", "mis", "mis", "my", "my"),
    "your": ("tu", "tu", "tus", "tus", "your", "your"),
    "our": ("nuestro", "nuestra", "nuestros", "nuestras", "our", "our"),
    "this": ("este", "esta", "estos", "estas", "this", "these"),
    "that": ("ese", "esa", "esos", "esas", "that", "those"),
    "many": ("mucho", "mucha", "muchos", "muchas", "a lot of", "many"),
    "every": ("cada", "cada", "", "", "every", ""),
}


@dataclass(frozen=True)
class NounPhrase:
    """A noun phrase in both languages.

    Attributes:
        person: 1s, 2s, 3s, 1p or 3p, the same in both.
        head: English noun without determiner, by which combinations are told apart.
    """

    es: str
    en: str
    person: str
    gender: str = "m"
    head: str = ""


def number_words(number: int) -> tuple[str, str]:
    """A number from 2 to 99 that does not change with gender, as "treinta y dos".

    Raises:
        ValueError: 1, and numbers that end in it, agree with their noun; others are out of range.
    """
    if number in _SMALL:
        es, en = _SMALL[number]
        return es, en.replace("-", " ")
    tens, ones = number - number % 10, number % 10
    if tens not in _TENS or ones == 1:
        raise ValueError(f"numbers are 2 to 20, 25 and 30 to 99 without final 1, got {number}")
    if ones == 0:
        return _TENS[tens]
    return f"{_TENS[tens][0]} y {_SMALL[ones][0]}", f"{_TENS[tens][1]} {_SMALL[ones][1]}"


def draw_number(chooser: Chooser) -> tuple[str, str]:
    """Small numbers mostly, as people count."""
    if chooser.fraction() < 0.6:
        return number_words(chooser.choice(range(2, 13)))
    large = [n for n in (*range(13, 21), 25, *range(30, 100)) if n % 10 != 1 or n < 20]
    return number_words(chooser.choice(large))


def noun_phrase(
    chooser: Chooser, determiner: str, entry: Entry, adjective: Entry | None, *, plurals: float
) -> NounPhrase | None:
    """A determiner or number, a noun and an adjective that agree; None where they cannot.

    Args:
        determiner: a key of the table, or "num". "my" may become "your" or "our".
        plurals: share of plurals where the determiner leaves the choice.
    """
    mass, plural_only = "mass" in entry.flags, "pl" in entry.flags
    if mass and determiner in ("num", "every", "a") and (determiner != "a" or adjective):
        return None
    if plural_only and determiner == "every":
        return None
    if determiner == "a":
        plurals /= 3  # "some" sounds odd behind a negation
    plural = plural_only or (
        determiner in ("num", "many")
        and not mass
        or (determiner not in ("every", "many") and not mass and chooser.fraction() < plurals)
    )
    if determiner == "my":
        determiner = chooser.choice(["my", "my", "your", "our"] if plurals else ["my", "your"])
    es_noun = entry.es_plural if plural else entry.es
    en_noun = entry.en_plural if plural else entry.en
    if determiner == "num":
        if plural_only:
            return None
        es_word, en_word = draw_number(chooser)
    elif determiner == "a" and mass:
        es_word = en_word = ""
    else:
        forms = _DETERMINERS[determiner]
        feminine = entry.gender == "f"
        if "el" in entry.flags and determiner in ("the", "a") and not plural:
            feminine = False
        es_word, en_word = forms[2 * plural + feminine], forms[4 + plural]
    es_adjective = en_adjective = ""
    if adjective is not None:
        es_adjective = spanish.inflect_adjective(adjective.es, entry.gender, "p" if plural else "s")
        en_adjective = adjective.en
    # The adjective stands behind the whole Spanish compound and before the English one.
    return NounPhrase(
        f"{es_word} {es_noun} {es_adjective}",
        f"{en_word} {en_adjective} {en_noun}",
        "3p" if plural else "3s",
        entry.gender,
        entry.en,
    )
