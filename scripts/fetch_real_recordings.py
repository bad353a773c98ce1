"""Fetch recordings of a real speaker to evaluate on: 216 Spanish telephone prompts, with English.

    python scripts/fetch_real_recordings.py --out outputs/real-recordings
    echostream evaluate eval_configs/grids/real-recordings.yaml

Debian packages of pinned versions (13 MB) are downloaded by apt-get from the system's package
sources into ``--packages``, or taken from there; nothing is installed. CC BY-SA 3.0: the folder
says whom to name. For evaluation only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from echostream.training.everyday.recordings import make_recordings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--packages", type=Path, help="folder of the .deb files (default: packages/ in --out)"
    )
    args = parser.parse_args()
    try:
        prompts = make_recordings(args.out, args.packages or args.out / "packages")
    except (RuntimeError, ValueError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    print(f"{len(prompts)} prompts in {args.out}")


if __name__ == "__main__":
    main()
