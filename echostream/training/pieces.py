"""Files and folders in pieces, for machines that take and give only so much at a time.

    python -m echostream.training.pieces pack PIECES FOLDER FILE ... --megabytes 60
    python -m echostream.training.pieces unpack PIECES OUT

A piece is a part of one compressed tar archive. A table beside the pieces says how large each one
is and has its SHA-256, so nothing is unpacked that is not whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from echostream.files import write_atomically

TABLE = "pieces.json"


def pack(folder: Path, paths: Sequence[Path], megabytes: float = 60.0) -> list[Path]:
    """Write pieces of at most so many MB (millions of bytes), and last of all their table.

    Args:
        folder: gets ``piece-000`` and so on, and ``pieces.json``.
        paths: files and folders, links followed; each is unpacked under its last name.

    Raises:
        FileNotFoundError: one of the paths is not there.
        FileExistsError: other pieces lie in the folder.
        ValueError: two paths have one name, or the size is not positive.
    """
    size = int(megabytes * 1e6)
    if size < 1:
        raise ValueError(f"pieces must hold something, got {megabytes} MB")
    names = [Path(os.path.abspath(path)).name for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"every path must have a last name of its own, got {', '.join(names)}")
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"nothing to pack at {path}")
    if any(folder.glob("piece*")):
        raise FileExistsError(f"{folder} holds pieces already; give another folder")
    pieces: list[Path] = []
    entries = []
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w:gz", compresslevel=3, dereference=True) as archive:
            for path, name in zip(paths, names, strict=True):
                archive.add(path, arcname=name)
        whole.seek(0)
        while content := whole.read(size):
            piece = folder / f"piece-{len(pieces):03d}"
            write_atomically(piece, content)
            digest = hashlib.sha256(content).hexdigest()
            entries.append({"name": piece.name, "bytes": len(content), "sha256": digest})
            pieces.append(piece)
    write_atomically(folder / TABLE, json.dumps(entries, indent=1) + "\n")
    return pieces


def unpack(folder: Path, out: Path) -> list[str]:
    """Check pieces and unpack what they hold.

    Returns:
        Names of what is in ``out`` now.

    Raises:
        FileNotFoundError: there is no table.
        ValueError: a piece is missing or damaged; all of them are named.
    """
    table = folder / TABLE
    if not table.is_file():
        raise FileNotFoundError(f"no table of pieces at {table}")
    entries = json.loads(table.read_text(encoding="utf-8"))
    with tempfile.TemporaryFile() as whole:
        faults = []
        for entry in entries:
            piece = folder / Path(entry["name"]).name
            content = piece.read_bytes() if piece.is_file() else None
            if content is None:
                faults.append(f"{piece.name} is missing")
            elif hashlib.sha256(content).hexdigest() != entry["sha256"]:
                faults.append(f"{piece.name} is damaged ({len(content)} of {entry['bytes']} bytes)")
            else:
                whole.write(content)
        if faults:
            raise ValueError(f"{folder}: {', '.join(faults)}")
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(out, filter="data")
            return sorted({Path(name).parts[0] for name in archive.getnames()})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Cut files into pieces and join them again.")
    commands = parser.add_subparsers(dest="command", required=True)
    cut = commands.add_parser("pack", help="write pieces")
    cut.add_argument("folder", type=Path, help="of the pieces")
    cut.add_argument("paths", type=Path, nargs="+", help="files and folders to pack")
    cut.add_argument("--megabytes", type=float, default=60.0, help="of a piece (default 60)")
    join = commands.add_parser("unpack", help="check and unpack pieces")
    join.add_argument("folder", type=Path, help="of the pieces")
    join.add_argument("out", type=Path, help="folder to unpack into")
    args = parser.parse_args(argv)
    try:
        if args.command == "pack":
            pieces = pack(args.folder, args.paths, args.megabytes)
            print(f"{len(pieces)} pieces in {args.folder}")
        else:
            print(f"{', '.join(unpack(args.folder, args.out))} in {args.out}")
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
