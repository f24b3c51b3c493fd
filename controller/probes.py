"""/healthz, /readyz and /metrics over HTTP, on the controller's own loop.

`/healthz` answers as long as the loop turns. `/readyz` is 200 once the cluster's objects have been read: a controller
that stands by is ready, too, or an update of its Deployment would wait for a lease that the old one holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

CONNECTIONS_MAX = 64
"""Probes and scrapers."""


class CannotListen(Exception):
    """The address is taken, or is not this machine's; the message says what to do."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the controller."""
        yield


class Probes:
    """The listening HTTP server."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, why_unready: Callable[[], str]) -> None:
        """`why_unready`: empty when it is ready."""

        async def healthz(request: Request) -> Response:
            return PlainTextResponse("ok\n")

        async def readyz(request: Request) -> Response:
            why = why_unready()
            return PlainTextResponse(f"{why or 'ok'}\n", 503 if why else 200)

        async def metrics(request: Request) -> Response:
            return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

        routes = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
        self._host = host
        self._port = port
        self._server = _Server(
            uvicorn.Config(
                Starlette(routes=routes),
                lifespan="off",
                log_level="warning",
                access_log=False,
                limit_concurrency=CONNECTIONS_MAX,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> int:
        """Listen; returns the port. Raises CannotListen."""
        listener = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._host, self._port))
            listener.listen(CONNECTIONS_MAX)  # from now on a probe waits, where it would be refused
        except OSError as error:
            listener.close()
            raise CannotListen(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}; choose another with --http-port"
            ) from error
        port: int = listener.getsockname()[1]
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))
        return port

    async def stop(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task
