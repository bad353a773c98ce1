"""Released models: downloaded, checked, converted, and only then in their place.

Nothing reads a file before its size and its hash are what they must be, and the checkpoint is read
by the restricted unpickler. Work goes on beside the model's place, and one rename ends it: whatever
interrupts it, what has the model's name is whole.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from echostream import __version__
from echostream.checkpoint import read_provenance, save_model_dir
from echostream.config import CardConfig
from echostream.hub.file_checks import Digest, Expected, WrongBytes, check_file
from echostream.hub.names import cached_folder, find_model
from echostream.hub.remote import (
    FetchError,
    HubStore,
    Unreachable,
    download_web,
    require_hub,
    web_address,
)
from echostream.hub.table import (
    DATA_YAML,
    TASKS_YAML,
    HubFile,
    Part,
    ReleasedModel,
    WebFile,
)
from echostream.streamspeech.convert import read_streamspeech

logger = logging.getLogger(__name__)

LONGEST_SMALL_FILE = 64 << 20  # plain addresses serve nothing longer
FREE_BYTES = 64 << 20  # to be left on the disk


@dataclass(frozen=True)
class FetchOptions:
    """How a model is fetched.

    Attributes:
        folder: files that were brought by other means; None: they are downloaded.
        keep: leave downloaded originals in the Hub's cache.
        dtype: precision of the stored weights.
        unverified: take files of ``folder`` whose hash nobody can tell.
        cache: where models lie; None: :func:`~echostream.hub.names.models_folder`.
    """

    folder: Path | None = None
    keep: bool = False
    dtype: torch.dtype = torch.float16
    unverified: bool = False
    cache: Path | None = None


@dataclass(frozen=True)
class Obtained:
    """A file that is what it must be.

    Attributes:
        part: of the model.
        path: where it lies.
        source: where it came from.
        digest: its size and hashes.
        told_by: who said what it must be.
        downloaded: it came into the Hub's cache just now.
    """

    part: Part
    path: Path
    source: str
    digest: Digest
    told_by: str
    downloaded: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "file": self.part.place,
            "source": self.source,
            "size": self.digest.size,
            "sha256": self.digest.sha256,
            "checked_against": self.told_by,
        }


@dataclass
class _Work:
    """One fetch under way."""

    store: HubStore
    options: FetchOptions
    folder: Path  # what the converter sees
    told: dict[HubFile, Expected] = field(default_factory=dict)

    def expected(self, part: Part) -> Expected:
        """What a part must be: by the table, or by the Hub's metadata.

        Raises:
            FetchError: nobody can tell.
        """
        if part.sha256 is not None:
            return Expected(part.size, part.sha256, None, "EchoStream's table")
        file = next(source for source in part.sources if isinstance(source, HubFile))
        if file not in self.told:
            self.told[file] = self.store.expected(file)
        if not self.told[file].known:
            raise FetchError(f"{file}: nobody tells its hash, so it is not taken")
        return self.told[file]


def fetch_released(
    model: ReleasedModel, options: FetchOptions | None = None, store: HubStore | None = None
) -> Path:
    """Make a released model's directory, unless it is there.

    Args:
        store: the Hub; None: the one that the environment names.

    Returns:
        The model directory.

    Raises:
        FetchError: a file cannot be had, or nobody can tell whether it is the right one.
        WrongBytes: a file is not what it must be; nothing read it.
        OSError: no space.
        ValueError: it cannot be converted.
    """
    options = options or FetchOptions()
    require_hub()
    store = store or HubStore.from_environment()
    target = cached_folder(model.name, options.cache)
    with locked(target.parent):
        if is_current(target, model):
            logger.info("%s is in %s", model.name, target)
            return target
        clear_leftovers(target)
        folder = target.with_name(f".{target.name}.fetching")
        folder.mkdir(parents=True)
        work = _Work(store, options, folder)
        try:
            check_space(model, work, target.parent)
            obtained = [obtain(part, work) for part in model.parts]
            _convert(model, obtained, work, target)
            if not options.keep:
                for one in obtained:
                    if one.downloaded and one.part.large:
                        store.remove(one.path)
        except Unreachable as error:
            raise Unreachable(f"{error}; files brought by other means: --from FOLDER") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return target


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One fetch at a time into a folder of models; another waits for it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".fetch.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another fetch into %s is at work; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_current(folder: Path, model: ReleasedModel) -> bool:
    """Whether a model directory was made from what the table names now."""
    if find_model(model.name, folder.parent) is None:
        return False
    made_of = read_provenance(folder).get("made_of")
    return made_of == recipe(model)


def recipe(model: ReleasedModel) -> dict[str, str]:
    """What a model is made of: the first source of every part."""
    return {part.place: str(part.sources[0]) for part in model.parts}


def clear_leftovers(target: Path) -> None:
    """Remove what an interrupted fetch left beside a model's place."""
    for path in target.parent.glob(f".{target.name}.*"):
        if path.is_dir():
            shutil.rmtree(path)


