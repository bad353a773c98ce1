"""The trained parts of a voice to a folder that speaks."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from echostream.models.decoders.codevocos_vocoder import CodeVocosVocoder
from echostream.voice.folder import Voice, load_prosody, read_inventory


def without_durations(vocoder: CodeVocosVocoder) -> CodeVocosVocoder:
    """The same vocoder without its predictor of durations, which a voice does not use."""
    bare = CodeVocosVocoder(dataclasses.replace(vocoder.config, durations=None))
    bare.network.load_state_dict(vocoder.network.state_dict())
    return bare.eval().requires_grad_(False)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m echostream.training.voice.assemble",
        description="Put inventory, prosody and vocoder of a voice into one folder.",
    )
    parser.add_argument("--inventory", type=Path, required=True, help="inventory.json")
    parser.add_argument("--prosody", type=Path, required=True, help="prosody.safetensors")
    parser.add_argument("--vocoder", type=Path, required=True, help="model.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(arguments)
    try:
        Voice(
            read_inventory(args.inventory),
            load_prosody(args.prosody),
            without_durations(CodeVocosVocoder.load(args.vocoder)),
        ).save(args.out)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
