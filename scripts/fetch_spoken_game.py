"""Fetch Spanish speech of actors with its text and English: the dialogue of an adventure game.

    python scripts/fetch_spoken_game.py --out outputs/spoken-game \\
        --accents-from outputs/everyday/texts/train.tsv

Two Debian packages of pinned versions (40 MB) are downloaded by apt-get from the system's package
sources into ``--packages``, or taken from there; nothing is installed. OUT is a folder of aligned
speech for ``python -m echostream.training.warm_start.train``: ``--speech OUT``,
``--more-texts OUT/translations.tsv``, and ``--held-out OUT/dev.tsv``, two roles that training does
not hear.

The game writes in capitals and without accents. With ``--accents-from`` each word gets the spelling
that is most frequent in those texts. That is a guess by frequency, which knows no context: of
"que" and "qué" it takes the same everywhere. Without it the texts stay without accents.

The licence lets the game be passed on with its notices, not sold by itself; OUT/ATTRIBUTION.md says
more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from echostream.training.everyday.spoken_game import HELD_OUT, ROLES, make_spoken_game


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--packages", type=Path, help="folder of the .deb files (default: packages/ in --out)"
    )
    parser.add_argument(
        "--accents-from",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="Spanish texts, one a line, in the first column or behind an id, whose most frequent "
        "spelling of each word is taken (default: no accents)",
    )
    args = parser.parse_args()
    try:
        found = make_spoken_game(
            args.out, args.packages or args.out / "packages", args.accents_from
        )
    except (RuntimeError, ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    for role, (count, hours) in found.items():
        note = "  held out" if role in HELD_OUT else ""
        print(f"{ROLES[role]:14} {count:>4} clips {hours * 60:6.2f} min{note}")
    for what, roles in (
        ("to train on", found.keys() - set(HELD_OUT)),
        ("held out", set(HELD_OUT)),
    ):
        count, hours = (sum(found[role][n] for role in roles) for n in (0, 1))
        print(f"{what}: {count:.0f} clips, {hours:.3f} h in {args.out}")


if __name__ == "__main__":
    main()
