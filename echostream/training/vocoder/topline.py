"""The best that translated speech can score: real speech, and the same remade from its units."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from echostream.checkpoint import load_model_dir
from echostream.config.compute import add_threads_arg
from echostream.threads import use_threads
from echostream.training.vocoder.data import load_speech_for
from echostream.training.vocoder.train_vocoder import read_target_texts
from echostream.training.vocoder.validation import recogniser_is_installed, validate


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vocoder_topline.py",
        description="Have a recogniser transcribe real target speech (ceiling) and the same speech "
        "remade from its units (topline).",
    )
    parser.add_argument("--model-dir", type=Path, required=True, help="model directory that speaks")
    parser.add_argument("--units", type=Path, required=True, help="unit file, one unit per frame")
    parser.add_argument("--audio", type=Path, required=True, help="folder of the real speech")
    parser.add_argument("--texts", type=Path, required=True, help="TSV with id and tgt_text")
    parser.add_argument("--samples", type=Path, default=None, help="leave a few remade WAVs here")
    add_threads_arg(parser)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if not recogniser_is_installed():
        parser.exit(1, "pocketsphinx is not installed: pip install 'echostream[asr]'\n")
    try:
        system = load_model_dir(args.model_dir)
        use_threads(system.model, args.threads)
        vocoder = system.model.vocoder
        if vocoder is None:
            raise ValueError(f"{args.model_dir} has no vocoder")
        speech = load_speech_for(system.config.vocoder, args.model_dir, args.units, args.audio)
        texts = read_target_texts(args.texts)
        if not any(utterance.id in texts for utterance in speech):
            raise ValueError(f"{args.texts} has no text of any utterance in {args.units}")
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    report = validate(vocoder, speech, texts=texts, sample_folder=args.samples)
    if report["asr_bleu_real"]:
        report["topline_over_ceiling"] = report["asr_bleu"] / report["asr_bleu_real"]
    print(json.dumps({"utterances": len(speech), **report}, indent=1))
    return 0
