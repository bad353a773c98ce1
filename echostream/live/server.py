"""The HTTP and WebSocket application: stream, page, health, models, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from echostream import __version__
from echostream.live.catalog import Catalog
from echostream.live.connection import serve_connection
from echostream.live.limits import Limits
from echostream.live.metrics import Metrics
from echostream.live.scheduler import Scheduler
from echostream.live.security import SECURITY_HEADERS, Gate, bearer
from echostream.live.sessions import SessionTable

logger = logging.getLogger(__name__)

# Far above the protocol's own bound, so that its clear words reach the client first.
HARD_MESSAGE_BYTES = 16 << 20
EXPIRY_S = 1.0
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".flac": "audio/flac",
}


def read_page() -> dict[str, tuple[bytes, str]]:
    """The page's files by URL path, all read once: no request touches the file system."""
    pages: dict[str, tuple[bytes, str]] = {}
    root = files("echostream.live") / "page"
    folders = [("", root)]
    while folders:
        prefix, folder = folders.pop()
        for item in folder.iterdir():
            if item.is_dir():
                folders.append((f"{prefix}/{item.name}", item))
                continue
            suffix = item.name[item.name.rfind(".") :]
            if suffix in MEDIA_TYPES:
                pages[f"{prefix}/{item.name}"] = (item.read_bytes(), MEDIA_TYPES[suffix])
    pages["/"] = pages["/index.html"]
    return pages


def create_app(
    catalog: Catalog,
    *,
    gate: Gate | None = None,
    limits: Limits | None = None,
    chunk_ms: int = 320,
    scheduler: Scheduler | None = None,
) -> Starlette:
    """Build the application; its scheduler runs between startup and shutdown.

    Args:
        catalog: the models served.
        gate: who may connect; None: anybody on this machine.
        limits: bounds; None: the defaults.
        chunk_ms: source per decision for clients that name none.
        scheduler: not yet started; None: a new one. Models that recompute have another, so that
            their long chunks keep nobody waiting.
    """
    gate = gate or Gate()
    metrics = Metrics()
    scheduler, recomputing = scheduler or Scheduler(), Scheduler(max_batch=1)
    table = SessionTable(
        catalog,
        scheduler,
        metrics,
        limits or Limits(),
        chunk_ms=chunk_ms,
        recomputing=recomputing,
    )
    pages = read_page()

    def refused(request: Request) -> Response | None:
        if gate.token_allowed(bearer(request.headers.get("authorization"))):
            return None
        return JSONResponse(
            {"error": "this server wants its token: Authorization: Bearer TOKEN"}, status_code=401
        )

    async def page(request: Request) -> Response:
        body, media_type = pages[request.url.path]
        return Response(body, media_type=media_type)

    async def health(request: Request) -> Response:
        return JSONResponse(
            {
                "status": "ok",
                "version": __version__,
                "sessions": len(table),
                "max_sessions": table.limits.max_sessions,
            }
        )

    async def models(request: Request) -> Response:
        listed = [model.describe() for model in catalog.models.values()]
        answer = {"default": catalog.default.name, "chunk_ms": chunk_ms, "models": listed}
        return refused(request) or JSONResponse(answer)

    async def figures(request: Request) -> Response:
        return refused(request) or Response(
            metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def stream(websocket: WebSocket) -> None:
        await serve_connection(websocket, table, gate)

    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if gate.host_allowed(request.headers.get("host")):
            response = await call_next(request)
        else:
            response = JSONResponse({"error": "unknown host"}, status_code=400)
        response.headers.update(SECURITY_HEADERS)
        return response

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        scheduler.start()
        recomputing.start()
        expiry = asyncio.create_task(_expire(table))
        try:
            yield
        finally:
            expiry.cancel()
            # The workers finish their batches; the loop must not wait for them.
            await asyncio.to_thread(scheduler.close)
            await asyncio.to_thread(recomputing.close)

    app = Starlette(
        routes=[
            Route("/healthz", health),
            Route("/v1/models", models),
            Route("/metrics", figures),
            WebSocketRoute("/v1/stream", stream),
            *(Route(path, page) for path in pages),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)],
        lifespan=lifespan,
    )
    app.state.table = table
    return app


async def _expire(table: SessionTable) -> None:
    while True:
        await asyncio.sleep(EXPIRY_S)
        table.expire()


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 takes a free one.

    Its connections send every message at once. Otherwise the second of two small ones would wait
    until the client has confirmed the first, for which it may take 40 ms; and asyncio sees to it
    for sockets alone that were made with the protocol's number.

    Raises:
        OSError: the address is not this machine's, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def uvicorn_settings(host: str, port: int) -> dict[str, Any]:
    """How uvicorn runs the application."""
    return {
        "host": host,
        "port": port,
        "ws_max_size": HARD_MESSAGE_BYTES,
        "ws_per_message_deflate": False,  # samples do not deflate, and it costs memory
        "ws_ping_interval": 20.0,
        "ws_ping_timeout": 60.0,  # longer than a throttled client's pong may wait in its queue
        "timeout_graceful_shutdown": 5,
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
    }
