"""Files from the Hub and from plain addresses.

The Hub is spoken to by ``huggingface_hub`` alone: its cache, its environment variables, its tokens,
its progress bar, its resuming. Plain addresses serve small files, and are read by ``urllib``.
Whatever goes wrong becomes one line that says what to do.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from echostream.files import atomic_path
from echostream.hub.file_checks import Expected
from echostream.hub.table import WEB_BASES, HubFile, WebFile

logger = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "https://huggingface.co"
RETRY_DELAYS_S = (1.0, 2.0, 4.0)
TIMEOUT_S = 30.0
_BLOCK_BYTES = 1 << 16
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_BLOB = re.compile(r"[0-9a-f]{40}")
ResultT = TypeVar("ResultT")


class FetchError(OSError):
    """A file cannot be had."""


class Unreachable(FetchError):
    """Its server cannot be reached, or does not work."""


def require_hub() -> Any:
    """The module ``huggingface_hub``.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ValueError("huggingface_hub is not installed; pip install 'echostream[hub]'")
    import huggingface_hub

    return huggingface_hub


def offline() -> bool:
    """Whether the user wants no connection to the Hub, by the Hub's own variables."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


@dataclass(frozen=True)
class HubStore:
    """The Hub and its cache on this machine.

    Attributes:
        endpoint: of the Hub.
        cache: folder; None: the Hub's own, by its variables.
    """

    endpoint: str
    cache: Path | None = None

    @classmethod
    def from_environment(cls) -> HubStore:
        """The Hub that ``HF_ENDPOINT`` names, with its default cache."""
        return cls(os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT).rstrip("/"))

    @property
    def cache_folder(self) -> Path:
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE) if self.cache is None else self.cache

    def cached(self, file: HubFile) -> Path | None:
        """A file of the cache, as the cache shows it: a link to the bytes."""
        found = require_hub().try_to_load_from_cache(
            file.repo, file.path, revision=file.revision, cache_dir=self.cache_folder
        )
        return Path(found) if isinstance(found, str) else None

    def expected(self, file: HubFile) -> Expected:
        """What the Hub's metadata say of a file at its revision.

        Without a connection, the name of the cached bytes tells: the cache calls large files by
        the sha256 that the Hub announced for them, and small ones by git's hash.

        Raises:
            FetchError: no such file, no permission, or no connection and not in the cache.
        """
        cached = self.cached(file)
        if offline():
            if cached is None:
                raise Unreachable(f"{file}: HF_HUB_OFFLINE is set, and the Hub's cache lacks it")
            return self._expected_of_cached(cached)
        api = require_hub().HfApi(endpoint=self.endpoint)
        try:
            found = self.ask(
                str(file),
                lambda: api.get_paths_info(file.repo, [file.path], revision=file.revision),
            )
        except Unreachable:
            if cached is None:
                raise
            return self._expected_of_cached(cached)
        if len(found) != 1 or not hasattr(found[0], "blob_id"):
            raise FetchError(f"{file}: there is no such file at that revision")
        told_by = f"metadata of {self.endpoint}"
        if found[0].lfs is not None:
            return Expected(found[0].lfs.size, found[0].lfs.sha256, None, told_by)
        return Expected(found[0].size, None, found[0].blob_id, told_by)

    @staticmethod
    def _expected_of_cached(path: Path) -> Expected:
        name, told_by = path.resolve().name, "the Hub's cache"
        if _SHA256.fullmatch(name):
            return Expected(sha256=name, told_by=told_by)
        if _GIT_BLOB.fullmatch(name):
            return Expected(git_blob=name, told_by=told_by)
        return Expected()

    def download(self, file: HubFile) -> Path:
        """A file in the Hub's cache, downloaded if it is not there.

        Raises:
            FetchError: see :meth:`ask`.
        """
        hub = require_hub()
        return Path(
            self.ask(
                str(file),
                lambda: hub.hf_hub_download(
                    file.repo,
                    file.path,
                    revision=file.revision,
                    endpoint=self.endpoint,
                    cache_dir=self.cache_folder,
                    local_files_only=offline(),
                ),
            )
        )

    @staticmethod
    def remove(path: Path) -> None:
        """Take a file out of the cache: its link and its bytes."""
        blob = path.resolve()
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)

    def ask(self, what: str, call: Callable[[], ResultT]) -> ResultT:
        """Call the Hub, patiently where its server fails.

        Raises:
            Unreachable: it does not answer, breaks off, or its server fails again and again.
            FetchError: it refuses: no such thing, no permission.
        """
        from huggingface_hub import errors
        from huggingface_hub.utils import HfHubHTTPError

        for delay in (*RETRY_DELAYS_S, None):
            try:
                return call()
            except HfHubHTTPError as error:
                problem = self._refusal(what, error, errors)
                if not isinstance(problem, Unreachable) or delay is None:
                    raise problem from error
            except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
                # Older clients hide a failing server behind what the cache lacks.
                hidden = isinstance(error.__cause__, HfHubHTTPError)
                problem = (
                    self._refusal(what, error.__cause__, errors)
                    if hidden
                    else Unreachable(f"{what}: {_one_line(error)}")
                )
                if not hidden or not isinstance(problem, Unreachable) or delay is None:
                    raise problem from error
            except ValueError:
                raise
            except Exception as error:
                # The client's transport has exceptions of its own, by version.
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # of this machine: no space, no permission
                problem = Unreachable(f"{what}: {self.endpoint} broke off: {_one_line(error)}")
                if delay is None:
                    raise problem from error
            logger.warning("%s; trying again", problem)
            time.sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    def _refusal(self, what: str, error: Any, errors: Any) -> FetchError:
        status = error.response.status_code if error.response is not None else None
        if isinstance(error, errors.GatedRepoError):
            return FetchError(f"{what}: ask for access at {self.endpoint}, then set HF_TOKEN")
        if isinstance(error, errors.RevisionNotFoundError):
            return FetchError(f"{what}: no such revision")
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return FetchError(f"{what}: there is no such file at that revision")
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            return FetchError(
                f"{what}: {self.endpoint} answers {status}: no such repository, or one that is "
                "private and wants HF_TOKEN"
            )
        if status is not None and (status >= 500 or status in (408, 429)):
            return Unreachable(f"{what}: {self.endpoint} answers {status}")
        return FetchError(f"{what}: {_one_line(error)}")


def web_address(file: WebFile) -> str:
    """Where a plain file is asked for; the base's variable overrides its beginning."""
    variable, base = WEB_BASES[file.base]
    return f"{os.environ.get(variable, base).rstrip('/')}/{file.path}"


