"""``echostream translate``, ``listen``, ``speak`` and ``serve``: parse, build, run.

What a command runs is imported when it runs: see ``echostream.cli``.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from echostream import assets
from echostream.acceleration.onnx.export_command import add_runtime_arg
from echostream.config.checks import require_extra
from echostream.config.compute import DTYPES, add_threads_arg
from echostream.live.live_options import OFFLINE_BEAM, add_model_arg, add_run_args, add_vad_arg

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8000
TOKEN_VARIABLE = "ECHOSTREAM_TOKEN"
# On a CPU more sessions share no more of the work, but wait for each other
# (docs/notebook/server-load.md).
CPU_BATCH, GPU_BATCH = 8, 256


def add_live_parsers(commands: argparse._SubParsersAction) -> None:
    """Register the commands of this package."""
    add_translate_parser(commands)
    add_listen_parser(commands)
    add_speak_parser(commands)
    add_serve_parser(commands)


def add_translate_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``echostream translate``."""
    translate = commands.add_parser("translate", help="stream sound files through a model")
    translate.add_argument("inputs", type=Path, nargs="+", metavar="IN.wav")
    add_model_arg(translate)
    translate.add_argument(
        "--out",
        type=Path,
        required=True,
        help="translated speech, WAV. For several files: a folder, with one FILE.wav each",
    )
    translate.add_argument("--task", choices=("asr", "s2tt", "s2st"), default="s2st")
    translate.add_argument("--srt", action="store_true", help="also write subtitles beside it")
    translate.add_argument("--json", action="store_true", help="also write sentences and times")
    translate.add_argument(
        "--realtime", action="store_true", help="read no faster than the file would sound"
    )
    translate.add_argument(
        "--offline", action="store_true", help="one decision over the whole file, with beam search"
    )
    translate.add_argument(
        "--text", action="store_true", help="print transcript and translation as they grow"
    )
    translate.add_argument(
        "--beam", type=int, help=f"beam width (default 1, with --offline {OFFLINE_BEAM})"
    )
    add_runtime_arg(translate)
    add_run_args(translate)
    add_vad_arg(translate)
    translate.set_defaults(func=_translate)


def _translate(args: argparse.Namespace) -> int:
    from echostream.live.translate_files import run_translate

    return run_translate(args)


def add_listen_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``echostream listen``."""
    listen = commands.add_parser("listen", help="translate the microphone, until Ctrl-C")
    add_model_arg(listen)
    listen.add_argument("--task", choices=("asr", "s2tt", "s2st"), default="s2st")
    listen.add_argument("--input", help="microphone, by name or number (default: the system's)")
    listen.add_argument("--output", help="loudspeaker, by name or number (default: the system's)")
    listen.add_argument("--list-devices", action="store_true", help="show the devices and stop")
    add_run_args(listen)
    add_vad_arg(listen)
    listen.set_defaults(func=_listen)


def _listen(args: argparse.Namespace) -> int:
    from echostream.live.microphone import run_listen

    return run_listen(args)


def add_speak_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``echostream speak``. It decides nothing, so it has no settings."""
    speak = commands.add_parser(
        "speak",
        help="speak text as it arrives on standard input",
        description="Speaks text from standard input while it arrives. A line, or what ends in "
        ". ! or ?, is a sentence. The shipped voice speaks any English text (docs/howto/speak.md). "
        "With --model-dir a translation system speaks its target language. The shipped ones know "
        "the words of their small domain.",
    )
    chosen = speak.add_mutually_exclusive_group()
    chosen.add_argument(
        "--voice", type=Path, metavar="DIR", help="folder of a voice (default: the shipped one)"
    )
    chosen.add_argument(
        "--model-dir",
        type=Path,
        metavar="MODEL_DIR",
        help="speak with unit decoder and vocoder of this system instead",
    )
    speak.add_argument("--out", type=Path, metavar="OUT.wav", help="write the speech to a file")
    speak.add_argument("--play", action="store_true", help="play it while it is made")
    speak.add_argument(
        "--words",
        type=int,
        help="words spoken at a time. More sound better (default: 0 for a voice, which means whole "
        "sentences, and 2 for a system)",
    )
    speak.add_argument("--output", help="loudspeaker, by name or number (default: the system's)")
    speak.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    speak.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="what a system computes in (default fp32)"
    )
    add_threads_arg(speak)
    speak.set_defaults(func=_speak)


def _speak(args: argparse.Namespace) -> int:
    from echostream.live.speak import run_speak

    return run_speak(args)


