"""The demonstration behind ``scripts/demo.sh``: what to translate, and what came out.

No trained weights ship yet, so the model is a small one with seeded random weights: everything
runs as it will (features, encoder, policy, decoders, vocoder, scoring), the words mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import soundfile

from echostream.checkpoint import save_model_dir
from echostream.synthetic import SEED, random_system, synthetic_clip

CLIP_SECONDS = 4
CLIP_RATE = 48000


def clips(output: Path) -> list[Path]:
    """The reference clips if the checkout has them beside it, else a synthetic one."""
    reference = Path(__file__).resolve().parents[2] / "shared" / "reference" / "audio"
    found = sorted(reference.glob("*.wav"))
    if found:
        return found
    clip = output / "synthetic.wav"
    soundfile.write(clip, synthetic_clip(CLIP_SECONDS, CLIP_RATE, SEED), CLIP_RATE)
    return [clip]


def prepare(output: Path) -> None:
    """Write the model directory and SimulEval's source and target lists."""
    output.mkdir(parents=True, exist_ok=True)
    save_model_dir(output / "model", random_system())
    sources = clips(output)
    text = "".join(f"{clip}\n" for clip in sources)
    (output / "source.txt").write_text(text, encoding="utf-8")
    # There is no reference translation to compare random words with; the latency metrics need
    # the length of one.
    (output / "target.txt").write_text("this is a stand in reference\n" * len(sources))
    print(f"model:   {output / 'model'} (random weights: scores show that it runs, not quality)")
    print(f"sources: {', '.join(clip.name for clip in sources)}")


def report(output: Path) -> None:
    """Say what came out."""
    names, values = (
        line.split("\t") for line in (output / "s2st" / "scores.tsv").read_text().splitlines()
    )
    print("\nscores (times in ms; _CA adds the computation)")
    for name, value in zip(names, values, strict=True):
        print(f"  {name:16s} {value}")
    print("\ntranslated speech")
    for line in (output / "s2st" / "instances.log").read_text().splitlines():
        instance = json.loads(line)
        path = Path(instance["prediction"])
        seconds = soundfile.info(path).duration if path.is_file() else 0.0
        writes = len(instance["delays"])
        source = Path(str(instance["source"])).name
        print(f"  {path}: {seconds:.2f} s in {writes} writes, from {source}")
    print(f"policy trace: {output / 'trace.jsonl'}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m echostream.demo", description=__doc__)
    parser.add_argument("command", choices=["prepare", "report"])
    parser.add_argument("output", type=Path)
    args = parser.parse_args(argv)
    {"prepare": prepare, "report": report}[args.command](args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
