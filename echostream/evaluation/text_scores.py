"""Scores of texts against references, over a whole corpus.

To add one: a function and a line in :data:`TEXT_SCORES`. It is then a metric of SimulEval's
``--quality-metrics`` and of grids, a column of tables, and a figure that curves can show.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from echostream.text import edit_distance

Score = Callable[[list[str], list[str]], float]


@dataclass(frozen=True)
class TextScore:
    """A score of texts.

    Attributes:
        name: in options, CSV and JSON.
        heading: in tables and pictures.
        score: of texts against their references.
        if_reported: only of finished runs whose ``scores.tsv`` has it.
    """

    name: str
    heading: str
    score: Score
    if_reported: bool = False


def bleu(texts: list[str], references: list[str], tokenizer: str = "13a") -> float:
    """BLEU with sacrebleu's defaults."""
    import sacrebleu

    return sacrebleu.corpus_bleu(texts, [references], tokenize=tokenizer).score


def chrf(texts: list[str], references: list[str]) -> float:
    """Character n-gram F-score with sacrebleu's defaults (chrF2)."""
    import sacrebleu

    return sacrebleu.corpus_chrf(texts, [references]).score


def word_error_rate(texts: list[str], references: list[str]) -> float:
    """Errors over reference words of the whole corpus, percent; nan without reference words."""
    pairs = [(h.split(), r.split()) for h, r in zip(texts, references, strict=True)]
    words = sum(len(reference) for _, reference in pairs)
    if words == 0:
        return float("nan")
    return 100.0 * sum(edit_distance(h, r) for h, r in pairs) / words


def plain(text: str) -> str:
    """A text without case, punctuation and accents, words one space apart.

    Transcripts of real recordings are written by many hands, which differ in these.
    """
    letters = unicodedata.normalize("NFKD", text.lower())
    return " ".join(re.sub(r"[^\w\s]|_", "", re.sub(r"[-–—/]", " ", letters)).split())


def plain_word_error_rate(texts: list[str], references: list[str]) -> float:
    """:func:`word_error_rate` of :func:`plain` texts and references."""
    return word_error_rate(list(map(plain, texts)), list(map(plain, references)))


def plain_bleu(texts: list[str], references: list[str]) -> float:
    """:func:`bleu` of :func:`plain` texts and references."""
    return bleu(list(map(plain, texts)), list(map(plain, references)))


TEXT_SCORES = (
    TextScore("BLEU", "BLEU", bleu),
    TextScore("BLEU_PLAIN", "BLEU, plain", plain_bleu, if_reported=True),
    TextScore("CHRF", "chrF", chrf),
    TextScore("WER", "WER %", word_error_rate),
    TextScore("WER_PLAIN", "WER %, plain", plain_word_error_rate, if_reported=True),
)