def add_serve_parser(commands: argparse._SubParsersAction) -> None:
    serve = commands.add_parser("serve", help="translate live speech for browsers and programs")
    serve.add_argument(
        "--model-dir",
        type=Path,
        action="append",
        metavar="DIR",
        help="model directory or name, repeatable (default: the shipped systems)",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address (default: this machine alone)")
    serve.add_argument("--port", type=int, default=DEFAULT_PORT, help="default 8000 (0: any)")
    serve.add_argument(
        "--max-sessions", type=int, default=16, help="open at once (default 16). More are refused"
    )
    serve.add_argument(
        "--token",
        default=os.environ.get(TOKEN_VARIABLE),
        help=f"what clients must present (default: ${TOKEN_VARIABLE})",
    )
    serve.add_argument(
        "--no-token", action="store_true", help="listen to other machines without a token"
    )
    serve.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="page of another origin that may connect, as https://host[:port], repeatable",
    )
    serve.add_argument(
        "--max-batch",
        type=int,
        help=f"most sessions computed together (default {CPU_BATCH}, on a GPU {GPU_BATCH}). "
        "1 computes each on its own",
    )
    serve.add_argument(
        "--workers",
        type=int,
        help="batches computed at a time (default 2 on a CPU of several cores, else 1)",
    )
    add_run_args(serve)
    add_vad_arg(serve)
    serve.set_defaults(func=run_serve)


def check_serve(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: options that do not go together.
    """
    from echostream.live.messages import MAX_LIVE_CHUNK_MS, MIN_LIVE_CHUNK_MS
    from echostream.live.security import is_loopback

    if not is_loopback(args.host) and not args.token and not args.no_token:
        raise ValueError(
            f"--host {args.host} lets other machines connect: give --token, or --no-token if "
            "anybody who reaches this machine may use it"
        )
    if args.token and args.no_token:
        raise ValueError("--token and --no-token exclude each other")
    for name in ("max_sessions", "max_batch", "workers"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least 1, got {getattr(args, name)}")
    if args.chunk_ms is not None and not MIN_LIVE_CHUNK_MS <= args.chunk_ms <= MAX_LIVE_CHUNK_MS:
        raise ValueError(
            f"--chunk-ms must lie between {MIN_LIVE_CHUNK_MS} and {MAX_LIVE_CHUNK_MS}, got "
            f"{args.chunk_ms}"
        )
    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port must lie between 0 and 65535, got {args.port}")


def choose_workers(args: argparse.Namespace, threads: int) -> int:
    """How many batches are computed at a time, each with so many threads, if not said: two where
    there are cores for them.

    Python's lock leaves nothing for a third; a GPU computes one batch after the other anyway, and
    a compiled encoder serves one at a time.
    """
    if args.workers is not None:
        return args.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    alone = args.device != "cpu" or args.compile
    return 1 if alone else min(2, max((cores or 1) // threads, 1))


def run_serve(args: argparse.Namespace) -> int:
    require_extra("serve", "starlette", "uvicorn", "websockets", "prometheus_client")
    check_serve(args)
    import uvicorn

    from echostream.live.catalog import Catalog
    from echostream.live.computing import load_to_compute
    from echostream.live.ends import ends_are_given
    from echostream.live.limits import Limits
    from echostream.live.scheduler import Scheduler
    from echostream.live.security import Gate, is_loopback
    from echostream.live.server import bind, create_app, uvicorn_settings
    from echostream.threads import count_parameters, use_threads

    folders = args.model_dir or [assets.model_dir(name) for name in assets.default_systems()]
    catalog = Catalog.load(
        folders,
        load=lambda folder: load_to_compute(folder, args, args.chunk_ms),
        given=ends_are_given(args),
        vad=args.vad,
    )
    first = next(iter(catalog.models.values()))
    # Each model has chosen when it was loaded; the largest decides for all.
    largest = max((m.system.model for m in catalog.models.values()), key=count_parameters)
    threads = use_threads(largest, args.threads)
    app = create_app(
        catalog,
        gate=Gate(
            token=args.token,
            loopback_only=is_loopback(args.host),
            origins=tuple(args.allow_origin),
        ),
        limits=Limits(max_sessions=args.max_sessions),
        chunk_ms=first.system.config.card.chunk_or(args.chunk_ms),
        scheduler=Scheduler(
            max_batch=args.max_batch or (CPU_BATCH if args.device == "cpu" else GPU_BATCH),
            workers=choose_workers(args, threads),
        ),
    )
    # Bound here, so that the address is known (and a taken port is one line) before serving.
    listener = bind(args.host, args.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    names = ", ".join(catalog.models)
    print(f"EchoStream serves {names} at http://{shown}:{port}/ (stop with Ctrl-C)", flush=True)
    logger.info("threads: %d", threads)
    if args.token and not is_loopback(args.host):
        print("Pages ask for the token; programs send it as Authorization: Bearer TOKEN")
    server = uvicorn.Server(uvicorn.Config(app, **uvicorn_settings(args.host, port)))
    server.run(sockets=[listener])
    return 0 if server.started else 1
