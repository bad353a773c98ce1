"""``echostream init``: a model directory whose parts start from a released recogniser."""

from __future__ import annotations

import argparse
from pathlib import Path

from echostream.config.checks import require_extra

SOURCE = "whisper:"


def add_init_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    init = commands.add_parser(
        "init",
        help="make an untrained model that starts from Whisper",
        description="Whisper's encoder becomes a streaming Emformer, its decoder the text decoder, "
        "with a vocabulary cut to the target texts. The heads are new: train the model before you "
        "use it.",
    )
    init.add_argument("out", type=Path, metavar="OUT", help="model directory to write")
    init.add_argument(
        "--init-encoder",
        required=True,
        metavar="whisper:DIR",
        help="folder or file of Whisper's weights: Hugging Face, OpenAI or CTranslate2",
    )
    init.add_argument(
        "--init-decoder",
        metavar="whisper:DIR",
        help="the same, for the text decoder, with tokenizer.json (default: that of the encoder)",
    )
    init.add_argument(
        "--source-texts",
        type=Path,
        required=True,
        metavar="FILE",
        help="transcripts, one a line: the recognition head's vocabulary is learned from them",
    )
    init.add_argument(
        "--target-texts",
        type=Path,
        required=True,
        metavar="FILE",
        help="their translations, line by line: subwords that they need are kept",
    )
    init.add_argument("--language", default="es", help="of the speech (default: es)")
    init.add_argument(
        "--source-pieces", type=int, default=500, help="size of the source vocabulary"
    )
    init.add_argument(
        "--least", type=int, default=4, help="how often a kept subword occurs (default: 4)"
    )
    init.add_argument(
        "--decoder-layers",
        type=int,
        nargs="+",
        metavar="N",
        help="which decoder layers are kept, from 0 (default: all)",
    )
    init.add_argument(
        "--memory-size", type=int, default=0, help="slots of the encoder's memory bank (default: 0)"
    )
    init.set_defaults(func=run_init)


def whisper_path(text: str) -> Path:
    """The path in ``whisper:PATH``.

    Raises:
        ValueError: another kind of start.
    """
    if not text.startswith(SOURCE) or text == SOURCE:
        raise ValueError(f"weights to start from are named whisper:DIR, got {text!r}")
    return Path(text.removeprefix(SOURCE))


def run_init(args: argparse.Namespace) -> int:
    require_extra("everyday", "tokenizers", "num2words")
    from echostream.checkpoint import save_model_dir
    from echostream.text import read_lines
    from echostream.whisper.system import start_with_texts
    from echostream.whisper.tokens import read_tokenizer
    from echostream.whisper.weights import read_whisper

    folder = whisper_path(args.init_encoder)
    decoder = whisper_path(args.init_decoder or args.init_encoder)
    weights = read_whisper(folder)
    tokenizer = read_tokenizer(decoder if decoder.is_dir() else decoder.parent)
    system, *_ = start_with_texts(
        weights,
        tokenizer,
        read_lines(args.source_texts, "file of source texts"),
        read_lines(args.target_texts, "file of target texts"),
        language=args.language,
        source_pieces=args.source_pieces,
        least=args.least,
        decoder_weights=read_whisper(decoder) if decoder != folder else weights,
        decoder_layers=args.decoder_layers,
        memory_size=args.memory_size,
    )
    save_model_dir(args.out, system)
    millions = sum(p.numel() for p in system.model.parameters()) / 1e6
    print(
        f"{args.out}: {millions:.1f} M weights, {len(system.source_vocabulary)} source and "
        f"{len(system.target_vocabulary)} target subwords; not trained yet"
    )
    return 0
