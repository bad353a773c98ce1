#!/usr/bin/env python3
"""How well is a voice understood? Recognisers listen to held-out sentences.

    python scripts/voice_test.py --voice VOICE --speech SPEECH --limit 100 \\
        --asr-model pocketsphinx moonshine

SPEECH is the aligned speech of docs/howto/train-a-voice.md. Its utterances test_... are said by the
real voice, from their units (with their true durations), and from their text, whole and so many
words at a time. Prints BLEU and word error rate of what each recogniser understands, in lower case
without punctuation, BLEU over that of the real voice, and how much of the speech is silence.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import sacrebleu
import soundfile

from echostream.evaluation.recognizers.recognizer import (
    load_recognizer,
    recognizer_name,
    resample,
    strip_punctuation,
)
from echostream.evaluation.runs.silence import find_silences, summarize
from echostream.evaluation.text_scores import word_error_rate
from echostream.files import write_atomically
from echostream.training.voice.material import (
    FRAME_MS,
    Utterance,
    frame_units,
    known_utterances,
    read_utterances,
)
from echostream.voice.named import open_voice
from echostream.voice.normalize import spoken_text
from echostream.voice.speaker import VoiceSpeaker
from echostream.voice.streaming_voice import StreamingVoice

REAL = "real speech"


def ways_of_speaking(
    speaking: StreamingVoice,
    utterances: list[Utterance],
    folder: Path,
    words: list[int],
    lag_ms: float,
) -> dict[str, list[np.ndarray]]:
    """Name of each way to the sounds of all utterances."""
    voice = speaking.voice
    sounds: dict[str, list[np.ndarray]] = {REAL: []}
    units = sounds["units, vocoded"] = []
    for utterance in utterances:
        samples, rate = soundfile.read(folder / utterance.file, dtype="float32")
        if rate != voice.vocoder.sample_rate:
            raise ValueError(f"{utterance.file}: {rate} Hz, the voice {voice.vocoder.sample_rate}")
        sounds[REAL].append(samples)
        told, _ = frame_units(utterance, voice.inventory, round(lag_ms / FRAME_MS))
        wave, _ = voice.vocoder.generate(told.tolist(), dur_prediction=False)
        units.append(wave.numpy())
    for count in words:
        speaker = VoiceSpeaker(speaking, words=count)
        name = f"text, {count} words at a time" if count else "text, at once"
        sounds[name] = []
        for utterance in utterances:
            pieces, _ = speaker.step(utterance.text, speaker.init_state(), final=True)
            sounds[name].append(np.concatenate([piece.waveform for piece in pieces]))
    return sounds


def plain(text: str) -> str:
    return strip_punctuation(text.lower())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--voice", type=Path, required=True)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="use only the first N test sentences")
    parser.add_argument("--words", type=int, nargs="*", default=[0, 2], help="0: whole sentences")
    parser.add_argument("--lag-ms", type=float, default=50.0, help="of labels behind the sound")
    parser.add_argument("--asr-model", nargs="+", default=["pocketsphinx"])
    parser.add_argument("--report", type=Path, help="write transcripts and figures, JSON")
    args = parser.parse_args()
    voice = open_voice(args.voice)
    utterances = [u for u in read_utterances(args.speech) if u.split == "test" and len(u.f0)]
    utterances = known_utterances(utterances, voice.voice.inventory, str(args.speech))
    utterances = utterances[: args.limit]
    if not utterances:
        parser.exit(1, f"{args.speech}: no test_... utterance with pitch that the voice can say\n")
    texts = [plain(spoken_text(utterance.text)) for utterance in utterances]
    sounds = ways_of_speaking(voice, utterances, args.speech, args.words, args.lag_ms)
    report: dict[str, dict] = {name: {} for name in sounds}
    for name, waves in sounds.items():
        rate = voice.sample_rate
        report[name]["silence"] = summarize([find_silences(wave, rate) for wave in waves])
        report[name]["seconds"] = sum(map(len, waves)) / rate
    for spec in args.asr_model:
        recognizer = load_recognizer(spec)
        for name, waves in sounds.items():
            rates = voice.sample_rate, recognizer.sample_rate
            heard = [plain(recognizer.transcribe(resample(wave, *rates))) for wave in waves]
            bleu = sacrebleu.corpus_bleu(heard, [texts]).score
            wer = word_error_rate(heard, texts)
            over = bleu / report[REAL][recognizer_name(spec)]["bleu"] if name != REAL else 1.0
            figures = {"bleu": bleu, "wer": wer, "over_real": over, "heard": heard}
            report[name][recognizer_name(spec)] = figures
            print(
                f"{recognizer_name(spec):14s} {name:26s} BLEU {bleu:5.1f}  WER {wer:5.1f} %  "
                f"over real {over:.2f}",
                flush=True,
            )
    for name, record in report.items():
        silence = record["silence"]
        print(
            f"{name:26s} {record['seconds']:6.1f} s, silence {silence['SilenceRatio']:.3f}, "
            f"longest pause {silence['LongestPause']:.0f} ms"
        )
    if args.report is not None:
        data = {"texts": texts, "ways": report}
        write_atomically(args.report, json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
