"""Output folders of runs on talks, as the grid runner leaves them, and given by hand.

A cell of a grid that ran on talks holds their ``sentences.tsv``; its ``cell.json`` says where the
run on the same sentences one at a time lies, and which recogniser the grid names.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from echostream.evaluation.longform.talk_report import TalkRun
from echostream.evaluation.longform.talk_scores import read_sentences
from echostream.evaluation.runs.run_folder import CELL_FILE, RunFolder, load_run

logger = logging.getLogger(__name__)

SENTENCES_FILE = "sentences.tsv"


def holds_talks(run: RunFolder) -> bool:
    """Whether the folder says which sentences its talks consist of."""
    return (run.path / SENTENCES_FILE).is_file()


def _cell(run: RunFolder) -> dict[str, Any]:
    path = run.path / CELL_FILE
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content.get("longform") or {}


def noted_recognizer(run: RunFolder) -> str | None:
    """The recogniser that the folder's grid names, as ``--asr-model`` does; None without one."""
    return _cell(run).get("asr_model")


def talk_run(
    run: RunFolder,
    sentences: Path | None = None,
    alone: str | Path | None = None,
    alone_sentences: Path | None = None,
) -> TalkRun:
    """A run with what it is scored against.

    Args:
        sentences: ``sentences.tsv`` of its talks; else the one in the folder.
        alone: output folder of the same sentences one at a time; else the one that ``cell.json``
            names, if it is there.
        alone_sentences: ``sentences.tsv`` of those; else the one in their folder.

    Raises:
        FileNotFoundError: a folder or a list is missing.
        ValueError: a list is malformed.
    """
    talks = read_sentences(sentences or run.path / SENTENCES_FILE)
    if alone is None:
        noted = _cell(run).get("alone")
        if noted is not None and run.is_reduced:
            logger.warning(
                "%s: talks were left out, so there is no ratio to sentences alone", run.path
            )
            noted = None
        if noted is None or not (run.path / noted / SENTENCES_FILE).is_file():
            return TalkRun(run, talks)
        alone = run.path / noted
    other = load_run(alone)
    return TalkRun(
        run, talks, (other, read_sentences(alone_sentences or other.path / SENTENCES_FILE))
    )
