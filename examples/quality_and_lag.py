"""Translate several sound files with chunks of several sizes, and print quality against delay.

Quality is BLEU of the text against references. Delay is how much source was read when a word stood:
the first one of an utterance, and all of them on average. Names in the list are relative to the
folder that you are in. `echostream evaluate` compares systems, with more metrics.

TEST=data/echo_mini/test_audio
python examples/quality_and_lag.py $TEST/wav_list.txt $TEST/target.txt --files 5
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

import sacrebleu

import echostream


def measure(translator: echostream.Translator, sources: list[Path], references: list[str]) -> str:
    """One line of the table: BLEU, time of the first words, mean time of all words, in ms."""
    texts, first_ms, word_ms = [], [], []
    for source in sources:
        found = translator.translate(source)
        texts.append(found.text)
        times = [decision.source_ms for decision in found.decisions for _ in decision.translation]
        if times:
            first_ms.append(times[0])
            word_ms.append(fmean(times))
    bleu = sacrebleu.corpus_bleu(texts, [references], lowercase=True).score
    if not word_ms:
        return f"{bleu:6.1f}       -       -"
    return f"{bleu:6.1f} {fmean(first_ms):7.0f} {fmean(word_ms):7.0f}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Quality against delay.")
    parser.add_argument("source", type=Path, help="list of sound files, as SimulEval takes it")
    parser.add_argument("target", type=Path, help="a reference for each, line by line")
    parser.add_argument("--files", type=int, default=10, help="so many of them")
    parser.add_argument("--chunk-ms", type=int, nargs="+", default=[320, 640, 1280])
    parser.add_argument("--model", default="echo-mini", help="name or model directory")
    args = parser.parse_args(argv)

    sources = [Path(line) for line in args.source.read_text("utf-8").splitlines()][: args.files]
    references = args.target.read_text("utf-8").splitlines()[: args.files]
    print("chunk (ms)   BLEU   first    mean (ms of source)")
    for chunk_ms in args.chunk_ms:
        translator = echostream.load(args.model, task="s2tt", chunk_ms=chunk_ms)
        print(f"{chunk_ms:10d} {measure(translator, sources, references)}")


if __name__ == "__main__":
    main()
