"""What an utterance says of itself in the log: elapsed times, empty output, words of text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from simuleval.evaluator.instance import (
    SpeechOutputInstance,
    SpeechToSpeechInstance,
    TextOutputInstance,
)

from echostream.evaluation.simuleval_compat.patch import Patch, mark


class _Probe(SpeechToSpeechInstance):
    """A speech-to-speech instance without audio or files, to see what ``summarize`` reports."""

    wav_path = Path("probe.wav")
    source_length = 1000.0

    def __init__(self) -> None:
        self.index = 0
        self.reference = ""
        self.delays: list[float] = []
        self.durations: list[float] = []
        self.prediction_list: list[str] = []
        self.intervals: list[tuple[float, float]] = []
        self.elapsed = [1.0]
        self.target_sample_rate = -1
        self.dataloader = argparse.Namespace(get_source_audio_path=lambda index: "")


def _drops_elapsed() -> bool:
    return _Probe().summarize()["elapsed"] != [1.0]


def patch_speech_elapsed() -> None:
    """Keep ``elapsed`` of speech output in the log: the ``_CA`` metrics are computed from it."""
    original = SpeechOutputInstance.summarize

    def summarize(self: SpeechOutputInstance) -> dict[str, Any]:
        return {**original(self), "elapsed": self.elapsed}

    SpeechOutputInstance.summarize = mark(summarize)


def _has_odd_empty_length() -> bool:
    return str(_Probe().summarize()["prediction_length"]) != "0.0"


def patch_empty_prediction() -> None:
    """An utterance that said nothing has length 0.0 and no wav.

    SimulEval divides by a sample rate it never learnt (-1), and leaves the wav of an earlier run
    in the same folder, which is then recognised as this run's speech.
    """
    original = SpeechOutputInstance.summarize

    def summarize(self: SpeechOutputInstance) -> dict[str, Any]:
        summary = original(self)
        if not self.prediction_list:
            summary["prediction_length"] = 0.0
            self.wav_path.unlink(missing_ok=True)
        return summary

    SpeechOutputInstance.summarize = mark(summarize)


def _loses_sentencepiece_spaces() -> bool:
    probe = TextOutputInstance.__new__(TextOutputInstance)
    probe.latency_unit, probe.prediction_list = "word", ["▁he", "llo", "▁you"]
    return TextOutputInstance.prediction.fget(probe).strip() != "hello you"


def patch_sentencepiece_text() -> None:
    """Join SentencePiece tokens into words, as the fork does for StreamSpeech's text agents.

    Stock SimulEval puts a space between the tokens and scores "▁he llo". Text without the
    SentencePiece mark is left to it.
    """
    original = TextOutputInstance.prediction.fget

    def prediction(self: TextOutputInstance) -> str:
        if self.latency_unit == "word" and any("▁" in token for token in self.prediction_list):
            return "".join(self.prediction_list).replace("▁", " ").strip()
        return original(self)

    TextOutputInstance.prediction = property(mark(prediction))


PATCHES = (
    Patch(patch_speech_elapsed, _drops_elapsed),
    Patch(patch_empty_prediction, _has_odd_empty_length),
    Patch(patch_sentencepiece_text, _loses_sentencepiece_spaces),
)
