"""Translate a sound file, write the speech, and print what was said sentence by sentence.

python examples/translate_file.py data/echo_mini/test_audio/test_00001.flac --out speech.wav
"""

from __future__ import annotations

import argparse

import soundfile

import echostream


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Translate a sound file.")
    parser.add_argument("source", help="sound file, any rate")
    parser.add_argument("--out", default="speech.wav", help="speech of the translation")
    parser.add_argument("--model", default="echo-mini", help="name or model directory")
    args = parser.parse_args(argv)

    translation = echostream.load(args.model).translate(args.source)
    for transcript, text in translation.sentences:
        print(f"{transcript}\n  -> {text}")
    soundfile.write(args.out, translation.speech, translation.sample_rate)
    seconds = len(translation.speech) / translation.sample_rate
    print(f"{args.out}: {seconds:.2f} s of speech")


if __name__ == "__main__":
    main()
