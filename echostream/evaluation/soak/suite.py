"""All streams of all systems, each in a process of its own; what is finished is kept."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from echostream.evaluation.longform.folders import SENTENCES_FILE, talk_run
from echostream.evaluation.longform.spoken import Recognition
from echostream.evaluation.longform.talk_report import ROWS, cell, talk_figures
from echostream.evaluation.longform.talk_scores import read_sentences
from echostream.evaluation.result_digest import digest
from echostream.evaluation.runs.run_folder import load_run
from echostream.evaluation.soak.long_stream import Setup, long_stream, without_speech
from echostream.evaluation.soak.sounds import HEADINGS
from echostream.files import write_atomically
from echostream.processes import fresh_processes

logger = logging.getLogger(__name__)

STREAM = "stream"
# (key, heading, decimals), behind those of talks
STREAM_ROWS = (
    ("source_s", "source, s", 0),
    ("threads", "threads", 0),
    ("samples_in_file", "samples in the file", 0),
    ("samples_taken_in", "samples taken in", 0),
    ("encoder_frames_due", "encoder frames due", 0),
    ("encoder_frames_out", "encoder frames out", 0),
    ("compute_rtf", "compute per second of source", 3),
    ("compute_ratio", "compute per decision, last tenth over first", 2),
    ("resident_half_mib", "resident memory at half of it, MiB", 1),
    ("resident_end_mib", "resident memory at its end, MiB", 1),
    ("resident_growth_mib", "resident memory, second half, MiB more", 1),
    ("state_half_mib", "state of the stream at half of it, MiB", 2),
    ("state_highest_mib", "state of the stream, most, MiB", 2),
)


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        systems: model directories by name.
        output: a folder per system is made in it.
        chunk_ms: source per decision.
        sounds: of ``sounds.SOUNDS``.
        minutes: of each.
        stream: a sound file to be translated as one stream; None for none.
        sentences: its ``sentences.tsv``.
        jobs: processes.
        settings: of all systems, by key, instead of the model directories' values.
        threads: of each model; None: what suits it, one where several processes run.
    """

    systems: Mapping[str, Path]
    output: Path
    chunk_ms: int = 320
    sounds: tuple[str, ...] = tuple(HEADINGS)
    minutes: float = 10.0
    stream: Path | None = None
    sentences: Path | None = None
    jobs: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.sounds if name not in HEADINGS]
        if unknown:
            raise ValueError(f"sounds are {', '.join(HEADINGS)}, got {unknown[0]!r}")
        if not self.minutes > 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")
        if self.jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {self.jobs}")
        if (self.stream is None) != (self.sentences is None):
            raise ValueError("a stream and its list of sentences belong together")
        for path in filter(None, (self.stream, self.sentences)):
            if not path.is_file():
                raise FileNotFoundError(f"no such file: {path}")
        for name, folder in self.systems.items():
            if not (folder / "config.yaml").is_file():
                raise FileNotFoundError(f"system {name}: no model directory {folder}")
        if not (self.sounds or self.stream):
            raise ValueError("nothing to listen to: no sounds and no stream")


@dataclass(frozen=True)
class Job:
    """One stream of one system: a function of this package with its arguments."""

    system: str
    name: str
    path: Path
    fingerprint: str
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


def plan_jobs(plan: Plan) -> list[Job]:
    """Every stream, the long ones first."""
    long, short = [], []
    threads = 1 if plan.threads is None and plan.jobs > 1 else plan.threads
    for system, model_dir in plan.systems.items():
        files = sorted(path for path in model_dir.rglob("*") if path.is_file())
        place = plan.output / system
        setup = Setup(str(model_dir), plan.chunk_ms, plan.settings, threads)
        # Not in the digest where there are none: results of before there were settings hold.
        changed = [json.dumps(plan.settings, sort_keys=True)] if plan.settings else []
        if plan.stream is not None and plan.sentences is not None:
            sentences = [s for part in read_sentences(plan.sentences).values() for s in part]
            reference = " ".join(sentence.target for sentence in sentences)
            long.append(
                Job(
                    system,
                    STREAM,
                    place / f"{STREAM}.json",
                    digest(plan.chunk_ms, *changed, files=[*files, plan.stream, plan.sentences]),
                    long_stream,
                    (setup, str(plan.stream.resolve()), reference, str(place / STREAM)),
                )
            )
        for sound in plan.sounds:
            short.append(
                Job(
                    system,
                    sound,
                    place / f"{sound}.json",
                    digest(plan.chunk_ms, sound, plan.minutes, *changed, files=files),
                    without_speech,
                    (setup, sound, plan.minutes),
                )
            )
    return [*long, *short]


