"""Finished runs, written as the evaluation leaves them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from echostream.evaluation.runs.logged_instances import speech_layout

RATE = 16000
REFERENCES = ["one two three four", "the cat sat on the mat", "she has been a teacher"]


def write_speech_run(
    folder: Path,
    *,
    lag_ms: float = 0.0,
    texts: list[str] | None = None,
    compute_ms: float = 100.0,
    elapsed: bool = True,
    references: list[str] = REFERENCES,
) -> Path:
    """A speech run of three pieces per utterance, with transcripts beside it."""
    (folder / "wavs").mkdir(parents=True)
    texts = REFERENCES if texts is None else texts
    lines = []
    for index, reference in enumerate(references):
        source = folder / f"source{index}.wav"
        soundfile.write(source, 0.1 * np.sin(np.arange(4 * RATE) / 20), RATE)
        delays = [960.0 + lag_ms, 1920.0 + lag_ms, min(2880.0 + lag_ms, 4000.0)]
        durations = [500.0, 1500.0, 700.0]
        intervals, silences = speech_layout(delays, durations)
        length = round((sum(durations) + sum(silences)) * RATE / 1000)
        wav = folder / "wavs" / f"{index}_pred.wav"
        soundfile.write(wav, np.full(length, 0.1), RATE)
        lines.append(
            {
                "index": index,
                "prediction": str(wav),
                "delays": delays,
                "durations": durations,
                "elapsed": [d + compute_ms * (i + 1) for i, d in enumerate(delays)]
                if elapsed
                else [],
                "intervals": intervals,
                "source_length": 4000.0,
                "reference": reference,
                "source": str(source),
            }
        )
    (folder / "instances.log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("asr_transcripts", "asr_transcripts.nosil"):
        (folder / f"{name}.txt").write_text("".join(text + "\n" for text in texts))
        (folder / f"{name}.json").write_text(json.dumps({"recognizer": "pocketsphinx"}))
    return folder
