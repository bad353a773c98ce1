"""What a recogniser makes of the real target speech (ceiling) and of the same speech remade from
its units by a model directory's vocoder (topline). No translation can sound better.

    python scripts/vocoder_topline.py --model-dir echostream/assets/echo_mini/echostream \
        --units DIR/test.km200 --audio DIR/audio/target/test --texts DIR/fbank2unit/test.tsv
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from echostream.checkpoint import load_model_dir
from echostream.vocoder_training.command import read_target_texts
from echostream.vocoder_training.data import load_speech
from echostream.vocoder_training.validation import recogniser_is_installed, validate


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, required=True, help="model directory that speaks")
    parser.add_argument("--units", type=Path, required=True, help="unit file, one unit per frame")
    parser.add_argument("--audio", type=Path, required=True, help="folder of the real speech")
    parser.add_argument("--texts", type=Path, required=True, help="TSV with id and tgt_text")
    parser.add_argument("--samples", type=Path, default=None, help="leave a few remade WAVs here")
    args = parser.parse_args()
    if not recogniser_is_installed():
        parser.exit(1, "pocketsphinx is not installed: pip install 'echostream[asr]'\n")
    try:
        system = load_model_dir(args.model_dir)
        config = system.config.vocoder
        if config is None:
            raise ValueError(f"{args.model_dir} has no vocoder")
        speech = load_speech(
            args.units,
            args.audio,
            num_units=config.num_embeddings,
            sample_rate=config.sampling_rate,
            frame_samples=config.unit_samples,
        )
        texts = read_target_texts(args.texts)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    report = validate(system.model.vocoder, speech, texts=texts, sample_folder=args.samples)
    report["topline_over_ceiling"] = report["asr_bleu"] / report["asr_bleu_real"]
    print(json.dumps({"utterances": len(speech), **report}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
