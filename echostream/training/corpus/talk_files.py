"""Talks on disk: sounds, SimulEval's lists and the times of the sentences.

``audio/source/<set>/<talk>.flac`` with ``<talk>.tsv`` beside it, which is written last, so that a
sound without one, or with one of other sentences, is made again; and ``simuleval/<set>/`` with
``wav_list.txt``, ``target.txt`` and ``src.txt`` (a talk a line) and ``sentences.tsv``.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path

from echostream.files import write_atomically
from echostream.training.corpus import synthesis
from echostream.training.corpus.build import begin, parallel_map
from echostream.training.corpus.speakers import speaker
from echostream.training.corpus.talks import (
    SENTENCE_COLUMNS,
    TALK_SETS,
    Sentence,
    Talk,
    TalkSet,
    plan_talks,
    write_talk,
)
from echostream.training.corpus.text_files import Utterance, normalize
from echostream.training.data_folder import write_table

logger = logging.getLogger(__name__)


def read_sentences(path: Path) -> list[Sentence]:
    """Read ``sentences.tsv``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed line, named by file and number.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = tuple(next(reader, ()))
        if header != SENTENCE_COLUMNS:
            raise ValueError(f"{path}, line 1: columns must be {SENTENCE_COLUMNS}, got {header}")
        sentences = []
        for number, row in enumerate(reader, 2):
            try:
                talk, index, utterance, start_ms, end_ms, *texts = row
                src_text, tgt_text = texts
                times = int(index), int(start_ms), int(end_ms)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: malformed row {row}: {error}") from error
            sentences.append(Sentence(talk, times[0], utterance, *times[1:], src_text, tgt_text))
    return sentences


def _table_path(sound: Path) -> Path:
    return sound.with_suffix(".tsv")


def _is_finished(talk: Talk, sound: Path) -> bool:
    """Whether the sound is there and says what the plan says."""
    if not (sound.is_file() and _table_path(sound).is_file()):
        return False
    said = [(row.talk, row.utterance, row.src_text) for row in read_sentences(_table_path(sound))]
    return said == [(talk.id, one.id, normalize(one.src_text)) for one in talk.utterances]


def _make(job: tuple[Talk, Path], seed: int) -> None:
    talk, sound = job
    _table_path(sound).unlink(missing_ok=True)  # so that an interruption leaves no wrong pair
    rows = write_talk(talk, sound, seed)
    write_table(_table_path(sound), SENTENCE_COLUMNS, map(astuple, rows))


def write_talk_lists(
    folder: Path, sounds: Sequence[str], talks: Sequence[Sequence[Sentence]]
) -> None:
    """Write SimulEval's lists, a talk a line, and the table of all sentences."""
    write_atomically(folder / "wav_list.txt", "".join(f"{sound}\n" for sound in sounds))
    for name, column in (("target.txt", "tgt_text"), ("src.txt", "src_text")):
        lines = (" ".join(getattr(row, column) for row in talk) + "\n" for talk in talks)
        write_atomically(folder / name, "".join(lines))
    rows = (astuple(row) for talk in talks for row in talk)
    write_table(folder / "sentences.tsv", SENTENCE_COLUMNS, rows)


def _synthesize(jobs: Sequence[tuple[Talk, Path]], seed: int, processes: int) -> None:
    if jobs:
        synthesis.require_synthesizers("espeak-ng")
        synthesis.require_voices({speaker(talk.speaker) for talk, _ in jobs})
    for _ in parallel_map(partial(_make, seed=seed), jobs, processes, "talks"):
        pass


def build_talks(
    folder: Path,
    splits: Mapping[str, Sequence[Utterance]],
    names: Sequence[str],
    *,
    seed: int = 1,
    jobs: int = 1,
    talk_sets: Mapping[str, TalkSet] = TALK_SETS,
) -> None:
    """Make sets of talks in a corpus folder; finished talks are kept.

    Args:
        splits: sentences by split; speech of the corpus itself need not be there.
        names: of the sets.

    Raises:
        ValueError: an unknown set, or the folder was begun with another seed.
    """
    unknown = sorted(set(names) - set(talk_sets))
    if unknown:
        raise ValueError(f"no such set of talks: {unknown[0]!r}; there are {', '.join(talk_sets)}")
    begin(folder, seed)
    plans = {
        name: [
            (talk, folder / "audio" / "source" / name / f"{talk.id}.flac")
            for talk in plan_talks(name, talk_sets[name], splits[talk_sets[name].split], seed)
        ]
        for name in names
    }
    missing = [job for plan in plans.values() for job in plan if not _is_finished(*job)]
    # The longest first, or one process speaks the hour while the other has nothing left to do.
    missing.sort(key=lambda job: -len(job[0].utterances))
    _synthesize(missing, seed, jobs)
    for name, plan in plans.items():
        rows = [read_sentences(_table_path(sound)) for _, sound in plan]
        target = folder / "simuleval" / name
        write_talk_lists(target, [str(sound.resolve()) for _, sound in plan], rows)
        logger.info("%s: %d sound files, lists in %s", name, len(plan), target)


def write_shipped_talk(
    folder: Path, root: Path, talk_set: TalkSet, utterances: Sequence[Utterance], seed: int
) -> None:
    """Make the talk of the demonstration, ``talk.flac`` with its lists.

    Args:
        root: what the path in ``wav_list.txt`` is relative to, where it lies below it.
    """
    [talk] = plan_talks("talk", talk_set, utterances, seed)
    synthesis.require_synthesizers("espeak-ng")
    synthesis.require_voices([speaker(talk.speaker)])
    sound = folder / "talk.flac"
    sentences = write_talk(talk, sound, seed)
    base = sound.relative_to(root) if sound.is_relative_to(root) else sound
    write_talk_lists(folder, [base.as_posix()], [sentences])
