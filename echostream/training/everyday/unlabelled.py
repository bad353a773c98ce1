"""Speech without text, of people, to distil an encoder on: what Debian packages of it.

Prompts of telephone systems, dialogue of a game, words that children's programs read out: French,
Italian, Russian, Czech, Dutch, a little Spanish and forty other languages. None of it is by the
speaker of the real recordings that are evaluated on: Debian's English prompts are, by the names of
their folders, and are left out.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from echostream.files import atomic_path
from echostream.training import data_folder
from echostream.training.everyday.debian import DebianPackage, fetch, read_files
from echostream.training.everyday.recordings import SAMPLE_RATE, decode

logger = logging.getLogger(__name__)

SHORTEST_S, LONGEST_S = 0.7, 15.0
TABLE = "sources.tsv"
STAMPS = DebianPackage(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
)
_FRAME = SAMPLE_RATE // 100
_EDGE_FRAMES = 12, 20  # kept before and behind what is loud
_QUIET = 0.02  # of the loudest, by RMS: an edge


@dataclass(frozen=True)
class Source:
    """One package.

    Attributes:
        wanted: pattern of the paths of sounds in which somebody speaks.
    """

    name: str
    package: DebianPackage
    licence: str
    wanted: str


def _asterisk(language: str, licence: str, sha256: str) -> Source:
    package = DebianPackage(f"asterisk-core-sounds-{language}-g722", "1.6.1-1", sha256)
    # Not tones, beeps, ringing and silence.
    wanted = r"/sounds/(?!.*(tone|beep|silence|ring)[^/]*$).*\.g722"
    return Source(f"asterisk-{language}", package, licence, wanted)


SOURCES = (
    _asterisk(
        "fr",
        "CC BY-SA 3.0",
        "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0",
    ),
    _asterisk(
        "it",
        "CC BY 3.0",
        "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016",
    ),
    _asterisk(
        "ru",
        "CC BY 3.0",
        "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b",
    ),
    Source(
        "armelle",
        DebianPackage(
            "asterisk-prompt-fr-armelle",
            "20070613-2.2",
            "162570b1a9b3512a98f06b89f60c7c17cf1b9b52297315adca9a4e5be728bea3",
        ),
        "BSD",
        r"/sounds/(?!.*(tone|beep|silence|ring)[^/]*$).*\.gsm",
    ),
    Source(
        "menardi",
        DebianPackage(
            "asterisk-prompt-it-menardi-wav",
            "1:1.4.22+mm20110907-3.1",
            "3094530d98f8758ac275572d59624c41f60969fef883f34f4886d144f3dfeb21",
        ),
        "CC BY-SA 3.0 IT",
        r"/sounds/(?!.*(tone|beep|silence|ring)[^/]*$).*\.wav",
    ),
    # Files with -x- are of machines, monsters and music.
    Source(
        "fillets-cs",
        DebianPackage(
            "fillets-ng-data-cs",
            "1.0.1-1.1",
            "3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14",
        ),
        "GPL-2",
        r"/sound/(?!.*(-x-|music)[^/]*$).*\.ogg",
    ),
    Source(
        "fillets-nl",
        DebianPackage(
            "fillets-ng-data-nl",
            "1.0.1-1.1",
            "afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10",
        ),
        "GPL-2",
        r"/sound/(?!.*(-x-|music)[^/]*$).*\.ogg",
    ),
    Source(
        "ktuberling",
        DebianPackage(
            "ktuberling-data",
            "4:22.12.3-1",
            "fba44c875bfa31ea488dadd9263e87a4dcaea0bd47d28817f6c0dc6d2af970ed",
        ),
        "GPL-2+",
        r"/sounds/.*\.(ogg|wav|opus)",
    ),
    Source(
        "klettres",
        DebianPackage(
            "klettres-data",
            "4:22.12.3-1",
            "1186d257a19e84230856baea0b0b1ded8be9195080fcdb2588970b5cd937f5a8",
        ),
        "GPL-2+",
        r"/(alpha|syllab)/[^/]*\.ogg",
    ),
    # Without _desc: the sound that the thing on the stamp makes.
    Source(
        "tuxpaint",
        STAMPS,
        "GPL-2",
        r"_desc[^/]*\.ogg",
    ),
)


def trim(samples: np.ndarray) -> np.ndarray:
    """A (T,) sound without the silence at its edges, but for a little; empty if all is silent."""
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)
    levels = np.sqrt(np.mean(np.square(frames), axis=1))
    # Not the very loudest, which may be a click.
    peak = np.percentile(levels, 98) if len(levels) else 0.0
    if peak < 1e-3:
        return samples[:0]
    loud = np.flatnonzero(levels > _QUIET * peak)
    first = max(0, loud[0] - _EDGE_FRAMES[0]) * _FRAME
    return samples[first : (loud[-1] + _EDGE_FRAMES[1]) * _FRAME]


def clips_of(samples: np.ndarray) -> list[np.ndarray]:
    """A recording in trimmed pieces of 0.7 to 15 s, none if it is shorter."""
    samples = trim(samples)
    parts = np.array_split(samples, max(1, -(-len(samples) // int(LONGEST_S * SAMPLE_RATE))))
    return [part for part in parts if len(part) >= SHORTEST_S * SAMPLE_RATE]


def decoded(files: dict[str, bytes]) -> Iterator[np.ndarray]:
    """The sounds of encoded files in the order of their names, each content once; what cannot be
    read is counted in a warning."""
    seen, unreadable = set(), 0
    for name in sorted(files):
        digest = hashlib.sha256(files[name]).digest()
        if digest in seen:
            continue
        seen.add(digest)
        suffix = name.rpartition(".")[2]
        try:
            yield decode(files[name], suffix if suffix in ("g722", "gsm") else None)
        except ValueError:
            unreadable += 1
    if unreadable:
        logger.warning("%d files could not be read", unreadable)


def make_speech(
    out: Path, packages: Path, sources: Sequence[Source] = SOURCES
) -> list[tuple[str, str, str, float]]:
    """Write ``SOURCE-NNNNN-PART.wav`` (mono, 16 kHz) and ``sources.tsv``.

    Args:
        packages: folder of the .deb files; what is missing is downloaded into it.

    Returns:
        Name, licence, clips and hours of every source. Those in the table are not made again.

    Raises:
        RuntimeError: a package cannot be fetched or read.
        ValueError: a package is not the pinned one.
    """
    table = out / TABLE
    rows = {}
    if table.is_file():
        lines = table.read_text(encoding="utf-8").splitlines()[1:]
        rows = {line.split("\t")[0]: tuple(line.split("\t")) for line in lines}
    for source in sources:
        if source.name in rows:
            continue
        wanted = re.compile(source.wanted)
        files = read_files(fetch(source.package, packages), wanted.search)
        count, total = 0, 0
        for number, samples in enumerate(decoded(files)):
            for part, clip in enumerate(clips_of(samples)):
                clip = clip / max(1.0, np.abs(clip).max())
                with atomic_path(out / f"{source.name}-{number:05d}-{part}.wav") as temporary:
                    soundfile.write(temporary, clip, SAMPLE_RATE, "PCM_16")
                count, total = count + 1, total + len(clip)
        hours = f"{total / SAMPLE_RATE / 3600:.3f}"
        rows[source.name] = (source.name, source.licence, str(count), hours)
        data_folder.write_table(table, ("source", "licence", "clips", "hours"), rows.values())
    return [(name, licence, clips, float(hours)) for name, licence, clips, hours in rows.values()]
