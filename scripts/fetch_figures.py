"""Time and memory of fetching a released model, with a stand-in of its exact shapes.

    python scripts/fetch_figures.py --release outputs/stand-in

Builds a checkpoint of the released one's size with random weights, saved as fairseq-train saves it
with its optimizer's state, publishes it on a local server that speaks the Hub's API, fetches it,
and prints how long that took and how much memory. What was built stays in ``--release`` for the
next time; the model directory goes to ``--models``, where ``echostream bench`` can take it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.hub.measured import fetch_measured  # noqa: E402
from tests.hub.server import serving  # noqa: E402
from tests.hub.stand_in import (  # noqa: E402
    CHECKPOINT,
    Release,
    as_released,
    build_release,
    full_streamspeech,
    publish,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--release", type=Path, required=True, help="folder of the stand-in")
    parser.add_argument("--models", type=Path, help="where models go (default: in it)")
    args = parser.parse_args()
    folder = args.release
    names = (CHECKPOINT, "data", "g_00500000", "config.json")
    release = Release(*(folder / name for name in names))
    if not release.vocoder_config.is_file():
        release = build_release(full_streamspeech(), folder)
    model = as_released(release, name="stand-in-fr-en")
    models, cache = args.models or folder / "models", folder / "hub"
    print(f"checkpoint: {release.checkpoint.stat().st_size / 1e6:.0f} MB")
    shutil.rmtree(cache, ignore_errors=True)
    with serving() as hub:
        publish(release, hub)
        for what in ("download, check, convert", "check, convert"):
            shutil.rmtree(models / model.name, ignore_errors=True)
            found = fetch_measured(model, hub, models, cache)
            print(
                f"{what}: {found.wall_s:.1f} s ({found.computed_s:.1f} s of processor time), "
                f"peak memory {found.peak_mib:.0f} MiB, {found.peak_mib - found.idle_mib:.0f} MiB "
                "over the process that has only imported"
            )
    size = sum(path.stat().st_size for path in (models / model.name).iterdir())
    print(f"{models / model.name}: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
