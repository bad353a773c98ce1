"""The command behind ``scripts/make_everyday.py``."""

from __future__ import annotations

import argparse
import itertools
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from echostream.files import write_atomically
from echostream.processes import fresh_processes
from echostream.training import data_folder
from echostream.training.corpus.make_corpus import DATA
from echostream.training.corpus.text_files import read_texts
from echostream.training.everyday import catalogues, pairs, pico, plan, speak
from echostream.training.everyday.recordings import reference
from echostream.training.voice.kokoro import finished

TO_SPEAK, TEXTS, PICO = "sentences.tsv", "translations.tsv", "pico"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make_everyday.py",
        description="Make the texts of the corpus everyday, and lists once they are spoken.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument(
        "--pairs",
        type=Path,
        help="pairs made before (chrF, Spanish, English, way back), not hours of translating",
    )
    parser.add_argument(
        "--catalogues",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="game packages (.deb) with Spanish catalogues, or a table (Spanish, English, name)",
    )
    parser.add_argument("--packages", type=Path, help="folder of downloads (default: in --out)")
    for split in ("train", "dev", "test"):
        parser.add_argument(
            f"--{split}",
            type=int,
            default=getattr(plan.Sizes(), split),
            metavar="N",
            help=f"sentences of {split} to be spoken",
        )
    parser.add_argument("--seed", type=int, default=1, help="of the order of sentences")
    parser.add_argument("--voice-seed", type=int, default=7, help="of who says what")
    parser.add_argument("--jobs", type=int, default=1, help="processes that translate and speak")
    parser.add_argument(
        "--kokoro",
        type=Path,
        metavar="DIR",
        help="speak, by Kokoro's graph, vocabulary and voices in this folder "
        "(scripts/make_voice_speech.sh fetches them)",
    )
    parser.add_argument(
        "--phonemes",
        action="store_true",
        help="write what Kokoro is to say in its symbols, for a machine without espeak-ng",
    )
    parser.add_argument(
        "--pico",
        type=int,
        default=0,
        metavar="N",
        help="speak so many more sentences of train by SVOX Pico (ttspico), into --out/pico",
    )
    return parser


def read_catalogues(paths: Sequence[Path]) -> list[catalogues.Sentence]:
    """Sentences of packages and tables, in the order given."""
    found = catalogues.read_packages([path for path in paths if path.suffix == ".deb"])
    for path in paths:
        if path.suffix != ".deb":
            found += catalogues.read_table(path)
    return found


def write_texts(args: argparse.Namespace) -> tuple[list[plan.Line], list[pico.Line]]:
    """Write pairs by split, the list to speak and the table of texts; what Kokoro and what Pico
    speaks."""
    conversations = pairs.read_conversations(
        pairs.fetch_chats(args.packages or args.out / "packages")
    )
    table = args.pairs
    if table is None:
        sentences = pairs.sentences_to_translate(conversations)
        table = pairs.translate_pairs(sentences, args.out, args.jobs)
    rng = random.Random(args.seed)
    said_in = pairs.conversations_of(conversations)
    splits = pairs.split_pairs(pairs.read_pairs(table), said_in, rng)
    for split, found in splits.items():
        rows = "".join(f"{one.spanish}\t{one.english}\t{one.chrf}\n" for one in found)
        write_atomically(args.out / "texts" / f"{split}.tsv", rows)
        print(f"{split}: {len(found)} pairs of chats")
    # What is spoken is dear; of the chats the surer half serves.
    splits["train"] = [one for one in splits["train"] if one.chrf >= pairs.HELD_OUT_CHRF]
    more = catalogues.to_speak(read_catalogues(args.catalogues), rng)
    mini = [(row.src_text, row.tgt_text) for row in read_texts(DATA)["train"]]
    sizes = plan.Sizes(args.train, args.dev, args.test)
    lines = plan.plan_lines(splits, more, mini, sizes, args.voice_seed)
    write_atomically(args.out / TO_SPEAK, "".join(f"{line.to_speak()}\n" for line in lines))
    write_atomically(args.out / TEXTS, "".join(f"{line.translation()}\n" for line in lines))
    print(f"{len(lines)} sentences to speak in {args.out / TO_SPEAK}")
    # Human translations and chats in turn, as far as there are both.
    chats = [(one.spanish, one.english) for one in splits["train"]]
    turns = itertools.zip_longest(more, chats)
    rest = [pair for both in turns for pair in both if pair is not None]
    return lines, pico.plan_lines(rest, args.pico, {line.spanish for line in lines})


def speak_all(out: Path, models: Path, processes: int) -> None:
    """Speak what the list names and is not there yet."""
    jobs = [(out / TO_SPEAK, models, out / "speech", n, processes) for n in range(processes)]
    with fresh_processes().Pool(processes) as pool:
        made = pool.starmap(speak.run, jobs, chunksize=1)
    print(f"{sum(made) / 3600:.2f} h spoken now")


def read_speech(folder: Path) -> dict[str, tuple[Path, float]]:
    """File and seconds of every sentence that the synthesiser has finished."""
    return {entry["id"]: (folder / entry["file"], entry["seconds"]) for entry in finished(folder)}


def write_lists(
    out: Path, lines: Sequence[plan.Line], speech: Mapping[str, tuple[Path, float]]
) -> dict[str, float]:
    """Write SimulEval's lists of dev and test as far as they are spoken.

    Returns:
        Hours of every split.
    """
    spoken = defaultdict(list)
    for line in lines:
        if line.id in speech:
            spoken[line.id.partition("_")[0]].append(line)
    for split in ("dev", "test"):
        data_folder.write_lists(
            out / data_folder.LISTS / split,
            sounds=[str(speech[line.id][0].resolve()) for line in spoken[split]],
            targets=[reference(line.english, "en") for line in spoken[split]],
            sources=[reference(line.spanish, "es") for line in spoken[split]],
        )
    return {
        split: sum(speech[line.id][1] for line in found) / 3600 for split, found in spoken.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        lines, more = write_texts(args)
        if more:
            made = pico.speak_all(args.out / PICO, more, args.jobs)
            print(f"{made} of {len(more)} sentences spoken by Pico now")
        if args.phonemes:
            to_speak = speak.read_list(args.out / TO_SPEAK)
            speak.write_phonemes(to_speak, args.out / speak.PHONEMES, speak.SpanishPhonemes())
        if args.kokoro is not None:
            speak_all(args.out, args.kokoro, args.jobs)
        speech = read_speech(args.out / "speech")
        for split, hours in write_lists(args.out, lines, speech).items():
            print(f"{split}: {hours:.2f} h spoken")
    except (ValueError, FileNotFoundError, RuntimeError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    return 0
