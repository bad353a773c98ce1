"""A small server that speaks as much of the Hub's API as ``huggingface_hub`` asks for here.

Repositories hold files at revisions. Large ones are answered as the Hub answers them: a HEAD with
the hash and size of what is linked, a redirect to where the bytes lie, ranges. Uploads go through
``preupload``, the LFS batch and ``commit``. Plain addresses are served too. Faults are scheduled.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LFS_FROM_BYTES = 10_000
BLOCK_BYTES = 1 << 16
Content = bytes | Path


def size_of(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def sha256_of(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_of(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a repository, hashed once."""

    content: Content
    size: int
    sha256: str
    lfs: bool

    @classmethod
    def of(cls, content: Content) -> File:
        size = size_of(content)
        return cls(content, size, sha256_of(content), size >= LFS_FROM_BYTES)

    @property
    def blob_id(self) -> str:
        return self.sha256[:40] if self.lfs else git_blob_of(self.bytes())

    def bytes(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass
class Repo:
    """Revisions by commit, oldest first; ``main`` is the last one."""

    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    token: str | None = None  # who may see it; None: anybody

    @property
    def head(self) -> str:
        return next(reversed(self.commits))

    def commit(self, sha: str, files: dict[str, Content]) -> None:
        before = dict(self.commits[self.head]) if self.commits else {}
        self.commits[sha] = before | {path: File.of(content) for path, content in files.items()}

    def at(self, revision: str) -> tuple[str, dict[str, File]] | None:
        sha = self.head if revision == "main" and self.commits else revision
        return (sha, self.commits[sha]) if sha in self.commits else None


@dataclass
class Fault:
    """What goes wrong with requests whose line contains ``where``.

    Attributes:
        where: part of ``METHOD /path``.
        status: answered instead.
        cut_after: bytes of the body after which the connection ends.
        reset: end it with a reset instead of a close.
        stall_after: bytes of the body after which nothing more comes.
        shorten: announce and send so many bytes fewer.
        spoil: change a byte of the body, at this place.
        times: how often.
    """

    where: str
    status: int | None = None
    cut_after: int | None = None
    stall_after: int | None = None
    reset: bool = False
    shorten: int = 0
    spoil: int | None = None
    times: int = 1_000_000


class HubServer:
    """State shared by all requests."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.web: dict[str, Content] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.writers: set[str] = set()  # tokens that may write
        self.uploaded: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.stalled, self.closing = threading.Event(), threading.Event()
        self.url = self.storage_url = ""

    def fault(self, line: str) -> Fault:
        with self.lock:
            self.log.append(line)
            for fault in self.faults:
                if fault.where in line and fault.times > 0:
                    fault.times -= 1
                    return fault
        return Fault("")

    def asked(self, part: str) -> list[str]:
        """Request lines that contain ``part``."""
        with self.lock:
            return [line for line in self.log if part in line]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            super().handle_one_request()

    # Answers

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, content: object, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode(), Content_Type="application/json")

    def refuse(self, status: int, code: str = "") -> None:
        self.answer(status, b"{}", **({"X_Error_Code": code} if code else {}))

    def send_content(self, content: Content, fault: Fault) -> None:
        size = size_of(content)
        begin, status = 0, 200
        wanted = self.headers.get("Range")
        if wanted:
            begin, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(size - begin - fault.shorten))
        self.end_headers()
        if self.command == "HEAD":
            return
        left = size - begin - fault.shorten
        for end in (fault.cut_after, fault.stall_after):
            left = left if end is None else min(left, end)
        position = begin
        for block in blocks(content, begin):
            block = block[:left]
            if fault.spoil is not None and position <= fault.spoil < position + len(block):
                changed = bytearray(block)
                changed[fault.spoil - position] ^= 1
                block = bytes(changed)
            self.wfile.write(block)
            position, left = position + len(block), left - len(block)
            if not left:
                break
        if fault.stall_after is not None:
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.closing.wait()
            self.close_connection = True
        if fault.cut_after is not None:
            self.wfile.flush()
            if fault.reset:
                option = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
                self.connection.close()
            self.close_connection = True

    # Requests

    def do_HEAD(self) -> None:
        self.route()

    do_GET = do_POST = do_PUT = do_HEAD

    def route(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.hub.fault(f"{self.command} {path}")
        if fault.status is not None:
            self.refuse(fault.status)
            return
        if path in self.hub.web:
            self.send_content(self.hub.web[path], fault)
            return
        steps = path.strip("/").split("/")
        if steps[0] == "linked":
            self.linked(steps[1], fault)
        elif steps[0] == "upload":
            self.hub.uploaded[steps[1]] = body
            self.answer(200)
        elif steps[:1] == ["api"]:
            self.api(steps[1:], query, body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.lfs_batch(body)
        elif len(steps) >= 5 and steps[2] == "resolve":
            self.resolve("/".join(steps[:2]), steps[3], "/".join(steps[4:]), fault)
        else:
            self.refuse(404)

    def bearer(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def repo(self, name: str) -> Repo | None:
        """A repository that the client may see; otherwise the refusal is sent."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.token is not None and self.bearer() != repo.token):
            self.refuse(401 if self.bearer() is None else 404, "RepoNotFound")
            return None
        return repo

    def resolve(self, name: str, revision: str, path: str, fault: Fault) -> None:
        repo = self.repo(name)
        if repo is None:
            return
        found = repo.at(revision)
        if found is None:
            self.refuse(404, "RevisionNotFound")
            return
        sha, files = found
        if path not in files:
            self.answer(404, b"{}", X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            return
        file = files[path]
        if file.lfs:
            self.answer(
                302,
                X_Repo_Commit=sha,
                X_Linked_Etag=f'"{file.sha256}"',
                X_Linked_Size=str(file.size),
                Location=f"{self.hub.storage_url}/linked/{file.sha256}",
            )
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", sha)
        self.send_header("ETag", f'"{file.blob_id}"')
        self.send_header("Content-Length", str(file.size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(file.bytes())

    def linked(self, sha256: str, fault: Fault) -> None:
        for repo in self.hub.repos.values():
            for files in repo.commits.values():
                for file in files.values():
                    if file.sha256 == sha256:
                        self.send_content(file.content, fault)
                        return
        self.refuse(404)

    def api(self, steps: list[str], query: dict[str, list[str]], body: bytes) -> None:
        if steps == ["validate-yaml"]:
            self.answer_json({"errors": [], "warnings": []})
        elif steps == ["repos", "create"]:
            self.create(json.loads(body))
        elif steps[0] == "models" and len(steps) >= 3:
            name, rest = "/".join(steps[1:3]), steps[3:]
            if rest[:1] in (["preupload"], ["commit"]) and self.bearer() not in self.hub.writers:
                self.refuse(401)
                return
            repo = self.repo(name)
            if repo is None:
                return
            if rest[:1] == ["preupload"]:
                wanted = json.loads(body)["files"]
                self.answer_json({"files": [upload_mode(one) for one in wanted]})
            elif rest[:1] == ["commit"]:
                self.commit(name, repo, body)
            else:
                self.information(name, repo, rest, query, body)
        else:
            self.refuse(404)

    def information(
        self, name: str, repo: Repo, rest: list[str], query: dict[str, list[str]], body: bytes
    ) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        found = repo.at(revision)
        if found is None:
            self.refuse(404, "RevisionNotFound")
            return
        sha, files = found
        if rest[:1] == ["paths-info"]:
            paths = parse_qs(body.decode())["paths"]
            self.answer_json([path_info(path, files[path]) for path in paths if path in files])
            return
        siblings = [sibling(path, file) for path, file in files.items()]
        self.answer_json({"id": name, "modelId": name, "sha": sha, "siblings": siblings})

    def create(self, wanted: dict[str, object]) -> None:
        if self.bearer() not in self.hub.writers:
            self.refuse(401)
            return
        name = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
        status = 409 if name in self.hub.repos else 200
        self.hub.repos.setdefault(name, Repo({"0" * 40: {}}))
        self.answer_json({"url": f"{self.hub.url}/{name}"}, status)

    def lfs_batch(self, body: bytes) -> None:
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}"}},
            }
            for one in json.loads(body)["objects"]
        ]
        self.answer_json({"transfer": "basic", "objects": objects})

    def commit(self, name: str, repo: Repo, body: bytes) -> None:
        files: dict[str, Content] = {}
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
        sha = hashlib.sha1(body).hexdigest()
        repo.commit(sha, files)
        self.answer_json(
            {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"}
        )


def blocks(content: Content, begin: int) -> Iterator[bytes]:
    if isinstance(content, bytes):
        for start in range(begin, len(content), BLOCK_BYTES):
            yield content[start : start + BLOCK_BYTES]
        return
    with content.open("rb") as file:
        file.seek(begin)
        while block := file.read(BLOCK_BYTES):
            yield block


def upload_mode(file: dict[str, object]) -> dict[str, object]:
    mode = "lfs" if int(file["size"]) >= LFS_FROM_BYTES else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


def path_info(path: str, file: File) -> dict[str, object]:
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return {
        "type": "file",
        "path": path,
        "size": file.size,
        "oid": file.blob_id,
        **({"lfs": lfs} if file.lfs else {}),
    }


def sibling(path: str, file: File) -> dict[str, object]:
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
    return {
        "rfilename": path,
        "size": file.size,
        "blobId": file.blob_id,
        **({"lfs": lfs} if file.lfs else {}),
    }


@contextlib.contextmanager
def serving() -> Iterator[HubServer]:
    """A server on a free port, until the block ends."""
    hub = HubServer()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    # Another host, as on the Hub: its client follows redirects of its own host at once.
    hub.storage_url = f"http://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
