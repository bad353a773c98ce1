"""Model directories to the Hub and back: safetensors, configuration and a card."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open

from echostream import __version__
from echostream.checkpoint import (
    CONFIG_FILE,
    KNOWN_FILES,
    MODEL_FILE,
    PROVENANCE_FILE,
    WEIGHT_FILES,
    System,
    install,
    load_model_dir,
    read_provenance,
    write_provenance,
)
from echostream.config import EchoStreamConfig, load_config
from echostream.hub.fetch import FREE_BYTES, clear_leftovers, locked
from echostream.hub.file_checks import Expected, check_file
from echostream.hub.names import CONFIG_FILE as MARK
from echostream.hub.names import SHARED, cached_folder, parse_shared, resolve_model
from echostream.hub.remote import FetchError, HubStore, require_hub
from echostream.hub.table import HubFile
from echostream.int8_storage import SCALE
from echostream.streamspeech.convert import check_sizes
from echostream.voice.folder import Voice
from echostream.voice.named import OWN, OWN_FOLDER

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
_SPDX = {"MIT": "mit", "Apache-2.0": "apache-2.0", "CC0-1.0": "cc0-1.0", "CC-BY-4.0": "cc-by-4.0"}


def push(
    model: str | Path,
    repo: str,
    *,
    private: bool = False,
    accept_licence: bool = False,
    store: HubStore | None = None,
) -> str:
    """Upload a model directory with a card, in one commit.

    Args:
        model: a directory or a name.
        repo: ``owner/name``, made if it is not there.
        private: make a new repository private.
        accept_licence: share what others' licences cover too.

    Returns:
        The repository's address.

    Raises:
        ValueError: no whole model directory, a wrong name, or licences that forbid it.
        FetchError: the Hub refuses.
    """
    hub = require_hub()
    store = store or HubStore.from_environment()
    parse_shared(f"{SHARED}{repo}")
    folder = resolve_model(model)
    system = load_whole(folder)  # only what is whole is shared
    foreign = read_provenance(folder).get("licences") or []
    if foreign and not accept_licence:
        told = "; ".join(f"{one.get('covers')}: {one.get('name')}" for one in foreign)
        raise ValueError(
            f"{folder} holds what others released ({told}); sharing it is theirs to allow. "
            "--accept-licence: you have the right to"
        )
    names = sorted(name for name in KNOWN_FILES if (folder / name).is_file())
    operations = [
        hub.CommitOperationAdd(CARD_FILE, card_text(repo, system.config).encode("utf-8")),
        *(hub.CommitOperationAdd(name, folder / name) for name in names),
    ]
    api = hub.HfApi(endpoint=store.endpoint)
    what = f"{SHARED}{repo}"
    store.ask(what, lambda: api.create_repo(repo, private=private, exist_ok=True))
    store.ask(
        what,
        lambda: api.create_commit(
            repo, operations, commit_message=f"Model directory of EchoStream {__version__}"
        ),
    )
    return f"{store.endpoint}/{repo}"


def card_text(repo: str, config: EchoStreamConfig) -> str:
    """The repository's card, with what the Hub reads at its head."""
    card = config.card
    languages = [x for x in (card.source_language, card.target_language) if x]
    head: dict[str, Any] = {
        "library_name": "echostream",
        "tags": ["speech-translation", "simultaneous-translation", "streaming"],
    }
    if languages:
        head["language"] = languages
    if card.licence:
        known = _SPDX.get(card.licence)
        head["license"] = known or "other"
        if known is None:
            head["license_name"] = card.licence
    pair = f" from {languages[0]} to {languages[1]}" if len(languages) == 2 else ""
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n"
        f"# {card.title or repo}\n\n"
        f"Simultaneous speech translation{pair}, a model directory of EchoStream with a "
        f"{config.encoder.kind} encoder. Licence: {card.licence or 'not stated'}.\n\n"
        "```bash\n"
        f"echostream fetch hf:{repo}\n"
        f"echostream translate IN.wav --model-dir hf:{repo} --out OUT.wav\n"
        "```\n"
    )