def _finished(job: Job) -> dict[str, Any] | None:
    """What an earlier run found, if it was about the same."""
    if not job.path.is_file():
        return None
    content = json.loads(job.path.read_text(encoding="utf-8"))
    return content if content.get("fingerprint") == job.fingerprint else None


def _run(job: Job) -> dict[str, Any]:
    done = _finished(job)
    if done is not None:
        return done
    # A process of its own: what it holds is this stream's, and nothing is left of it.
    with ProcessPoolExecutor(1, mp_context=fresh_processes()) as pool:
        found = pool.submit(job.function, *job.arguments).result()
    result = {**found, "fingerprint": job.fingerprint}
    write_atomically(job.path, json.dumps(result, indent=1) + "\n")
    return result


def run_plan(plan: Plan) -> dict[str, dict[str, dict[str, Any]]]:
    """Run what is not finished yet.

    Returns:
        Figures by system and stream; the long one is called :data:`STREAM`.
    """
    jobs = plan_jobs(plan)
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in plan.systems}
    with ThreadPoolExecutor(plan.jobs) as threads:
        bar = tqdm(threads.map(_run, jobs), total=len(jobs), desc="streams", disable=None)
        for job, result in zip(jobs, bar, strict=True):
            found[job.system][job.name] = result
    return found


def score_streams(
    plan: Plan, found: Mapping[str, dict[str, dict[str, Any]]], recognition: Recognition | None
) -> None:
    """Add the figures of talks to those of the long streams."""
    if plan.sentences is None:
        return
    for system, figures in found.items():
        folder = plan.output / system / STREAM
        shutil.copyfile(plan.sentences, folder / SENTENCES_FILE)
        talk = talk_figures(talk_run(load_run(f"{system}={folder}")), recognition)
        talk["compute_ratio"] = talk["last_tenth_ms"] / talk["first_tenth_ms"]
        figures[STREAM].update(talk)


def markdown(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Tables: sounds without speech, then the long stream."""
    systems = list(found)
    sounds = [name for name in HEADINGS if name in found[systems[0]]]
    lines = []
    if sounds:
        minutes = found[systems[0]][sounds[0]]["minutes"]
        lines += [
            f"| {minutes:g} min of | "
            + " | ".join(
                f"{s}: words a minute | speech, s | of it without words, s" for s in systems
            )
            + " |",
            "| :-- |" + " --: | --: | --: |" * len(systems),
        ]
        for sound in sounds:
            cells = []
            for system in systems:
                figures = found[system][sound]
                wordless = figures["speech_samples_without_words"]
                share = wordless / figures["speech_samples"] if wordless else 0.0
                cells += [
                    cell(figures["words_a_minute"], 2),
                    cell(figures["speech_s"], 1),
                    cell(share * figures["speech_s"], 1),
                ]
            lines.append(f"| {HEADINGS[sound]} | " + " | ".join(cells) + " |")
        lines.append("")
    if STREAM in found[systems[0]]:
        lines += [
            "| one stream | " + " | ".join(systems) + " |",
            "| :-- |" + " --: |" * len(systems),
        ]
        for key, heading, decimals in (*STREAM_ROWS, *ROWS):
            values = [found[system][STREAM].get(key) for system in systems]
            if any(value is not None for value in values):
                cells = [cell(value, decimals) for value in values]
                lines.append(f"| {heading} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
