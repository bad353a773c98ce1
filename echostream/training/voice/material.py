"""Aligned speech of one voice to what vocoder and prosody learn from.

The speech is a folder of sound files and of ``*.jsonl``, a line per utterance:

    id           begins with its split: train_..., dev_... or test_...
    text         what is said
    file         path of the sound within the folder
    phonemes     the symbols said, one character each
    durations    len(phonemes) + 2 integers, of a start and an end symbol too
    f0           pitch in Hz, ``PITCH_PER_DURATION`` values per unit of duration, 0 where none

as Kokoro-82M gives it. Labels may lag the sound (Kokoro's by about 50 ms).
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echostream.files import write_atomically
from echostream.training.units.sequences import write_units
from echostream.voice.folder import INVENTORY_FILE, read_inventory, write_inventory
from echostream.voice.phone_units import END, START, PhoneInventory, bridged_log_pitch, symbol_pitch

logger = logging.getLogger(__name__)

PITCH_PER_DURATION = 2
FRAME_MS = 12.5  # of pitch, and of the units made here
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Utterance:
    """What was said, and when.

    Attributes:
        id: with its split in front.
        symbols: the phonemes between ``^`` and ``$``.
        frames: (N,) how long each lasts.
        f0: (F,) Hz, one per frame; 0 where there is none.
    """

    id: str
    text: str
    file: str
    symbols: str
    frames: np.ndarray
    f0: np.ndarray

    @property
    def split(self) -> str:
        return self.id.partition("_")[0]

    @property
    def name(self) -> str:
        """The sound's path without its suffix, which names the utterance in unit files."""
        return str(Path(self.file).with_suffix("").as_posix())


def read_utterances(folder: Path) -> Iterator[Utterance]:
    """Everything that was spoken so far, in the order of the files. A last line that is not whole
    is left out.

    Raises:
        FileNotFoundError: there is no ``*.jsonl``.
        ValueError: a line that is not as the module describes.
    """
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"no alignments (*.jsonl) in {folder}")
    for path in paths:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
                frames = np.array(record["durations"], dtype=np.int64) * PITCH_PER_DURATION
                utterance = Utterance(
                    record["id"],
                    record["text"],
                    record["file"],
                    f"{START}{record['phonemes']}{END}",
                    frames,
                    np.array(record.get("f0", []), dtype=np.float64),
                )
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{where}: not an aligned utterance: {error!r}") from error
            if utterance.split not in SPLITS:
                raise ValueError(f"{where}: id must begin with {SPLITS}, got {utterance.id!r}")
            if len(frames) != len(utterance.symbols):
                raise ValueError(
                    f"{where}: {len(utterance.symbols)} symbols (both ends included), "
                    f"but {len(frames)} durations"
                )
            if len(utterance.f0) not in (0, int(frames.sum())):
                raise ValueError(
                    f"{where}: durations make {int(frames.sum())} values of pitch, "
                    f"but there are {len(utterance.f0)}"
                )
            yield utterance


def make_inventory(utterances: Sequence[Utterance], pitch_classes: int) -> PhoneInventory:
    """All symbols that occur, and pitch classes of equally many symbols each."""
    symbols = sorted({symbol for utterance in utterances for symbol in utterance.symbols})
    pitches = []
    for utterance in utterances:
        means, counts = symbol_pitch(utterance.f0, utterance.frames)
        pitches.append(means[counts > 0])
    pooled = np.concatenate(pitches) if pitches else np.zeros(0)
    if pitch_classes > 1 and not len(pooled):
        raise ValueError("pitch classes need speech with pitch (f0)")
    shares = np.arange(1, pitch_classes) / pitch_classes
    edges = np.exp(np.quantile(pooled, shares)).round(1).tolist() if pitch_classes > 1 else []
    return PhoneInventory(tuple(symbols), tuple(edges))


