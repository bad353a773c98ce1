"""``echostream soak``: sounds without speech, and a stream without end."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from echostream.assets import SYSTEMS, model_dir
from echostream.config import add_setting_args, given_settings
from echostream.config.compute import add_threads_arg
from echostream.evaluation.longform.talks_command import add_recognition_args
from echostream.hub.names import is_model_name, resolve_model


def add_soak_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``echostream soak``."""
    parser = subparsers.add_parser(
        "soak",
        help="long streams: what is said where nobody speaks, what is lost, what grows",
        description="Let systems listen to minutes of silence, noise, a tone and music, and count "
        "words where nobody speaks. Translate one long sound file as one stream, account for "
        "samples and frames, and compare memory, compute and quality of its end and its beginning.",
    )
    parser.add_argument(
        "systems",
        nargs="*",
        metavar="MODEL_DIR",
        help="model directory, or NAME=MODEL_DIR (default: the shipped ones)",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for results")
    parser.add_argument("--chunk-ms", type=int, default=320, help="source per decision")
    parser.add_argument(
        "--sounds",
        nargs="*",
        default=None,
        metavar="SOUND",
        help="silence, noise-40, noise-14, tone, music (default: all). Without a name: none",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of each sound")
    parser.add_argument(
        "--stream", type=Path, default=None, metavar="SOUND_FILE", help="translate this too"
    )
    parser.add_argument(
        "--sentences", type=Path, default=None, help="sentences.tsv of the sound file"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default 1)")
    add_threads_arg(parser)
    add_setting_args(parser)
    add_recognition_args(parser)
    parser.set_defaults(func=run_soak)


def named_systems(arguments: list[str]) -> dict[str, Path]:
    """Model directories by name.

    Raises:
        FileNotFoundError: no such model.
        ValueError: two have one name.
    """
    if not arguments:
        return {name: model_dir(name) for name in SYSTEMS}
    systems: dict[str, Path] = {}
    for argument in arguments:
        name, path = "", argument
        if not Path(argument).exists() and "=" in argument:
            name, _, path = argument.partition("=")
        name = name or (path if is_model_name(path) else Path(path).resolve().name)
        if name in systems:
            raise ValueError(f"two systems are called {name!r}; use NAME=MODEL_DIR")
        systems[name] = resolve_model(path)
    return systems


def run_soak(args: argparse.Namespace) -> int:
    """Run, score, print, and write ``soak.json`` and ``soak.md``."""
    from echostream.evaluation.longform.spoken import Recognition
    from echostream.evaluation.soak.sounds import SOUNDS
    from echostream.evaluation.soak.suite import Plan, markdown, run_plan, score_streams
    from echostream.files import write_atomically

    plan = Plan(
        systems=named_systems(args.systems),
        output=args.output,
        chunk_ms=args.chunk_ms,
        sounds=SOUNDS if args.sounds is None else tuple(args.sounds),
        minutes=args.minutes,
        stream=args.stream,
        sentences=args.sentences,
        jobs=args.jobs,
        settings=given_settings(args),
        threads=args.threads,
    )
    recognition = args.asr_model and Recognition(
        args.asr_model, args.asr_device, args.target_speech_lang, args.jobs
    )
    found = run_plan(plan)
    score_streams(plan, found, recognition or None)
    text = markdown(found)
    write_atomically(args.output / "soak.json", json.dumps(found, indent=1) + "\n")
    write_atomically(args.output / "soak.md", text)
    print(text, end="")
    return 0
