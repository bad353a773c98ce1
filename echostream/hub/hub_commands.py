"""``echostream models``, ``fetch`` and ``push-to-hub``: parse, ask, call the library."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from echostream.hub.names import (
    SHARED,
    find_model,
    how_to_fetch,
    models_folder,
    nearest_names,
)
from echostream.hub.table import KNOWN, KnownModel, ReleasedModel, ShippedModel


def add_hub_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the commands of this package."""
    models = commands.add_parser("models", help="list the models that can be had by name")
    models.add_argument("--json", action="store_true", help="as JSON")
    models.set_defaults(func=run_models)
    _add_fetch_parser(commands)
    push = commands.add_parser(
        "push-to-hub",
        help="share a model directory on the Hugging Face Hub",
        description="Upload a model directory with a card. `echostream fetch hf:OWNER/NAME` "
        "brings it back. The token of `hf auth login` or $HF_TOKEN must allow writing.",
    )
    push.add_argument("model_dir", metavar="MODEL_DIR", help="model directory or name")
    push.add_argument("repo", metavar="OWNER/NAME", help="repository, made if it is not there")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument(
        "--accept-licence",
        action="store_true",
        help="share parts under licences of others all the same: you have the right to",
    )
    push.set_defaults(func=run_push)


def _add_fetch_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fetch = commands.add_parser(
        "fetch",
        help="download a released or shared model, by name",
        description="Download a model, check every byte, convert it, and keep it in the user's "
        "cache, so that its name works wherever a model directory does. Models shared by others "
        "are hf:OWNER/NAME.",
    )
    fetch.add_argument("names", nargs="+", metavar="NAME", help="see `echostream models`")
    fetch.add_argument(
        "--from",
        dest="folder",
        type=Path,
        metavar="FOLDER",
        help="take files that were brought by other means instead of downloading",
    )
    fetch.add_argument(
        "--keep", action="store_true", help="leave the downloaded originals in the Hub's cache"
    )
    fetch.add_argument(
        "--accept-licence", action="store_true", help="accept the licences without being asked"
    )
    fetch.add_argument(
        "--store",
        choices=("fp16", "fp32"),
        default="fp16",
        help="precision of the stored weights (default fp16)",
    )
    fetch.add_argument(
        "--unverified",
        action="store_true",
        help="with --from and no connection: take files whose hash nobody can tell",
    )
    fetch.set_defaults(func=run_fetch)


def model_row(model: KnownModel) -> dict[str, Any]:
    """What is told of a model of the table."""
    place = find_model(model.name)
    download = model.download_bytes if isinstance(model, ReleasedModel) else 0
    return {
        "name": model.name,
        "title": model.title,
        "source_language": model.source_language,
        "target_language": model.target_language,
        "tasks": list(model.tasks),
        "download_mb": round(download / 1e6),
        "licence": model.licence,
        "source": model.source,
        "place": None if place is None else str(place),
    }


def run_models(args: argparse.Namespace) -> int:
    rows = [model_row(model) for model in KNOWN.values()]
    if args.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return 0
    for row in rows:
        size = f", {row['download_mb']} MB to download" if row["download_mb"] else ""
        tasks = ", ".join(row["tasks"])
        print(f"{row['name']}: {row['title']}")
        print(f"    {row['source_language']} to {row['target_language']}; {tasks}{size}")
        print(f"    licence: {row['licence']}")
        print(f"    from: {row['source']}")
        print(f"    here: {row['place'] or 'no: ' + how_to_fetch(row['name'])}")
    shared = sorted(models_folder().glob("hf--*/config.yaml"))
    for path in shared:
        print(f"{SHARED}{path.parent.name.removeprefix('hf--').replace('--', '/', 1)}")
        print(f"    here: {path.parent}")
    return 0


def asker() -> Callable[[str], str] | None:
    """Asks the person at the terminal; None where there is none."""
    return input if sys.stdin is not None and sys.stdin.isatty() else None


def run_fetch(args: argparse.Namespace) -> int:
    from echostream.config import load_config
    from echostream.hub.fetch import FetchOptions, fetch_released, is_current
    from echostream.hub.licences import accept
    from echostream.hub.names import cached_folder
    from echostream.hub.sharing import fetch_shared
    from echostream.precision import FLOATS

    if args.unverified and args.folder is None:
        raise ValueError("--unverified is for files of --from FOLDER")
    options = FetchOptions(args.folder, args.keep, FLOATS[args.store], args.unverified)
    for name in args.names:
        if not name.startswith(SHARED) and name not in KNOWN:
            near = nearest_names(name)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"no model of that name: {name}{hint} `echostream models` lists them")
    for name in args.names:
        model = KNOWN.get(name)
        if isinstance(model, ShippedModel):
            place = find_model(name)
        elif isinstance(model, ReleasedModel):
            if not is_current(cached_folder(name), model):
                accept(
                    name,
                    model.licences,
                    models_folder(),
                    accepted=args.accept_licence,
                    show=print,
                    ask=asker(),
                )
            place = fetch_released(model, options)
        else:
            if args.folder is not None:
                raise ValueError(f"--from is for released models, {name} is shared by its owner")
            place = fetch_shared(name)
            licence = load_config(place / "config.yaml").card.licence
            print(f"{name}: licence {licence or 'not stated'}")
        print(f"{name} is in {place}")
    return 0


def run_push(args: argparse.Namespace) -> int:
    from echostream.hub.sharing import push

    address = push(
        args.model_dir, args.repo, private=args.private, accept_licence=args.accept_licence
    )
    print(f"shared at {address}; others get it with `echostream fetch {SHARED}{args.repo}`")
    return 0
