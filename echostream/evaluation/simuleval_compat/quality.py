"""Quality metrics of SimulEval's ``--quality-metrics``: ASR-BLEU, WER and chrF.

ASR-BLEU is what StreamSpeech's toolkit computes: greedy transcripts of the written speech,
lower-cased, ``sacrebleu.corpus_bleu`` with its defaults against the references as they are. Two
figures belong to it, because papers differ in which they print: the speech as SimulEval wrote it,
with silence where the output waited, and the same speech with exactly that silence cut out.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from simuleval.evaluator.instance import SpeechOutputInstance
from simuleval.evaluator.scorers.quality_scorer import QualityScorer, add_sacrebleu_args

from echostream.evaluation.recognizers.recognizer import recognizer_name
from echostream.evaluation.recognizers.recognizer import split_spec as check_spec
from echostream.evaluation.text_scores import TEXT_SCORES, TextScore, bleu

logger = logging.getLogger(__name__)

DEFAULT_ASR_MODEL = "pocketsphinx"
_default_options = argparse.Namespace(asr_model=DEFAULT_ASR_MODEL, asr_device="auto")


def add_asr_args(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the recogniser."""
    parser.add_argument(
        "--asr-model",
        default=_default_options.asr_model,
        help="recogniser behind ASR_BLEU: pocketsphinx, moonshine, wav2vec2:PATH (fairseq "
        "checkpoint), hf:PATH (transformers CTC model) or whisper:SIZE_OR_PATH (faster-whisper)",
    )
    parser.add_argument(
        "--asr-device",
        default=_default_options.asr_device,
        help="where the recogniser runs: cpu, cuda or auto (cuda when there is one)",
    )


def set_default_asr_options(options: argparse.Namespace) -> None:
    """Set what scorers use when the command's options do not hold a recogniser."""
    _default_options.asr_model = options.asr_model
    _default_options.asr_device = options.asr_device


def _hypotheses(scorer: _TranscribingScorer, instances: dict[int, Any]) -> list[str]:
    """The predictions of text output, or the transcripts of speech output."""
    items = list(instances.values())
    if not items or not isinstance(items[0], SpeechOutputInstance):
        return [item.prediction for item in items]
    # Recognisers are heavy and most runs need none.
    from echostream.evaluation.runs.transcripts import transcribe_run

    # Several metrics read the same transcripts; they live as long as the utterances do.
    known = items[0].__dict__.setdefault("_run_transcripts", {})
    key = (scorer.asr_model, scorer.language, scorer.without_silence, len(items))
    if key not in known:
        known[key] = transcribe_run(
            items,
            Path(items[0].prediction).absolute().parent.parent,
            spec=scorer.asr_model,
            device=scorer.asr_device,
            language=scorer.language,
            without_silence=scorer.without_silence,
        ).texts
    return known[key]


class _RecogniserScorer(QualityScorer):
    """A column that depends on the recogniser which the options name."""

    def __init__(
        self,
        asr_model: str = DEFAULT_ASR_MODEL,
        asr_device: str = "auto",
        language: str = "en",
        tokenizer: str = "13a",
    ) -> None:
        super().__init__()
        check_spec(asr_model)
        self.asr_model = asr_model
        self.asr_device = asr_device
        self.language = language
        self.tokenizer = tokenizer

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        add_sacrebleu_args(parser)
        parser.add_argument(
            "--target-speech-lang", default="en", help="language of the target speech"
        )
        add_asr_args(parser)

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> _RecogniserScorer:
        return cls(
            getattr(args, "asr_model", _default_options.asr_model),
            getattr(args, "asr_device", _default_options.asr_device),
            getattr(args, "target_speech_lang", "en"),
            getattr(args, "sacrebleu_tokenizer", "13a"),
        )


class _TranscribingScorer(_RecogniserScorer):
    """Reads text output as it is and speech output through a recogniser."""

    without_silence = False

    def __call__(self, instances: dict[int, Any]) -> float:
        if not instances:
            return float("nan")
        references = [item.reference for item in instances.values()]
        return self.score(_hypotheses(self, instances), references)

    def score(self, hypotheses: list[str], references: list[str]) -> float:
        raise NotImplementedError


class AsrBleuScorer(_TranscribingScorer):
    """``ASR_BLEU``: BLEU of the recognised speech."""

    def score(self, hypotheses: list[str], references: list[str]) -> float:
        return bleu(hypotheses, references, self.tokenizer)


class AsrBleuNoSilenceScorer(AsrBleuScorer):
    """``ASR_BLEU_NOSIL``: the same with the silence that SimulEval inserted cut out."""

    without_silence = True

    def __call__(self, instances: dict[int, Any]) -> float:
        from echostream.evaluation.runs.transcripts import SpeechLayoutError

        try:
            return super().__call__(instances)
        except SpeechLayoutError as error:
            logger.error("ASR_BLEU_NOSIL is not computed: %s", error)
            return float("nan")


class AsrModelName(_RecogniserScorer):
    """``ASR_MODEL``: not a score but the recogniser's name, so that the score line carries it."""

    def __call__(self, instances: dict[int, Any]) -> str:
        return recognizer_name(self.asr_model)


def text_scorer(score: TextScore) -> type[QualityScorer]:
    """SimulEval's class for a score of texts: of text as written, of speech as recognised."""

    class TextScorer(_TranscribingScorer):
        def score(self, hypotheses: list[str], references: list[str]) -> float:
            return score.score(hypotheses, references)

    return TextScorer


SCORERS: dict[str, type[QualityScorer]] = {
    "ASR_BLEU": AsrBleuScorer,
    "ASR_BLEU_NOSIL": AsrBleuNoSilenceScorer,
    "ASR_MODEL": AsrModelName,
    # BLEU is SimulEval's own, and 0 of speech.
    **{one.name: text_scorer(one) for one in TEXT_SCORES if one.name != "BLEU"},
}


def with_companions(
    scorers: dict[str, QualityScorer], args: argparse.Namespace
) -> dict[str, QualityScorer]:
    """Put the second figure and the recogniser's name right after ``ASR_BLEU``."""
    if "ASR_BLEU" not in scorers and "ASR_BLEU_NOSIL" not in scorers:
        return scorers
    completed: dict[str, QualityScorer] = {}
    group = ("ASR_BLEU", "ASR_BLEU_NOSIL", "ASR_MODEL")
    for name, scorer in scorers.items():
        if name in completed:
            continue
        if name in group:
            completed.update({member: SCORERS[member].from_args(args) for member in group})
        else:
            completed[name] = scorer
    return completed
