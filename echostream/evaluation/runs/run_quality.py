"""Quality of a finished run, from the texts in its folder."""

from __future__ import annotations

from echostream.evaluation.runs.metric import Column, Metric
from echostream.evaluation.runs.run_folder import RunFolder
from echostream.evaluation.text_scores import TEXT_SCORES, bleu

SPEECH_SCORES = (("ASR_BLEU", False), ("ASR_BLEU_NOSIL", True))


def quality_scores(run: RunFolder) -> dict[str, float]:
    """Quality from texts in the folder, else as ``scores.tsv`` reports it for the whole run."""
    references = [item.reference for item in run.utterances]
    texts = run.hypotheses()
    if not run.is_speech:
        wanted = [one for one in TEXT_SCORES if not one.if_reported or one.name in run.reported]
        return {one.name: one.score(texts or [], references) for one in wanted}
    scores: dict[str, float] = {}
    for name, without_silence in SPEECH_SCORES:
        texts, reported = run.hypotheses(without_silence), run.reported.get(name)
        if texts is not None:
            scores[name] = bleu(texts, references)
        elif not run.is_reduced and isinstance(reported, float):
            scores[name] = reported
    written = run.written_texts()
    if written is not None:
        scores["TEXT_BLEU"] = bleu(written, references)
    return scores


QUALITY = Metric(
    quality_scores,
    (
        Column("ASR_BLEU", "ASR-BLEU", 2),
        Column("ASR_BLEU_NOSIL", "ASR-BLEU, no silence", 2),
        Column("TEXT_BLEU", "BLEU of its text", 2),
        *(Column(one.name, one.heading, 2) for one in TEXT_SCORES),
    ),
    is_quality=True,
)
