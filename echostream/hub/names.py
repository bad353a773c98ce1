"""A model's name to its directory on this machine."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from echostream import assets
from echostream.hub.table import KNOWN, ReleasedModel, ShippedModel

CACHE_VARIABLE = "ECHOSTREAM_MODELS"
SHARED = "hf:"
CONFIG_FILE = "config.yaml"
# Neither part begins with a dot or holds the separator of folder names.
_OWNER_NAME = re.compile(r"(?!.*--)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*")


def models_folder() -> Path:
    """Where fetched models lie: ``$ECHOSTREAM_MODELS``, ``$XDG_CACHE_HOME/echostream/models`` or
    ``~/.cache/echostream/models``."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "echostream" / "models"


def parse_shared(name: str) -> tuple[str, str | None]:
    """Owner/name and revision of ``hf:owner/name[@revision]``.

    Raises:
        ValueError: not of that form.
    """
    repo, _, revision = name.removeprefix(SHARED).partition("@")
    if not _OWNER_NAME.fullmatch(repo) or ("@" in name and not _REVISION.fullmatch(revision)):
        raise ValueError(f"a shared model is hf:owner/name or hf:owner/name@revision, got {name!r}")
    return repo, revision or None


def cached_folder(name: str, cache: Path | None = None) -> Path:
    """Where a released or shared model of that name lies once it is fetched.

    Raises:
        ValueError: a shared model's name of the wrong form.
    """
    cache = models_folder() if cache is None else cache
    if name.startswith(SHARED):
        repo, revision = parse_shared(name)
        folder = "hf--" + repo.replace("/", "--")
        return cache / (folder if revision is None else f"{folder}@{revision}")
    return cache / name.replace(":", "-")


def is_model_name(name: str) -> bool:
    """Whether a name is one of the table or of the form ``hf:owner/name``."""
    return name in KNOWN or name.startswith(SHARED)


def find_model(name: str, cache: Path | None = None) -> Path | None:
    """The directory of a model that is on this machine, or None.

    Args:
        name: of the table, or ``hf:owner/name``.
        cache: other than :func:`models_folder`.
    """
    known = KNOWN.get(name)
    if isinstance(known, ShippedModel):
        return assets.model_dir(known.system)
    if known is None and not name.startswith(SHARED):
        return None
    folder = cached_folder(name, cache)
    return folder if (folder / CONFIG_FILE).is_file() else None


def name_of(folder: Path) -> str:
    """What a model directory is called: by the table, if it ships, else like its folder."""
    folder = folder.resolve()
    for known in KNOWN.values():
        if isinstance(known, ShippedModel) and assets.model_dir(known.system).resolve() == folder:
            return known.name
    return folder.name


def resolve_model(name_or_dir: str | Path) -> Path:
    """The directory of a model given by its name or its directory; a directory goes first.

    Raises:
        FileNotFoundError: neither; says the nearest names, or how to fetch it.
        ValueError: ``hf:`` and something that is no ``owner/name``.
    """
    path = Path(name_or_dir)
    if path.is_dir():
        return path
    # A path leaves out what it finds superfluous; as a name, it says the same.
    name = str(name_or_dir)
    found = find_model(name)
    if found is not None:
        return found
    if is_model_name(name):
        raise FileNotFoundError(f"model {name} is not on this machine: {how_to_fetch(name)}")
    nearest = nearest_names(name)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    raise FileNotFoundError(
        f"no such model directory and no model of that name: {name}; {hint}`echostream models` "
        "lists the names"
    )


def how_to_fetch(name: str) -> str:
    """The command that fetches a model, and how much that is."""
    known = KNOWN.get(name)
    size = ""
    if isinstance(known, ReleasedModel):
        size = f" ({known.download_bytes / 1e6:.0f} MB to download)"
    return f"`echostream fetch {name}`{size}"


def nearest_names(name: str, most: int = 3) -> list[str]:
    """Names of the table that resemble a wrong one, the nearest first."""
    folded = re.sub(r"[\s_/]+", "-", name.strip().lower())
    near = difflib.get_close_matches(folded, KNOWN, n=most, cutoff=0.6)
    parts = {word for word in re.split(r"[-:.]", folded) if len(word) > 1}
    # "fr-en" resembles nothing by its letters alone.
    inside = [known for known in KNOWN if len(parts) > 1 and parts <= set(re.split("[-:]", known))]
    return list(dict.fromkeys([*inside, *near]))[:most]
