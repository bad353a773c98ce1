"""English inflection: plurals, verb forms and the indefinite article."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_BE = {
    "pres": {"1s": "am", "2s": "are", "3s": "is", "1p": "are", "3p": "are"},
    "past": {"1s": "was", "2s": "were", "3s": "was", "1p": "were", "3p": "were"},
}
_DOUBLING = set(
    "run swim get sit set put plan forget hit cut hug drop wrap pet knit win forbid admit "
    "prefer".split()
)
# A silent h, or a letter u or eu that sounds like "you", decides against the spelling.
_AN_ANYWAY = re.compile(r"(hour|honest)", re.IGNORECASE)
_A_ANYWAY = re.compile(r"(uni|use|euro|one\b)", re.IGNORECASE)


def plural(noun: str) -> str:
    """Plural of a noun by the general rules; of a compound, the last word's."""
    return _with_s(noun, "s|x|ch|sh")


def third_person(base: str) -> str:
    if base == "have":
        return "has"
    return _with_s(base, "s|x|ch|sh|o")


def _with_s(word: str, hissing: str) -> str:
    """The ending -s of nouns and verbs, -es behind what ``hissing`` matches."""
    if re.search(rf"({hissing})$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"


def gerund(base: str) -> str:
    if base in _DOUBLING:
        return base + base[-1] + "ing"
    if base.endswith("ie"):
        return base[:-2] + "ying"
    if base.endswith("e") and not base.endswith("ee"):
        return base[:-1] + "ing"
    return base + "ing"


def regular_past(base: str) -> str:
    if base.endswith("e"):
        return base + "d"
    if re.search(r"[^aeiou]y$", base):
        return base[:-1] + "ied"
    return base + base[-1] + "ed" if base in _DOUBLING else base + "ed"


class Inflector:
    """Verb forms, with the irregular ones from a table.

    Args:
        irregular: base form to ``[past, participle]``.
    """

    def __init__(self, irregular: Mapping[str, Sequence[str]]) -> None:
        self.irregular = irregular

    def __call__(self, base: str, form: str, person: str = "3s") -> str:
        """One form of a verb.

        Args:
            base: as "take"; "be" is known.
            form: pres, past, base, ing or pp.
            person: 1s, 2s, 3s, 1p or 3p.
        """
        if base == "be" and form in _BE:
            return _BE[form][person]
        if base == "be":
            return {"base": "be", "ing": "being", "pp": "been"}[form]
        if form == "base":
            return base
        if form == "pres":
            return third_person(base) if person == "3s" else base
        if form == "ing":
            return gerund(base)
        past, participle = self.irregular.get(base, (regular_past(base),) * 2)
        if form in ("past", "pp"):
            return past if form == "past" else participle
        raise ValueError(f"unknown English verb form {form!r}")


def comparative(adjective: str) -> str:
    """ "taller", "happier" or "more modern", by length."""
    if adjective in ("big", "sad", "hot", "wet"):
        return adjective + adjective[-1] + "er"
    syllables = len(re.findall(r"[aeiouy]+", adjective.removesuffix("e")))
    if syllables > 2 or (syllables == 2 and not adjective.endswith("y")):
        return f"more {adjective}"
    if syllables == 2 and adjective.endswith("ly"):
        return f"more {adjective}"
    if adjective.endswith("y") and adjective not in ("shy", "gray"):
        return adjective[:-1] + "ier"
    return adjective + ("r" if adjective.endswith("e") else "er")


def choose_articles(text: str) -> str:
    """Turn "a" into "an" where the next word starts with a vowel sound."""

    def fix(match: re.Match[str]) -> str:
        article, word = match.groups()
        vowel = word[0].lower() in "aeiou" and not _A_ANYWAY.match(word)
        return f"{article}{'n' if vowel or _AN_ANYWAY.match(word) else ''} {word}"

    return re.sub(r"\b([aA]) ([A-Za-z]+)", fix, text)
