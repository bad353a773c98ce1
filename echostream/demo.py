"""What ``scripts/demo.sh`` shows: recordings as they are translated, a table of runs, examples."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import soundfile

from echostream.api import load
from echostream.assets import SYSTEMS
from echostream.evaluation.longform.talk_report import TalkRun, cell, talk_figures, used_rows
from echostream.evaluation.longform.talk_scores import read_sentences
from echostream.evaluation.runs.comparison import ComparedRun, compare_runs
from echostream.evaluation.runs.run_folder import RunFolder, check_same_utterances, load_run
from echostream.evaluation.runs.tables import figure
from echostream.evaluation.text_scores import bleu, plain
from echostream.text import read_lines

# (column, heading, decimals); times in ms.
ROWS = (
    ("ASR_BLEU", "ASR-BLEU", 1),
    ("ASR_BLEU_NOSIL", "ASR-BLEU without silence", 1),
    ("TEXT_BLEU", "BLEU of the text", 1),
    ("AL", "AL", 0),
    ("AL_CA", "AL, computation-aware", 0),
    ("LAAL", "LAAL", 0),
    ("LAAL_CA", "LAAL, computation-aware", 0),
    ("ATD", "ATD", 0),
    ("ATD_CA", "ATD, computation-aware", 0),
    ("StartOffset", "StartOffset", 0),
    ("StartOffset_CA", "StartOffset, computation-aware", 0),
    ("EndOffset", "EndOffset", 0),
    ("EndOffset_CA_FIXED", "EndOffset, computation-aware", 0),
    ("ComputeRTF", "compute per second of source", 3),
)
EXAMPLES = 3
TALK_EXAMPLES = 6  # sentences of the talk
SENTENCES = Path(__file__).resolve().parents[1] / "data" / "echo_mini" / "talk" / "sentences.tsv"


def table(results: Sequence[ComparedRun]) -> list[str]:
    """Figures as rows, systems as columns."""
    lines = [f"{'':32s}" + "".join(f"{result.run.system:>14s}" for result in results)]
    for key, heading, decimals in ROWS:
        cells = []
        for result in results:
            value = figure(result, key)
            cells.append("-" if value is None else f"{value:.{decimals}f}")
        lines.append(f"{heading:32s}" + "".join(f"{cell:>14s}" for cell in cells))
    return lines


def running_text(decisions: Sequence[dict[str, Any]]) -> list[str]:
    """Transcript and translation as they grew, one line per decision that changed them."""
    lines, before = [], {"transcript": "", "translation": ""}
    for decision in decisions:
        for key, label in (("transcript", "es"), ("translation", "en")):
            # A sentence that has ended leaves empty texts behind.
            if decision[key] not in ("", before[key]):
                before[key] = decision[key]
                lines.append(f"{decision['source_ms'] / 1000:7.2f} s  {label}  {decision[key]}")
    return lines


def examples(run: RunFolder, count: int) -> list[str]:
    """Running text of a few utterances, spread over the test set."""
    lines: list[str] = []
    trace = run.trace()
    for item in run.utterances[:: max(len(run.utterances) // count, 1)][:count]:
        lines += [f"{item.source_path.name}  (reference: {item.reference})"]
        lines += [*running_text(trace.get(item.index, [])), ""]
    return lines


def report(output: Path, systems: Sequence[str] = SYSTEMS) -> list[str]:
    """What came out under ``output``, line by line.

    Raises:
        FileNotFoundError, ValueError: a run is missing or damaged.
    """
    runs = [load_run(f"{system}={output / system}") for system in systems]
    check_same_utterances(runs)
    results = compare_runs(runs)
    seconds = sum(sum(item.durations) for item in runs[0].utterances) / 1000
    count, source = len(runs[0].utterances), sum(i.source_length for i in runs[0].utterances)
    lines = [f"\n{systems[0]}, running text"]
    lines += examples(runs[0], EXAMPLES)
    lines += [
        f"{count} utterances, {source / 1000:.0f} s of Spanish, {seconds:.0f} s of English from "
        f"{systems[0]}; times in ms; recogniser {results[0].recognizer}",
        *table(results),
        *(f"{result.run.system}: {note}" for result in results for note in result.notes),
        "",
        "Computation-aware figures are SimulEval's, which add all compute as if the source stood",
        "still meanwhile. That of EndOffset lets compute and source overlap",
        "(docs/reference/metrics.md).",
    ]
    lines += [f"speech: {run.path / 'wavs'}/" for run in runs]
    return lines


def talk_report(output: Path, systems: Sequence[str] = SYSTEMS) -> list[str]:
    """What came of the talk, line by line: running text, and figures over its whole length.

    Raises:
        FileNotFoundError, ValueError: a run is missing or damaged.
        ImportError: OmniSTEval is not installed.
    """
    talks = read_sentences(SENTENCES)
    runs = [load_run(f"{system}={output / 'talk' / system}") for system in systems]
    trace = runs[0].trace()
    lines = [f"\n{systems[0]}, a talk as one stream"]
    for item in runs[0].utterances:
        last: dict[int, dict[str, Any]] = {}
        for line in trace.get(item.index, []):
            if line["translation"]:
                last[line["sentence"]] = line
        for line in list(last.values())[:TALK_EXAMPLES]:
            seconds = line["source_ms"] / 1000
            lines += [f"{seconds:7.2f} s  es  {line['transcript']}"]
            lines += [f"{'':9s}  en  {line['translation']}"]
    scores = [talk_figures(TalkRun(run, talks)) for run in runs]
    lines += ["", f"{'':38s}" + "".join(f"{system:>14s}" for system in systems)]
    for key, heading, decimals in used_rows(scores):
        cells = [cell(figures[key], decimals) for figures in scores]
        lines.append(f"{heading:38s}" + "".join(f"{text:>14s}" for text in cells))
    lines += [f"speech: {run.path / 'wavs'}/" for run in runs]
    return lines


def recordings_report(recordings: Path, output: Path, model: str | Path) -> Iterator[str]:
    """Recordings of real people, translated as they come in; each line as soon as it is known.

    The speech is written beside the other results. Without espeak-ng, which a voice needs, there is
    text alone.

    Args:
        recordings: folder with ``wav_list.txt`` (paths from the repository's root) and
            ``target.txt``.
        output: folder for the speech.
        model: name or model directory.
    """
    spoken, note = True, ""
    try:
        translator = load(model)
    except (ImportError, RuntimeError, ValueError) as error:
        spoken, note = False, f"text alone: {error}"
        translator = load(model, task="s2tt")
    root = Path(__file__).resolve().parents[1]
    names = read_lines(recordings / "wav_list.txt", "list of recordings")
    references = read_lines(recordings / "target.txt", "list of translations")
    said, seconds, started = [], 0.0, time.time()
    yield f"\n{model}, recordings of real people"
    for name, reference in zip(names, references, strict=True):
        translation = translator.translate(root / name)
        said.append(translation.text)
        seconds += translation.decisions[-1].source_ms / 1000
        yield Path(name).stem
        yield f"{'':9s}  es  {translation.transcript}"
        yield f"{'':9s}  en  {translation.text}  (reference: {reference})"
        if spoken:
            output.mkdir(parents=True, exist_ok=True)
            target = output / f"{Path(name).stem}.wav"
            soundfile.write(target, translation.speech, translation.sample_rate)
    score = bleu([plain(text) for text in said], [plain(text) for text in references])
    rate = (time.time() - started) / seconds
    yield ""
    yield (
        f"{len(names)} recordings, {seconds:.0f} s; BLEU {score:.1f}, {rate:.2f} s of computing "
        f"per second{', speech included' if spoken else ''}"
    )
    yield f"speech: {output}/" if spoken else note


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m echostream.demo", description=__doc__)
    parser.add_argument("output", type=Path, help="the demonstration's output folder")
    parser.add_argument(
        "--recordings",
        type=Path,
        help="translate this folder of recordings (data/everyday/real) instead of showing runs",
    )
    parser.add_argument("--model", default="everyday", help="what translates them")
    args = parser.parse_args(argv)
    if args.recordings:
        for line in recordings_report(args.recordings, args.output / "recordings", args.model):
            print(line, flush=True)
        return 0
    print("\n".join(report(args.output)))
    if (args.output / "talk").is_dir():
        print("\n".join(talk_report(args.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