def frame_units(
    utterance: Utterance, inventory: PhoneInventory, lag_frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """(F,) units and (F,) pitch in whole Hz of an utterance, one per frame of the sound.

    Args:
        lag_frames: by which symbols lag their sound.
    """
    means, _ = symbol_pitch(utterance.f0, utterance.frames)
    units = inventory.units(inventory.indices(utterance.symbols), means.tolist())
    spread = np.repeat(np.array(units), utterance.frames)
    early = np.append(spread[lag_frames:], np.full(min(lag_frames, len(spread)), spread[-1]))
    curve, voiced = bridged_log_pitch(utterance.f0)
    return early[: len(spread)], np.where(voiced, np.exp(curve).round(), 0).astype(np.int64)


def known_utterances(
    utterances: Sequence[Utterance], inventory: PhoneInventory, where: str
) -> list[Utterance]:
    """Those whose symbols the inventory has; tells in the log what was left out.

    Args:
        where: what the utterances are, for the log.
    """
    known = set(inventory.symbols)
    kept = [utterance for utterance in utterances if set(utterance.symbols) <= known]
    if len(kept) < len(utterances):
        lacking = {symbol for utterance in utterances for symbol in utterance.symbols} - known
        logger.warning(
            "%s: left out %d of %d utterances, whose symbols %s the inventory lacks",
            where,
            len(utterances) - len(kept),
            len(utterances),
            " ".join(sorted(lacking)),
        )
    return kept


def write_material(
    folder: Path,
    out: Path,
    *,
    pitch_classes: int,
    lag_ms: float,
    limit: int | None = None,
    inventory: PhoneInventory | None = None,
) -> PhoneInventory:
    """Write ``inventory.json`` and, per split, ``SPLIT.units``, ``SPLIT.f0`` and ``SPLIT.tsv``.

    Args:
        limit: use only the first so many training utterances.
        inventory: of a voice that is to learn more; None: one is made. Utterances with other
            symbols are left out.
    """
    everything = [u for u in read_utterances(folder) if len(u.f0)]
    training = [u for u in everything if u.split == "train"][:limit]
    if not training:
        raise ValueError(f"{folder}: no training utterances with pitch")
    if inventory is None:
        inventory = make_inventory(training, pitch_classes)
    lag = round(lag_ms / FRAME_MS)
    for split in SPLITS:
        chosen = training if split == "train" else [u for u in everything if u.split == split]
        chosen = known_utterances(chosen, inventory, split)
        made = {u.name: frame_units(u, inventory, lag) for u in chosen}
        for kind, column in (("units", 0), ("f0", 1)):
            lines = {name: one[column].tolist() for name, one in made.items()}
            write_units(out / f"{split}.{kind}", lines)
        rows = [f"{u.name}\t{u.text}\n" for u in chosen]
        write_atomically(out / f"{split}.tsv", "id\ttgt_text\n" + "".join(rows))
        logger.info("%s: %d utterances", split, len(made))
    write_inventory(out / INVENTORY_FILE, inventory)
    return inventory


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m echostream.training.voice.material",
        description="Aligned speech of one voice to units and pitch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--speech", type=Path, required=True, help="folder of aligned speech")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--pitch-classes", type=int, default=12, help="1: units without pitch")
    parser.add_argument("--inventory", type=Path, help="take that of a voice, instead of a new one")
    parser.add_argument("--lag-ms", type=float, default=50.0, help="of labels behind the sound")
    parser.add_argument("--limit", type=int, help="use only the first N training utterances")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if args.pitch_classes < 1:
        parser.error(f"--pitch-classes must be positive, got {args.pitch_classes}")
    try:
        inventory = write_material(
            args.speech,
            args.out,
            pitch_classes=args.pitch_classes,
            lag_ms=args.lag_ms,
            limit=args.limit,
            inventory=None if args.inventory is None else read_inventory(args.inventory),
        )
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    logger.info(
        "%d symbols x %d pitch classes = %d units",
        len(inventory.symbols),
        inventory.pitch_classes,
        inventory.num_units,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
