"""Fetch recordings of a real speaker to evaluate on: 216 Spanish telephone prompts, with English.

    python scripts/fetch_real_recordings.py --out outputs/real-recordings
    echostream evaluate eval_configs/grids/real-recordings.yaml
    python scripts/fetch_real_recordings.py --demo data/everyday/real    the twelve that ship

Debian packages of pinned versions (13 MB) are downloaded by apt-get from the system's package
sources into ``--packages``, or taken from there; nothing is installed. CC BY-SA 3.0: the folder
says whom to name. For evaluation only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from echostream.training.everyday.recordings import make_demo, make_recordings

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="folder to write")
    what.add_argument("--demo", type=Path, help="folder for the recordings that ship")
    parser.add_argument(
        "--packages",
        type=Path,
        help="folder of the .deb files (default: packages/ in --out or outputs/)",
    )
    args = parser.parse_args()
    try:
        if args.demo is not None:
            packages = args.packages or ROOT / "outputs" / "packages"
            prompts = make_demo(args.demo, ROOT, packages)
        else:
            prompts = make_recordings(args.out, args.packages or args.out / "packages")
    except (RuntimeError, ValueError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    print(f"{len(prompts)} prompts in {args.out or args.demo}")


if __name__ == "__main__":
    main()
