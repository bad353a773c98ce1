"""English as it is written to English as it is said: numbers, money, dates, times, units.

Numbers become words by num2words. What is neither a number nor a sign with a name stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from num2words import num2words

_SIGNS = {
    "&": " and ",
    "%": " percent ",
    "@": " at ",
    "+": " plus ",
    "=": " equals ",
    "#": " number ",
}
_MONEY = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "pence")}
_SCALES = ("thousand", "million", "billion", "trillion")
_UNITS = {
    "km": "kilometer",
    "cm": "centimeter",
    "mm": "millimeter",
    "m": "meter",
    "kg": "kilogram",
    "g": "gram",
    "mi": "mile",
    "ft": "foot",
    "lb": "pound",
    "lbs": "pound",
    "ml": "milliliter",
    "l": "liter",
    "h": "hour",
    "min": "minute",
    "s": "second",
    "ms": "millisecond",
    "mph": "mile per hour",
    "GB": "gigabyte",
    "MB": "megabyte",
}
_PLURALS = {"foot": "feet", "mile per hour": "miles per hour"}
_ABBREVIATIONS = {
    "Mr": "Mister",
    "Mrs": "Missus",
    "Ms": "Miz",
    "Dr": "Doctor",
    "St": "Saint",
    "Prof": "Professor",
    "vs": "versus",
    "etc": "et cetera",
    "e.g": "for example",
    "i.e": "that is",
    "No": "number",
}
ABBREVIATION = re.compile(r"\W*(?:Mr|Mrs|Ms|Dr|St|Prof|vs|etc|e\.g|i\.e)\.", re.IGNORECASE)
_MONTHS = (
    "January|February|March|April|May|June|July|August|September|October|November|December|"
    "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec"
)
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_Rule = Callable[[re.Match[str]], str]
_RULES: list[tuple[re.Pattern[str], _Rule]] = []
LONGEST_INTEGER = 15  # digits; longer ones are read digit by digit, as are numbers with leading 0


def _rule(pattern: str) -> Callable[[_Rule], _Rule]:
    def remember(function: _Rule) -> _Rule:
        _RULES.append((re.compile(pattern), function))
        return function

    return remember


def cardinal(digits: str) -> str:
    """``1,234.50`` to words; leading zeros and very long numbers digit by digit."""
    digits = digits.replace(",", "")
    whole, dot, part = digits.partition(".")
    if len(whole) > LONGEST_INTEGER or (len(whole) > 1 and whole.startswith("0")):
        words = spelled(whole)
    else:
        words = num2words(int(whole)).replace(",", "").replace("-", " ")
    return f"{words} point {spelled(part)}" if dot else words


def spelled(digits: str) -> str:
    """Digit by digit."""
    return " ".join(num2words(int(digit)) for digit in digits)


def ordinal(number: int) -> str:
    return num2words(number, to="ordinal").replace(",", "").replace("-", " ")


def year(number: int) -> str:
    return num2words(number, to="year").replace(",", "").replace("-", " ")


@_rule(r"\b(Mr|Mrs|Ms|Dr|St|Prof|vs|etc|e\.g|i\.e)\.")
def _abbreviation(match: re.Match[str]) -> str:
    return _ABBREVIATIONS[match[1]]


@_rule(r"\bNo\. ?(?=\d)")
def _numbered(match: re.Match[str]) -> str:
    return _ABBREVIATIONS["No"] + " "


@_rule(r"\b(\d{3})-(\d{4})\b|\b(\d{3})-(\d{3})-(\d{4})\b")
def _telephone(match: re.Match[str]) -> str:
    return ", ".join(spelled(part) for part in match.groups() if part)


@_rule(rf"([$€£])\s?({_NUMBER})(?:\s?({'|'.join(_SCALES)})\b)?")
def _money(match: re.Match[str]) -> str:
    whole, cents = _MONEY[match[1]]
    amount = match[2].replace(",", "")
    if match[3]:
        return f"{cardinal(amount)} {match[3]} {whole}s"
    units, dot, part = amount.partition(".")
    words = f"{cardinal(units)} {whole}{'' if units == '1' else 's'}"
    if not dot or len(part) > 2:
        return words if not dot else f"{cardinal(amount)} {whole}s"
    count = int(part.ljust(2, "0"))
    if not count:
        return words
    small = cents if cents == "pence" or count == 1 else f"{cents}s"
    said = f"{cardinal(str(count))} {small}"
    return said if units == "0" else f"{words} and {said}"


@_rule(r"\b(\d{1,2}):(\d{2})(?::\d{2})?(?:\s?([ap])\.?m\b\.?)?")
def _time(match: re.Match[str]) -> str:
    hour, minute = int(match[1]), int(match[2])
    if hour > 24 or minute > 59:
        return match[0]
    words = [cardinal(str(hour))]
    if minute:
        words.append(cardinal(str(minute)) if minute > 9 else f"oh {cardinal(str(minute))}")
    elif not match[3]:
        words.append("o'clock" if 0 < hour <= 12 else "hundred")
    return " ".join([*words, *([f"{match[3]} m"] if match[3] else [])])


@_rule(r"\b(\d{1,2})\s?([ap])\.?m\b\.?")
def _hour(match: re.Match[str]) -> str:
    return f"{cardinal(match[1])} {match[2]} m"


@_rule(rf"\b({_MONTHS})\.? (\d{{1,2}})(?:st|nd|rd|th)?\b(?:,? (\d{{4}})\b)?")
def _date(match: re.Match[str]) -> str:
    said = f"{match[1]} {ordinal(int(match[2]))}"
    return f"{said}, {year(int(match[3]))}" if match[3] else said


@_rule(r"\b(\d+)(?:st|nd|rd|th)\b")
def _ordinal(match: re.Match[str]) -> str:
    return ordinal(int(match[1]))


@_rule(r"\b(1[1-9]|20)(\d)0s\b")
def _decade(match: re.Match[str]) -> str:
    said = year(int(f"{match[1]}{match[2]}0"))
    return re.sub(r"y$", "ies", said) if said.endswith("y") else f"{said}s"


@_rule(rf"(?<![\w.])({_NUMBER})\s?({'|'.join(sorted(_UNITS, key=len, reverse=True))})\b")
def _measure(match: re.Match[str]) -> str:
    unit = _UNITS[match[2]]
    many = _PLURALS.get(unit, f"{unit}s")
    return f"{cardinal(match[1])} {unit if match[1] == '1' else many}"


@_rule(r"\b(1[1-9]\d{2}|20[0-9]{2})\b(?![,.]?\d)")
def _year(match: re.Match[str]) -> str:
    return year(int(match[1]))


@_rule(r"\b(\d+)/(\d+)\b")
def _fraction(match: re.Match[str]) -> str:
    above, below = int(match[1]), int(match[2])
    if not 1 < below <= 20:
        return f"{cardinal(match[1])} over {cardinal(match[2])}"
    named = {2: "half", 4: "quarter"}.get(below, ordinal(below))
    many = "halves" if below == 2 else f"{named}s"
    return f"{cardinal(match[1])} {named if above == 1 else many}"


@_rule(rf"(?<=\d)\s?[-\u2013]\s?(?={_NUMBER})")
def _range(match: re.Match[str]) -> str:
    return " to "


@_rule(rf"(?:(?<=\s)|^)[-\u2212](?=(?:{_NUMBER}))")
def _minus(match: re.Match[str]) -> str:
    return "minus "


@_rule(rf"{_NUMBER}")
def _cardinal(match: re.Match[str]) -> str:
    return cardinal(match[0])


def spoken_text(text: str) -> str:
    """Write out what is not written as it is said.

    Args:
        text: English; any white space counts as one space.
    """
    text = " ".join(text.replace("\u2019", "'").split())
    text = re.sub(r"(?<=[A-Za-z])(?=\d)", " ", text)
    for pattern, function in _RULES:
        text = pattern.sub(function, text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    text = re.sub(r"(?<=\d)(?=[a-z])", " ", text)
    return re.sub(r" (?=[,.;:!?])", "", " ".join(text.split()))
