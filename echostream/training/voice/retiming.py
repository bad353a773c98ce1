"""Aligned speech as it would be said if its words came when a policy writes them.

A policy writes some words (a *piece*), and after a while the next ones. Said at their natural
lengths, they often end before there is more. A speaker who waits for the next word holds the last
one: its vowels above all, then what follows the last of them, no stop consonant, while pitch falls
a little (lengthening before a border: Turk and Shattuck-Hufnagel, 2007). Here aligned speech is
re-timed so, for the prosody network to learn what it is to do where its text breaks off.

Whether a silence follows a piece depends on the source, which the network does not see, and of what
it cannot tell it learns the median. So pieces that no silence follows are not there to be learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from echostream.config.checks import require
from echostream.training.corpus.synthesis import generator_for
from echostream.training.voice.material import FRAME_MS, Utterance
from echostream.training.voice.policy_pieces import Piece, PolicyPieces
from echostream.voice.phone_units import START, symbol_pitch
from echostream.voice.streaming_voice import LONGEST_START_FRAMES

VOWELS = frozenset("AIOQWYaeiouæɑɒɔəɛɜɪʊʌᵊᵻ")
# Consonants that can be held: nasals, liquids and fricatives.
CONTINUANTS = frozenset("lmnŋɹszʃʒfvθð")
SEMITONE = log(2) / 12


@dataclass(frozen=True)
class RetimingConfig:
    """How far speech is held.

    Attributes:
        policy: fingerprint of its pieces.
        share: of the parts that training cuts out of utterances: so many are pieces of the policy.
        vowel_factor, vowel_ms: a vowel lasts at most so many times as long, and so much longer.
        consonant_factor: of consonants behind the last vowel that can be held.
        word_factor: of the whole word.
        fall: of the pitch while it is held, semitones a second.
    """

    policy: str
    share: float = 1.0
    vowel_factor: float = 2.5
    vowel_ms: float = 200.0
    consonant_factor: float = 1.5
    word_factor: float = 1.6
    fall: float = 2.0

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, f"retiming: share must be in (0, 1], got {self.share}")
        for name in ("vowel_factor", "consonant_factor", "word_factor"):
            value = getattr(self, name)
            require(value >= 1, f"retiming: {name} must be at least 1, got {value}")
        for name in ("vowel_ms", "fall"):
            value = getattr(self, name)
            require(value >= 0, f"retiming: {name} must not be negative, got {value}")


@dataclass(frozen=True)
class Retimed:
    """An utterance of N symbols in P pieces.

    Attributes:
        frames: (N,) how long each symbol lasts.
        log_pitch: (N,) mean log pitch of each.
        voiced: (N,) voiced frames of each.
        borders: (P + 1,) where pieces begin; the last is N.
        held: which pieces were held.
    """

    frames: np.ndarray
    log_pitch: np.ndarray
    voiced: np.ndarray
    borders: tuple[int, ...]
    held: tuple[int, ...]


def word_borders(symbols: str) -> list[int]:
    """Where the W words of a phonemic text begin, with the space before each; the last of the W + 1
    places is its end. Marks and ends of the sentence belong to the word beside them."""
    spaces = [place for place, symbol in enumerate(symbols) if symbol == " "]
    begins, seen = [], False
    for begin, end in zip([0, *spaces], [*spaces, len(symbols)], strict=True):
        if _has_letter(symbols[begin:end]):
            begins.append(begin if seen else 0)
            seen = True
    return [*(begins or [0]), len(symbols)]


def _has_letter(symbols: str) -> bool:
    return any(symbol.isalpha() for symbol in symbols)


def retime_utterance(
    utterance: Utterance, policy: PolicyPieces, config: RetimingConfig, seed: int
) -> Retimed:
    """An utterance in the pieces in which a policy may write it, which depend on seed and id."""
    words = len(word_borders(utterance.symbols)) - 1
    pieces = policy.of(utterance.text, words, generator_for(seed, "policy", utterance.id))
    pitch, voiced = symbol_pitch(utterance.f0, utterance.frames)
    return retime(utterance.symbols, utterance.frames, pitch, voiced, pieces, config)


def held(symbols: str, frames: np.ndarray, missing: int, config: RetimingConfig) -> np.ndarray:
    """Frames that are added to each symbol of a word.

    Args:
        symbols: the N of the word.
        frames: (N,) their natural lengths.
        missing: frames until there is more to say.

    Returns:
        (N,) whole numbers; they sum to ``missing`` or to what the limits allow.
    """
    added = np.zeros(len(symbols), dtype=np.int64)
    vowels = [place for place, symbol in enumerate(symbols) if symbol in VOWELS]
    if not vowels:
        return added
    behind = [p for p in range(vowels[-1] + 1, len(symbols)) if symbols[p] in CONTINUANTS]
    room = min(missing, int(frames.sum() * (config.word_factor - 1)))
    for places, factor in ((vowels[::-1], config.vowel_factor), (behind, config.consonant_factor)):
        for place in places:
            most = min(int(frames[place] * (factor - 1)), int(config.vowel_ms / FRAME_MS))
            added[place] = max(min(most, room), 0)
            room -= int(added[place])
    return added


def retime(
    symbols: str,
    frames: np.ndarray,
    log_pitch: np.ndarray,
    voiced: np.ndarray,
    pieces: Sequence[Piece],
    config: RetimingConfig,
) -> Retimed:
    """Hold the last word of each piece until the next piece is there, as far as the limits allow.

    What is still missing is silence between pieces, which no symbol has.

    Args:
        symbols: N, with both ends of the sentence.
        frames, log_pitch, voiced: (N,) of each.
        pieces: their words are those of :func:`word_borders`.

    Raises:
        ValueError: the pieces have more or fewer words.
    """
    words = word_borders(symbols)
    if sum(piece.words for piece in pieces) != len(words) - 1:
        raise ValueError(
            f"pieces must have the {len(words) - 1} words of {symbols!r}, "
            f"got {[piece.words for piece in pieces]}"
        )
    added = np.zeros(len(symbols), dtype=np.int64)
    borders, said = [0], 0
    longer = []  # pieces
    there = end = 0.0  # when a piece is there, and when it has been said; in frames
    for piece in pieces:
        said += piece.words
        begin, border = borders[-1], words[said]
        borders.append(border)
        natural = frames[begin:border].sum()
        if symbols[begin] == START:  # speaking cuts the pause before a sentence short
            natural -= max(frames[begin] - LONGEST_START_FRAMES, 0)
        end = max(there, end) + natural
        if piece.gap_ms is None:
            continue
        there += piece.gap_ms / FRAME_MS
        last = slice(words[said - 1], border)
        added[last] = held(symbols[last], frames[last], int(there - end), config)
        end += added[last].sum()
        if added[last].any():
            longer.append(len(borders) - 2)
    falling = SEMITONE * config.fall * FRAME_MS / 1000 * added / 2  # its mean while it is held
    total = frames + added
    return Retimed(
        total,
        log_pitch - falling * added / np.maximum(total, 1),
        voiced + np.where(voiced > 0, added, 0),
        tuple(borders),
        tuple(longer),
    )
