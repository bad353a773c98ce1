"""Fetch speech without text, of people, to distil an encoder on.

    python scripts/fetch_unlabelled_speech.py --out outputs/unlabelled

Debian packages of pinned versions (400 MB) are downloaded by apt-get from the system's package
sources into ``--packages``, or taken from there; nothing is installed. Licences differ by source
and stand in OUT/sources.tsv. Sources that are finished are not made again.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from echostream.training.everyday.unlabelled import SOURCES, make_speech


def main() -> None:
    names = [source.name for source in SOURCES]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--packages", type=Path, help="folder of the .deb files (default: packages/ in --out)"
    )
    parser.add_argument("--sources", nargs="*", choices=names, default=names, help="of which")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    chosen = [source for source in SOURCES if source.name in args.sources]
    try:
        rows = make_speech(args.out, args.packages or args.out / "packages", chosen)
    except (RuntimeError, ValueError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    for name, licence, clips, hours in rows:
        print(f"{name:12} {clips:>6} clips {hours:7.3f} h  {licence}")
    print(f"{sum(hours for *_, hours in rows):.2f} h in {args.out}")


if __name__ == "__main__":
    main()
