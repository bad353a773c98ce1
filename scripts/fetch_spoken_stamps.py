"""Fetch Spanish speech of people with its text and English: names of pictures.

    python scripts/fetch_spoken_stamps.py --out outputs/spoken-stamps

A Debian package of a pinned version (161 MB) is downloaded by apt-get from the system's package
sources into ``--packages``, or taken from there; nothing is installed. It is the one that
``fetch_unlabelled_speech.py`` reads too, so one folder of packages may serve both. OUT is a folder
of aligned speech for ``python -m echostream.training.warm_start.train``: ``--speech OUT`` and
``--more-texts OUT/translations.tsv``.

The licence is GPL-2; OUT/ATTRIBUTION.md says more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from echostream.training.everyday.spoken_stamps import make_spoken_stamps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--packages", type=Path, help="folder of the .deb file (default: packages/ in --out)"
    )
    args = parser.parse_args()
    try:
        stamps = make_spoken_stamps(args.out, args.packages or args.out / "packages")
    except (RuntimeError, ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    hours = sum(one.seconds for one in stamps) / 3600
    texts = len({one.spanish for one in stamps})
    print(f"{len(stamps)} clips, {texts} texts, {hours:.3f} h in {args.out}")


if __name__ == "__main__":
    main()
