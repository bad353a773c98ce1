"""Small letters and accents for texts that have neither, as old programs wrote them.

Both are guesses. Each word gets the accents that it has most often in other texts, whatever stands
around it: ``QUE`` becomes "que" everywhere, "qué" nowhere. Capitals are put at the beginning of
sentences and of names that are given.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from echostream.text import read_lines

_WORD = re.compile(r"[^\W\d_]+")
_ID = re.compile(r"(train|dev|test)_\S+")
# Not of ñ, a letter of its own, which such programs have.
_NO_ACCENTS = str.maketrans("áéíóúü", "aeiouu")
# Behind three dots a sentence mostly goes on.
_BEGINNING = re.compile(r"(?:^|(?<!\.\.)[.!?][\"»]?\s+)[¿¡\"«]*[^\W\d_]")


def read_texts(paths: Iterable[Path]) -> list[str]:
    """Texts of files, one a line: the first column, or the second one behind an id.

    So plain texts, pairs, and tables as training reads them all serve. Ids begin with ``train_``,
    ``dev_`` or ``test_``.

    Raises:
        ValueError: not UTF-8.
        FileNotFoundError: no such file.
    """
    texts = []
    for path in paths:
        for line in read_lines(path, "file of Spanish texts"):
            first, *others = line.split("\t")
            texts.append(others[0] if others and _ID.fullmatch(first) else first)
    return texts


def count_spellings(texts: Iterable[str]) -> dict[str, str]:
    """The most frequent spelling of each word by the word without accents, in small letters.

    Of spellings that are as frequent the one that came first is taken.
    """
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    found: dict[str, str] = {}
    for word, _ in counts.most_common():
        found.setdefault(word.translate(_NO_ACCENTS), word)
    return found


def with_accents(text: str, spellings: Mapping[str, str]) -> str:
    """A text in small letters with the accents of known words that have none in it."""
    return _WORD.sub(lambda match: spellings.get(match[0], match[0]), text)


def in_sentences(text: str, names: Sequence[str] = ()) -> str:
    """A text in small letters with those capitals that are sure, and something at its end."""
    text = _BEGINNING.sub(lambda match: match[0][:-1] + match[0][-1].upper(), text)
    for name in names:
        text = re.sub(rf"\b{re.escape(name)}\b", name, text, flags=re.IGNORECASE)
    return text if not text or text[-1] in ".!?\"'»:;," else f"{text}."