def check_space(model: ReleasedModel, work: _Work, models: Path) -> None:
    """Make sure that what is downloaded and what comes of it fit, before anything is downloaded.

    Raises:
        OSError: they do not.
    """
    needed: dict[int, list[Any]] = {}

    def need(folder: Path, count: int) -> None:
        folder = next(place for place in (folder, *folder.parents) if place.exists())
        entry = needed.setdefault(folder.stat().st_dev, [folder, 0])
        entry[1] += count

    width = torch.finfo(work.options.dtype).bits // 8
    for part in model.parts:
        size = part.size or part.roughly
        if part.large:
            # Float32 originals, of which at least half is an optimizer's state.
            need(models, size * width // 4 // (1 if part.size else 2))
        if work.options.folder is not None:
            continue
        file = part.sources[0]
        if isinstance(file, HubFile):
            if work.store.cached(file) is None:
                need(work.store.cache_folder, size)
        else:
            need(models, size)
    for folder, count in needed.values():
        free = shutil.disk_usage(folder).free
        if free < count + FREE_BYTES:
            raise OSError(
                f"{model.name} needs {(count + FREE_BYTES) / 1e6:.0f} MB of space at {folder}, "
                f"and {free / 1e6:.0f} MB are free"
            )


def obtain(part: Part, work: _Work) -> Obtained:
    """Bring one part, make sure that it is the right one, and lay it where the converter looks.

    Raises:
        FetchError, WrongBytes: see :func:`fetch_released`.
    """
    if work.options.folder is not None:
        found = _from_folder(part, work, work.options.folder)
    else:
        found = _from_net(part, work)
    place = work.folder / part.place
    if found.path != place:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(found.path.resolve())
    return found


def _from_folder(part: Part, work: _Work, folder: Path) -> Obtained:
    if not folder.is_dir():
        raise FileNotFoundError(f"--from: no such folder: {folder}")
    candidates = sorted(p for p in folder.rglob("*") if p.name in part.names and p.is_file())
    if not candidates:
        raise FileNotFoundError(
            f"{folder} has no {' or '.join(sorted(part.names))}; it can be had from "
            + " or ".join(
                web_address(s) if isinstance(s, WebFile) else str(s) for s in part.sources
            )
        )
    try:
        expected = work.expected(part)
    except FetchError as error:
        if not work.options.unverified:
            raise FetchError(
                f"{error}. Nobody else can tell whether {candidates[0]} is the right file; "
                "connect to the Hub or a mirror of it (HF_ENDPOINT), or take it with --unverified"
            ) from error
        if len(candidates) > 1:
            raise FetchError(
                f"several files of {folder} may be {part.place}, and nobody can tell which: "
                + ", ".join(map(str, candidates))
            ) from error
        logger.warning("%s is taken at its word: nobody tells its hash", candidates[0])
        expected = Expected(told_by="nobody: taken with --unverified")
    faults = []
    for path in candidates:
        try:
            digest = check_file(path, expected)
        except WrongBytes as error:
            faults.append(error)
            continue
        return Obtained(part, path, str(path.name), digest, expected.told_by)
    raise faults[0]


def _from_net(part: Part, work: _Work) -> Obtained:
    expected = work.expected(part)
    problem: FetchError | None = None
    for source in part.sources:
        try:
            if isinstance(source, HubFile):
                return _from_hub(part, source, expected, work)
            return _from_web(part, source, expected, work)
        except FetchError as error:
            logger.warning("%s", error)
            problem = problem or error
    raise problem or FetchError(f"{part.place}: no place to get it from is known")


def _from_hub(part: Part, source: HubFile, expected: Expected, work: _Work) -> Obtained:
    cached = work.store.cached(source)
    path = work.store.download(source) if cached is None else cached
    try:
        digest = check_file(path, expected)
    except WrongBytes as error:
        if cached is not None:
            raise WrongBytes(
                f"{error}; the Hub's cache held it: delete it and try again"
            ) from error
        work.store.remove(path)
        raise
    return Obtained(part, path, str(source), digest, expected.told_by, cached is None)


def _from_web(part: Part, source: WebFile, expected: Expected, work: _Work) -> Obtained:
    path = work.folder / part.place
    download_web(source, path, most_bytes=LONGEST_SMALL_FILE)
    try:
        digest = check_file(path, expected)
    except WrongBytes as error:
        path.unlink()
        raise WrongBytes(f"{web_address(source)}: {error}") from error
    return Obtained(part, path, web_address(source), digest, expected.told_by)


def _convert(model: ReleasedModel, obtained: Sequence[Obtained], work: _Work, target: Path) -> None:
    folder, voice = work.folder, model.vocoder
    system = read_streamspeech(
        folder / model.checkpoint.place,
        folder,
        config_yaml=DATA_YAML,
        multitask_config_yaml=TASKS_YAML,
        vocoder=folder / voice[0].place if voice else None,
        vocoder_cfg=folder / voice[1].place if voice else None,
        text_only=voice is None,
        to_store=work.options.dtype,
    )
    system.config = replace(system.config, card=card_of(model))
    save_model_dir(target, system, provenance=provenance_of(model, obtained))


def card_of(model: ReleasedModel) -> CardConfig:
    """What the model's directory says of itself."""
    return CardConfig(
        title=model.title,
        source_language=model.source_language,
        target_language=model.target_language,
        licence=model.licence,
        tasks=model.tasks,
        chunk_ms=model.chunk_ms,
    )


def provenance_of(model: ReleasedModel, obtained: Sequence[Obtained]) -> Mapping[str, Any]:
    """Where a model came from, file by file."""
    return {
        "name": model.name,
        "made_by": f"echostream {__version__}",
        "made_of": recipe(model),
        "files": [one.to_dict() for one in obtained],
        "licences": [
            {"covers": one.covers, "name": one.name, "where": one.where} for one in model.licences
        ],
    }
