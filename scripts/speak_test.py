#!/usr/bin/env python3
"""How well is given text spoken? A recogniser listens to `echostream speak`.

    python scripts/speak_test.py --words 1 2 100

Speaks the reference translations of the shipped test clips, so many words at a time, and prints
word error rate and BLEU of what pocketsphinx (extra asr) transcribes against the text.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import sacrebleu

from echostream import assets
from echostream.checkpoint import System, load_model_dir
from echostream.config.compute import add_threads_arg
from echostream.evaluation.recognizers.recognizer import load_recognizer, resample
from echostream.evaluation.text_scores import word_error_rate
from echostream.speaking import TextSpeaker
from echostream.threads import use_threads

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ROOT / "data/echo_mini/test_audio/target.txt"


def make_speaker(voice: Path | None, system: System | None, words: int):
    """A voice if one is named, else the system."""
    if voice is None:
        return TextSpeaker(system, words=words)
    from echostream.voice.named import open_voice
    from echostream.voice.speaker import VoiceSpeaker

    return VoiceSpeaker(open_voice(voice), words=words)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, default=assets.model_dir("echostream"))
    parser.add_argument("--voice", type=Path, help="folder of a voice that speaks instead")
    parser.add_argument("--text", type=Path, default=TEXTS, help="one sentence a line")
    parser.add_argument("--words", type=int, nargs="+", default=[1, 2, 100])
    parser.add_argument("--every", type=int, default=1, help="use every N-th sentence")
    parser.add_argument("--asr-model", default="pocketsphinx")
    add_threads_arg(parser)
    args = parser.parse_args()
    recognizer = load_recognizer(args.asr_model)
    system = load_model_dir(args.model_dir) if args.voice is None else None
    if system is not None:
        use_threads(system.model, args.threads)
    texts = args.text.read_text(encoding="utf-8").splitlines()[:: args.every]
    print(f"{len(texts)} sentences, {recognizer.name}\nwords at a time      WER     BLEU")
    for words in args.words:
        speaker, heard = make_speaker(args.voice, system, words), []
        for text in texts:
            spoken, _ = speaker.step(text, speaker.init_state(), final=True)
            waveform = np.concatenate([piece.waveform for piece in spoken])
            waveform = resample(waveform, speaker.output_rate, recognizer.sample_rate)
            heard.append(recognizer.transcribe(waveform).lower())
        bleu = sacrebleu.corpus_bleu(heard, [texts]).score
        print(f"{words:15d} {word_error_rate(heard, texts):7.1f}% {bleu:8.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
