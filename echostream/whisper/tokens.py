"""Whisper's byte-level subwords, cut to what a target language needs.

Whisper's vocabulary serves 99 languages: half of a small model's weights are its embeddings. Of
them those are kept that occur in sample texts, and every printable ASCII character, so that any
text can be spelled, also at the start of a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from echostream.text import SPECIALS, WORD_START

PROMPT = ("<|startoftranscript|>", "<|{language}|>", "<|{task}|>", "<|notimestamps|>")
END = "<|endoftext|>"
BYTE_SPACE = "\u0120"  # how byte-level subwords write a space
_PLAIN = "!-~"  # printable ASCII
# Beside them, by language of a transcript. A letter that Whisper has no subword of is left out.
LETTERS = {"es": "áéíóúüñÁÉÍÓÚÜÑ¿¡"}


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``, or that of a folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a tokenizer.
    """
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no such tokenizer: {path}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{path}: not a tokenizer: {error}") from error


def tokenize(tokenizer: Tokenizer, text: str) -> list[int]:
    """Whisper's tokens of a text alone; a sentence begins with a space."""
    return tokenizer.encode(" " + " ".join(text.split()), add_special_tokens=False).ids


@dataclass(frozen=True)
class CutVocabulary:
    """A part of Whisper's vocabulary.

    Attributes:
        pieces: behind the four special symbols, as :class:`echostream.text.Vocabulary` takes them;
            the prompt's tokens are the last.
        origins: Whisper's token of each id, special symbols included; -1 where it has none.
        prompt: ids of the tokens that a sentence starts with.
    """

    pieces: tuple[str, ...]
    origins: tuple[int, ...]
    prompt: tuple[int, ...]

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        texts: Iterable[str],
        *,
        language: str,
        task: str = "translate",
        least: int = 1,
        letters: str = "",
    ) -> CutVocabulary:
        """What ``texts`` in the language that is written need.

        Args:
            language: of the speech, as Whisper abbreviates it.
            task: ``translate`` (to English) or ``transcribe``.
            least: how often a subword must occur.
            letters: that it may hold beside printable ASCII characters.

        Raises:
            ValueError: the tokenizer does not know a token of the prompt.
        """
        counts = Counter(token for text in texts for token in tokenize(tokenizer, text))
        used = {token for token, count in counts.items() if count >= least}
        vocabulary = tokenizer.get_vocab()
        characters = [chr(code) for code in range(33, 127)]
        starts = [BYTE_SPACE + letter for letter in characters]
        used.update(vocabulary[name] for name in (*characters, *starts) if name in vocabulary)
        for letter in (*letters, *(" " + letter for letter in letters)):
            # Of two bytes, which are one subword or two.
            found = tokenizer.encode(letter, add_special_tokens=False).ids
            used.update(found if len(found) == 1 else ())
        plain = re.compile(rf"\s?[{_PLAIN}{re.escape(letters)}]+")
        kept = []
        if any(name not in vocabulary for name in starts):
            # A word may begin with a letter that no subword begins with.
            kept.append((WORD_START, vocabulary[BYTE_SPACE]))
        for token in sorted(used):
            surface = tokenizer.decode([token])
            if plain.fullmatch(surface):
                kept.append((_as_piece(surface), token))
        names = [part.format(language=language, task=task) for part in PROMPT]
        known = {name: _special(tokenizer, name) for name in (*names, END)}
        return cls._joined(kept, known)

    @classmethod
    def of_pieces(
        cls, tokenizer: Tokenizer, pieces: Sequence[str], prompt: Sequence[int]
    ) -> CutVocabulary:
        """That of a model which started from this Whisper.

        Args:
            pieces: its vocabulary, special symbols included.
            prompt: ids of the tokens that its sentences start with.

        Raises:
            ValueError: the tokenizer does not know a piece.
        """
        known: dict[str, int] = {}
        for token in range(tokenizer.get_vocab_size()):
            known.setdefault(_as_piece(tokenizer.decode([token])), token)
        known[WORD_START] = tokenizer.get_vocab()[BYTE_SPACE]
        names = [pieces[index] for index in prompt]
        for name in (*names, END):
            known[name] = _special(tokenizer, name)
        kept = []
        for piece in pieces[len(SPECIALS) : len(pieces) - len(names)]:
            if piece not in known:
                raise ValueError(f"the tokenizer does not know {piece!r}")
            kept.append((piece, known[piece]))
        return cls._joined(kept, {name: known[name] for name in (*names, END)})

    @classmethod
    def _joined(cls, kept: Sequence[tuple[str, int]], special: Mapping[str, int]) -> CutVocabulary:
        """Pieces and their tokens; then those of the prompt, and the end."""
        names = [name for name in special if name != END]
        first = len(SPECIALS) + len(kept)
        return cls(
            (*(piece for piece, _ in kept), *names),
            (
                -1,
                -1,
                special[END],
                -1,
                *(token for _, token in kept),
                *(special[name] for name in names),
            ),
            tuple(range(first, first + len(names))),
        )


def _as_piece(surface: str) -> str:
    return re.sub(r"^\s", WORD_START, surface)


def _special(tokenizer: Tokenizer, name: str) -> int:
    token = tokenizer.token_to_id(name)
    if token is None:
        raise ValueError(f"the tokenizer does not know {name}")
    return token


class CutTokenizer:
    """Text to ids of a :class:`CutVocabulary`.

    Args:
        tokenizer: Whisper's.
        vocabulary: the part of it that is kept.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: CutVocabulary) -> None:
        self.tokenizer = tokenizer
        self.ids = {origin: index for index, origin in enumerate(vocabulary.origins) if origin >= 0}
        self.characters = {
            piece: index
            for index, piece in enumerate(vocabulary.pieces, start=len(SPECIALS))
            if len(piece.removeprefix(WORD_START)) <= 1
        }

    def encode(self, text: str) -> list[int]:
        """Ids of a text; subwords that were cut are spelled, characters that the vocabulary lacks
        left out."""
        found: list[int] = []
        for token in tokenize(self.tokenizer, text):
            if token in self.ids:
                found.append(self.ids[token])
            else:
                found += self._spelled(self.tokenizer.decode([token]))
        return found

    def _spelled(self, surface: str) -> Sequence[int]:
        word = surface.strip()
        pieces = [WORD_START + word[:1], *word[1:]] if surface != word else list(word)
        if pieces and pieces[0] not in self.characters:
            pieces[:1] = list(pieces[0])
        return [self.characters[piece] for piece in pieces if piece in self.characters]
