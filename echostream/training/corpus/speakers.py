"""The synthetic speakers: espeak-ng voices, variants, pitch and rate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

TABLE = "speakers.tsv"


@dataclass(frozen=True)
class Speaker:
    """One source speaker.

    Attributes:
        voice: espeak-ng voice with its variant, as "es-419+f2".
        pitch: 0 to 99.
        rate_wpm: words per minute.
        split: the only split in which the speaker speaks.
    """

    id: str
    split: str
    voice: str
    pitch: int
    rate_wpm: int


@cache
def load_speakers() -> tuple[Speaker, ...]:
    """Read the speaker table.

    Raises:
        ValueError: a malformed line, named by number, or an id twice.
    """
    table = files("echostream.training.corpus") / "data" / TABLE
    speakers: dict[str, Speaker] = {}
    for number, line in enumerate(table.read_text("utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        try:
            name, split, voice, pitch, rate = line.split("\t")
            speaker = Speaker(name, split, voice, int(pitch), int(rate))
        except ValueError as error:
            raise ValueError(f"{TABLE}:{number}: malformed line: {error}") from error
        if name in speakers:
            raise ValueError(f"{TABLE}:{number}: speaker {name!r} occurs twice")
        speakers[name] = speaker
    return tuple(speakers.values())


def speakers_of(split: str) -> tuple[Speaker, ...]:
    """Speakers of one split."""
    found = tuple(speaker for speaker in load_speakers() if speaker.split == split)
    if not found:
        raise ValueError(f"no speaker belongs to split {split!r}")
    return found


def speaker(name: str) -> Speaker:
    """A speaker by id."""
    for candidate in load_speakers():
        if candidate.id == name:
            return candidate
    raise ValueError(f"no such speaker: {name!r}; there are {len(load_speakers())}")
