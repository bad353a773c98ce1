"""What was said, as subtitles and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from echostream.translator.stream import Decision

SHORTEST_MS = 2000


@dataclass
class Caption:
    """One sentence.

    Attributes:
        from_ms, to_ms: source consumed when its first and its last translated word (of a
            recognition: word) came.
        transcript, translation: words.
    """

    from_ms: float
    to_ms: float
    transcript: list[str] = field(default_factory=list)
    translation: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(self.translation or self.transcript)


class Captions:
    """Collects decisions sentence by sentence."""

    def __init__(self) -> None:
        self._sentences: dict[int, Caption] = {}

    def add(self, output: Decision) -> None:
        words = output.translation or output.transcript
        if not words:
            return
        now_ms = output.source_ms
        caption = self._sentences.setdefault(output.sentence, Caption(now_ms, now_ms))
        if output.translation and not caption.translation:
            caption.from_ms = now_ms
        caption.transcript += output.transcript
        caption.translation += output.translation
        caption.to_ms = now_ms

    @property
    def sentences(self) -> list[Caption]:
        return [self._sentences[index] for index in sorted(self._sentences)]

    def srt(self) -> str:
        """SubRip: a sentence is shown from its first word to its last, two seconds at least."""
        blocks = []
        for number, caption in enumerate(self.sentences, start=1):
            end_ms = max(caption.to_ms, caption.from_ms + SHORTEST_MS)
            times = f"{clock(caption.from_ms)} --> {clock(end_ms)}"
            blocks.append(f"{number}\n{times}\n{caption.text}\n")
        return "\n".join(blocks)

    def to_dicts(self) -> list[dict[str, Any]]:
        return [asdict(caption) for caption in self.sentences]


def clock(ms: float) -> str:
    """``HH:MM:SS,mmm``."""
    seconds, rest = divmod(int(ms), 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d},{rest:03d}"


def show_words(output: Decision) -> list[str]:
    """Lines for a terminal: what a decision completed."""
    pairs: Sequence[tuple[str, Sequence[str]]] = (
        ("transcript", output.transcript),
        ("translation", output.translation),
    )
    seconds = output.source_ms / 1000
    return [f"{seconds:7.2f} s  {label:11s} {' '.join(words)}" for label, words in pairs if words]
