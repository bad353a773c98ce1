"""Recognise every condition, score it, and lay the figures out."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sacrebleu
import torch
from tqdm import tqdm

from echostream.checkpoint import load_model_dir
from echostream.evaluation.recognizers.loading import load_recognizer, resample
from echostream.evaluation.runs.logged_instances import LoggedSpeechToSpeech
from echostream.evaluation.runs.run_latency import latency_figure
from echostream.training.ablation.conditions import CONDITIONS, Ablation, Sentence
from echostream.training.corpus.pairs import normalize


@dataclass(frozen=True)
class Heard:
    """What became of one sentence.

    Attributes:
        texts: by recogniser and condition, normalised.
        translation: what the system wrote, normalised.
        log: the system's writes, as SimulEval logs them.
    """

    texts: dict[str, dict[str, str]]
    translation: str
    log: dict[str, Any]


class Listener:
    """Speaks a sentence in all conditions and has every recogniser write down what it hears."""

    def __init__(self, model_dir: Path, chunk_ms: int, recognizers: Sequence[str]) -> None:
        self.ablation = Ablation(load_model_dir(model_dir), chunk_ms=chunk_ms)
        self.recognizers = {name: load_recognizer(name) for name in recognizers}

    def __call__(self, sentence: Sentence) -> Heard:
        spoken = self.ablation.speak(sentence)
        texts: dict[str, dict[str, str]] = {}
        for name, recognizer in self.recognizers.items():
            texts[name] = {}
            for condition, sound in spoken.sounds.items():
                resampled = resample(sound, self.ablation.rate, recognizer.sample_rate)
                texts[name][condition] = normalize(recognizer.transcribe(resampled))
        log = {
            "delays": spoken.delays_ms,
            "durations": spoken.durations_ms,
            "source_length": spoken.source_ms,
            "reference": normalize(sentence.text),
        }
        return Heard(texts, normalize(spoken.translation), log)


_listener: Listener | None = None


def _start(*arguments: Any) -> None:
    global _listener
    torch.set_num_threads(1)
    _listener = Listener(*arguments)


def _listen(sentence: Sentence) -> Heard:
    assert _listener is not None
    return _listener(sentence)


def listen(
    sentences: Sequence[Sentence],
    model_dir: Path,
    *,
    chunk_ms: int,
    recognizers: Sequence[str],
    jobs: int = 1,
) -> list[Heard]:
    """Every sentence, in ``jobs`` processes."""
    arguments = (model_dir, chunk_ms, tuple(recognizers))
    progress = {"total": len(sentences), "desc": "sentences", "mininterval": 1.0}
    if jobs == 1:
        listener = Listener(*arguments)
        return [listener(sentence) for sentence in tqdm(sentences, **progress)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, _start, arguments) as pool:
        return list(tqdm(pool.imap(_listen, sentences), **progress))


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    return sacrebleu.corpus_bleu(list(hypotheses), [list(references)]).score


def scores(heard: Sequence[Heard]) -> dict[str, Any]:
    """ASR-BLEU by condition and recogniser, BLEU of the system's text, AL and ATD in ms, and the
    silence between its pieces.

    Raises:
        ValueError: no sentences.
    """
    if not heard:
        raise ValueError("no sentences were spoken")
    references = [one.log["reference"] for one in heard]
    recognizers = list(heard[0].texts)
    logged = [
        LoggedSpeechToSpeech({"index": index, **one.log}, "word") for index, one in enumerate(heard)
    ]
    return {
        "sentences": len(heard),
        "asr_bleu": {
            condition: {
                name: bleu([one.texts[name][condition] for one in heard], references)
                for name in recognizers
            }
            for condition in CONDITIONS
        },
        "text_bleu": bleu([one.translation for one in heard], references),
        "AL": latency_figure("AL", logged),
        "ATD": latency_figure("ATD", logged),
        "silence_ms": sum(sum(one.silences) for one in logged) / len(logged),
        "silences": sum(len(one.silences) for one in logged) / len(logged),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures in Markdown: one line per condition, and what the step before it lost."""
    recognizers = list(figures["asr_bleu"]["real"])
    lines = [
        "| | " + " | ".join(recognizers) + " |",
        "| :-- |" + " --: |" * len(recognizers),
    ]
    for condition, by_name in figures["asr_bleu"].items():
        cells = " | ".join(f"{by_name[name]:.1f}" for name in recognizers)
        lines.append(f"| {CONDITIONS[condition]} | {cells} |")
    lines += [
        "",
        f"{figures['sentences']} sentences. The system: text BLEU {figures['text_bleu']:.1f}, AL "
        f"{figures['AL']:.0f} ms, ATD {figures['ATD']:.0f} ms, per sentence "
        f"{figures['silences']:.1f} silences between its pieces, {figures['silence_ms']:.0f} ms.",
    ]
    return "\n".join(lines) + "\n"
