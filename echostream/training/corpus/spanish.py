"""Spanish inflection: noun plurals, adjective agreement and verb conjugation.

Persons are ``1s 2s 3s 1p 3p``; the plural "you" is "ustedes", which shares the 3p forms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PERSONS = ("1s", "2s", "3s", "1p", "3p")
_PRESENT = {
    "ar": ("o", "as", "a", "amos", "an"),
    "er": ("o", "es", "e", "emos", "en"),
    "ir": ("o", "es", "e", "imos", "en"),
}
_PRETERITE = {
    "ar": ("é", "aste", "ó", "amos", "aron"),
    "er": ("í", "iste", "ió", "imos", "ieron"),
    "ir": ("í", "iste", "ió", "imos", "ieron"),
}
_STRONG_PRETERITE = ("e", "iste", "o", "imos", "ieron")
_IMPERFECT = {
    "ar": ("aba", "abas", "aba", "ábamos", "aban"),
    "er": ("ía", "ías", "ía", "íamos", "ían"),
    "ir": ("ía", "ías", "ía", "íamos", "ían"),
}
_FUTURE = ("é", "ás", "á", "emos", "án")
_SUBJUNCTIVE = {
    "ar": ("e", "es", "e", "emos", "en"),
    "er": ("a", "as", "a", "amos", "an"),
    "ir": ("a", "as", "a", "amos", "an"),
}
_REFLEXIVE = ("me", "te", "se", "nos", "se")
_UNACCENTED = str.maketrans("áéíóú", "aeiou")
# Nationalities and nouns whose final stressed syllable loses its written accent with an ending.
_PLURAL_GAINS_ACCENT = {"joven": "jóvenes", "examen": "exámenes"}
_FINAL_ACCENT = re.compile(r"[áéíóú][ns]$")


def plural(word: str) -> str:
    """Plural of a noun or adjective by the general rules."""
    if word in _PLURAL_GAINS_ACCENT:
        return _PLURAL_GAINS_ACCENT[word]
    if word[-1] in "aeiouáéó":
        return word + "s"
    if word.endswith("z"):
        return word[:-1] + "ces"
    if _FINAL_ACCENT.search(word):
        return word[:-2] + word[-2].translate(_UNACCENTED) + word[-1] + "es"
    if word.endswith("s") and len(re.findall(r"[aeiou]+", word)) > 1:
        return word  # unstressed last syllable: lunes, paraguas
    return word + "es"


def inflect_adjective(masculine: str, gender: str, number: str) -> str:
    """Agree an adjective, given its masculine singular, with gender m/f and number s/p."""
    word = masculine
    if gender == "f":
        if word.endswith("o"):
            word = word[:-1] + "a"
        elif word.endswith("dor"):
            word += "a"
        elif word in ("español", "francés", "alemán", "inglés", "japonés"):
            word = _FINAL_ACCENT.sub(lambda m: m[0].translate(_UNACCENTED), word) + "a"
    return word if number == "s" else plural(word)


class Conjugator:
    """Conjugates verbs by rule, with the irregular ones from a table.

    Args:
        irregular: infinitive to overrides, as in ``data/irregular_verbs.yaml``.
    """

    def __init__(self, irregular: Mapping[str, Mapping[str, Any]]) -> None:
        self.irregular = irregular

    def __call__(self, infinitive: str, tense: str, person: str = "3s") -> str:
        """One form, with the reflexive pronoun before it for verbs in ``-se``.

        Args:
            infinitive: as "hablar" or "levantarse".
            tense: pres, pret, imperf, fut, subj, perf, inf, ger, part or imper (tú).
            person: one of :data:`PERSONS`.
        """
        if person not in PERSONS:
            raise ValueError(f"person must be one of {', '.join(PERSONS)}, got {person!r}")
        reflexive = infinitive.endswith("se")
        verb = infinitive[:-2] if reflexive else infinitive
        if verb[-2:] not in _PRESENT:
            raise ValueError(f"Spanish infinitives end in -ar, -er or -ir, got {infinitive!r}")
        index = PERSONS.index(person)
        try:
            form = getattr(self, f"_{tense}")
        except AttributeError:
            raise ValueError(f"unknown Spanish tense {tense!r}") from None
        text = form(verb, index)
        if not reflexive:
            return text
        if tense == "inf":
            return text + _REFLEXIVE[index]
        return f"{_REFLEXIVE[index]} {text}"

    def _entry(self, verb: str) -> Mapping[str, Any]:
        return self.irregular.get(verb, {})

    def _change(self, verb: str, *, weak: bool = False) -> str:
        """The stem with its vowel changed; ``weak`` is the e>i, o>u of -ir verbs."""
        stem, change = verb[:-2], self._entry(verb).get("change")
        if change is None or (weak and verb[-2:] != "ir"):
            return stem
        old, new = change.split(">")
        new = {"ie": "i", "ue": "u", "i": "i"}[new] if weak else new
        at = stem.rindex(old)
        return stem[:at] + new + stem[at + len(old) :]

    def _pres(self, verb: str, index: int) -> str:
        entry, ending = self._entry(verb), _PRESENT[verb[-2:]][index]
        if "pres" in entry:
            return entry["pres"][index]
        if index == 0 and "yo" in entry:
            return entry["yo"]
        stem = verb[:-2] if index == 3 else self._change(verb)
        return stem + ending

    def _pret(self, verb: str, index: int) -> str:
        entry = self._entry(verb)
        if "pret" in entry:
            return entry["pret"][index]
        if "pret_stem" in entry:
            return entry["pret_stem"] + _STRONG_PRETERITE[index]
        stem = self._change(verb, weak=True) if index in (2, 4) else verb[:-2]
        if index == 0 and verb.endswith("ar"):
            stem = _before_e(stem)
        return stem + _PRETERITE[verb[-2:]][index]

    def _imperf(self, verb: str, index: int) -> str:
        entry = self._entry(verb)
        return (
            entry["imperf"][index]
            if "imperf" in entry
            else (verb[:-2] + _IMPERFECT[verb[-2:]][index])
        )

    def _fut(self, verb: str, index: int) -> str:
        return self._entry(verb).get("fut", verb) + _FUTURE[index]

    def _subj(self, verb: str, index: int) -> str:
        entry, ending = self._entry(verb), _SUBJUNCTIVE[verb[-2:]][index]
        if "subj" in entry:
            return entry["subj"][index]
        if "yo" in entry:
            return entry["yo"][:-1] + ending
        if index == 3:
            stem = self._change(verb, weak=True)
        else:
            stem = self._change(verb)
        return (_before_e(stem) if verb.endswith("ar") else stem) + ending

    def _imper(self, verb: str, index: int) -> str:
        return self._entry(verb).get("imper") or self._pres(verb, 2)

    def _perf(self, verb: str, index: int) -> str:
        return f"{self._pres('haber', index)} {self._part(verb, index)}"

    def _part(self, verb: str, index: int) -> str:
        ending = "ado" if verb.endswith("ar") else "ido"
        return self._entry(verb).get("part") or verb[:-2] + ending

    def _ger(self, verb: str, index: int) -> str:
        ending = "ando" if verb.endswith("ar") else "iendo"
        return self._entry(verb).get("ger") or self._change(verb, weak=True) + ending

    def _inf(self, verb: str, index: int) -> str:
        return verb


def _before_e(stem: str) -> str:
    """Keep the consonant's sound when an -ar verb's ending starts with e."""
    for ending, spelling in (("gu", "gu"), ("c", "qu"), ("g", "gu"), ("z", "c")):
        if stem.endswith(ending):
            return stem[: -len(ending)] + spelling
    return stem


def contract(text: str) -> str:
    """Apply what words do to their neighbours: al, del, y > e, o > u."""
    text = re.sub(r"\ba el\b", "al", text)
    text = re.sub(r"\bde el\b", "del", text)
    text = re.sub(r"\by (?=(i|hi(?!e))[a-zñáéíóú])", "e ", text)
    return re.sub(r"\bo (?=h?o)", "u ", text)