def download_web(file: WebFile, out: Path, *, most_bytes: int) -> None:
    """Write a plain file as a whole or not at all.

    Args:
        most_bytes: refuse anything longer.

    Raises:
        Unreachable: no connection, a failing server, or a body that breaks off.
        FetchError: no such file, no permission, or too long.
    """
    address = web_address(file)
    if offline():
        raise Unreachable(f"{address}: HF_HUB_OFFLINE is set")
    for delay in (*RETRY_DELAYS_S, None):
        try:
            with atomic_path(out) as partial:
                _read_to(address, partial, most_bytes)
            return
        except FetchError as error:
            if not isinstance(error, Unreachable) or delay is None:
                raise
            logger.warning("%s; trying again", error)
        time.sleep(delay)


def _read_to(address: str, out: Path, most_bytes: int) -> None:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer, out.open("wb") as file:
            announced = answer.headers.get("Content-Length")
            received = 0
            while block := answer.read(_BLOCK_BYTES):
                received += len(block)
                if received > most_bytes:
                    raise FetchError(f"{address}: longer than {most_bytes} bytes")
                file.write(block)
    except urllib.error.HTTPError as error:
        kind = Unreachable if error.code >= 500 or error.code in (408, 429) else FetchError
        raise kind(f"{address}: the server answers {error.code}") from error
    except FetchError:
        raise
    except OSError as error:
        if not isinstance(error, (urllib.error.URLError, TimeoutError, ConnectionError)):
            raise  # of this machine: no space, no permission
        raise Unreachable(f"{address}: {_one_line(error)}") from error
    except Exception as error:  # a broken answer, as http.client sees it
        raise Unreachable(f"{address}: {_one_line(error)}") from error
    if announced is not None and received != int(announced):
        raise Unreachable(f"{address}: broke off after {received} of {announced} bytes")