def fetch_shared(name: str, *, store: HubStore | None = None, cache: Path | None = None) -> Path:
    """Download a shared model directory; what is there is replaced if its owner changed it.

    Args:
        name: ``hf:owner/name[@revision]``.

    Raises:
        FetchError: the Hub refuses, or the repository is no model directory.
        WrongBytes: a file is not what the Hub's metadata say.
        ValueError: the files are no whole model.
    """
    hub = require_hub()
    store = store or HubStore.from_environment()
    repo, revision = parse_shared(name)
    target = cached_folder(name, cache)
    api = hub.HfApi(endpoint=store.endpoint)
    with locked(target.parent):
        info = store.ask(name, lambda: api.model_info(repo, revision=revision, files_metadata=True))
        before = read_provenance(target) if (target / MARK).is_file() else {}
        if before.get("revision") == info.sha:
            return target
        told = {
            one.rfilename: _expected(one, store.endpoint)
            for one in info.siblings or ()
            if one.rfilename in KNOWN_FILES
        }
        if not {CONFIG_FILE, MODEL_FILE} <= set(told):
            raise FetchError(f"{name} is no model directory: it has no {CONFIG_FILE}, {MODEL_FILE}")
        clear_leftovers(target)
        work = target.with_name(f".{target.name}.fetching")
        work.mkdir(parents=True)
        try:
            _check_space(name, told, work)
            files = []
            for file, expected in told.items():
                source = HubFile(repo, info.sha, file)
                cached = store.cached(source)
                path = cached or store.download(source)
                digest = check_file(path, expected)
                (work / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, work / file)
                if cached is None:
                    store.remove(path)
                files.append({"file": file, "size": digest.size, "sha256": digest.sha256})
            origin = read_provenance(work)
            check_claims(work)
            load_whole(work)
            write_provenance(
                work,
                {
                    "name": name,
                    "revision": info.sha,
                    "files": [one for one in files if one["file"] != PROVENANCE_FILE],
                    **({"licences": origin["licences"]} if "licences" in origin else {}),
                    **({"origin": origin} if origin else {}),
                },
            )
            install(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def load_whole(folder: Path) -> System:
    """A model directory, and the voice of its own if it has one.

    Raises:
        FileNotFoundError, ValueError: something is missing or damaged.
    """
    system = load_model_dir(folder)
    if system.config.speech.voice == OWN:
        Voice.load(folder / OWN_FOLDER)
    return system


def check_claims(folder: Path) -> None:
    """A stranger's configuration describes the tensors beside it; seen before any memory is taken
    for what it claims.

    Raises:
        ValueError: it does not, or a weights file is damaged.
    """
    weights = {}
    for name, prefix in WEIGHT_FILES.items():
        path = folder / name
        if not path.is_file():
            continue
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():
                    if key.endswith(SCALE):
                        continue
                    shape = file.get_slice(key).get_shape()
                    weights[prefix + key] = torch.empty(shape, device="meta")
        except SafetensorError as error:
            raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    check_sizes(load_config(folder / CONFIG_FILE), weights, str(folder))


def _expected(sibling: Any, endpoint: str) -> Expected:
    told_by = f"metadata of {endpoint}"
    lfs = sibling.lfs
    if lfs is not None:
        return Expected(lfs.size, lfs.sha256, None, told_by)
    if sibling.blob_id is None:
        raise FetchError(f"{sibling.rfilename}: {endpoint} tells no hash, so it is not taken")
    return Expected(sibling.size, None, sibling.blob_id, told_by)


def _check_space(name: str, told: dict[str, Expected], folder: Path) -> None:
    # Twice, because a file is copied out of the Hub's cache.
    needed = 2 * sum(expected.size or 0 for expected in told.values()) + FREE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{name} needs {needed / 1e6:.0f} MB of space at {folder.parent}, "
            f"and {free / 1e6:.0f} MB are free"
        )
