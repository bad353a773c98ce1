"""Who says what: sentences of the corpus ``everyday`` with voices, accents and speeds.

Voices are Kokoro's. A third of the training sentences go to its three Spanish voices, the rest to
mixtures of these with voices of other languages, to such voices alone and to mixtures of two: many
speakers out of 54. Dev and test go to voices that training never hears, in no mixture.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from echostream.training.everyday.pairs import EverydayPair

NATIVE = ("ef_dora", "em_alex", "em_santa")
HELD_OUT = ("if_sara", "im_nicola", "pf_dora", "pm_alex", "pm_santa")
OTHERS = (
    *"af_alloy af_aoede af_bella af_heart af_jessica af_kore af_nicole af_nova af_river".split(),
    *"af_sarah af_sky am_adam am_echo am_eric am_fenrir am_liam am_michael am_onyx".split(),
    *"am_puck am_santa bf_alice bf_emma bf_isabella bf_lily bm_daniel bm_fable bm_george".split(),
    *"bm_lewis ff_siwis hf_alpha hf_beta hm_omega hm_psi jf_alpha jf_gongitsune".split(),
    *"jf_nezumi jf_tebukuro jm_kumo zf_xiaobei zf_xiaoni zf_xiaoxiao zf_xiaoyi".split(),
    *"zm_yunjian zm_yunxi zm_yunxia zm_yunyang".split(),
)
ACCENTS = ("es", "es", "es-419")  # espeak-ng's names; the sounds of Spain twice
SPEEDS, HELD_OUT_SPEEDS = (0.85, 1.2), (0.9, 1.15)
# Of training sentences: chats, catalogues; the rest is echo-mini's.
CHAT_SHARE, CATALOGUE_SHARE = 0.62, 0.25


@dataclass(frozen=True)
class Sizes:
    """Sentences of each split to be spoken."""

    train: int = 12000
    dev: int = 60
    test: int = 200

    def __post_init__(self) -> None:
        if min(self.train, self.dev, self.test) < 1:
            raise ValueError(f"sizes must be positive, got {self}")


@dataclass(frozen=True)
class Line:
    """One sentence to speak.

    Attributes:
        voice: a name, or a mixture, ``ef_dora*0.6+af_bella*0.4``.
        accent: of espeak-ng, which reads the text.
    """

    id: str
    accent: str
    voice: str
    speed: float
    spanish: str
    english: str

    def to_speak(self) -> str:
        """The line of the list that the synthesiser reads."""
        return f"{self.id}\t{self.accent}\t{self.voice}\t{self.speed:.2f}\t{self.spanish}"

    def translation(self) -> str:
        """The line of the table of texts."""
        return f"{self.id}\t{self.spanish}\t{self.english}"


def plan_lines(
    chats: Mapping[str, Sequence[EverydayPair]],
    catalogues: Sequence[tuple[str, str]],
    mini: Sequence[tuple[str, str]],
    sizes: Sizes,
    seed: int,
) -> list[Line]:
    """Dev, test, then training lines; another ``sizes.train`` gives other voices.

    Args:
        chats: pairs by split.
        catalogues, mini: more Spanish and English sentences, for training.

    Raises:
        ValueError: there are fewer sentences than lines.
    """
    rng = random.Random(seed)
    train = [
        [(pair.spanish, pair.english) for pair in chats["train"]],
        list(catalogues),
        list(mini),
    ]
    for sentences in train:
        rng.shuffle(sentences)

    def line(name: str, texts: tuple[str, str], voice: str, speed: float) -> Line:
        return Line(name, rng.choice(ACCENTS), voice, speed, *texts)

    lines = []
    for split in ("dev", "test"):
        count = getattr(sizes, split)
        _require(split, len(chats[split]), count)
        for number, pair in enumerate(chats[split][:count]):
            voice = HELD_OUT[number % len(HELD_OUT)]
            speed = rng.uniform(*HELD_OUT_SPEEDS)
            lines.append(line(f"{split}_{number:05d}", (pair.spanish, pair.english), voice, speed))
    drawn = []
    for _ in range(sizes.train):
        share = rng.random()
        bounds = (CHAT_SHARE, CHAT_SHARE + CATALOGUE_SHARE, 1.0)
        kind = next(number for number, bound in enumerate(bounds) if share < bound)
        _require("train", len(train[kind]), 1)
        drawn.append(train[kind].pop())
    for number, texts in enumerate(drawn):
        voice = draw_voice(rng)
        speed = min(SPEEDS[1], max(SPEEDS[0], rng.gauss(1.0, 0.1)))
        lines.append(line(f"train_{number:05d}", texts, voice, speed))
    return lines


def _require(split: str, found: int, wanted: int) -> None:
    if found < wanted:
        raise ValueError(
            f"{split}: {wanted} more sentences are wanted, but only {found} are there; "
            "give more pairs or ask for fewer lines"
        )


def draw_voice(rng: random.Random) -> str:
    """A voice of training: Spanish, Spanish mixed with another, another, or two others mixed."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(NATIVE)
    if kind < 0.75:
        share = rng.choice((0.4, 0.5, 0.6, 0.7))
        return f"{rng.choice(NATIVE)}*{share:.1f}+{rng.choice(OTHERS)}*{1 - share:.1f}"
    if kind < 0.9:
        return rng.choice(OTHERS)
    share = rng.choice((0.4, 0.5, 0.6))
    first, second = rng.sample(OTHERS, 2)
    return f"{first}*{share:.1f}+{second}*{1 - share:.1f}"
