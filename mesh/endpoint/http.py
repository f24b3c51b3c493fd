"""The HTTP side of a pod: inference over REST, whether it is alive and ready, what it counts.

A Starlette application under uvicorn, on the pod's own event loop. `/healthz` answers as long as the loop turns;
`/readyz` answers 503 from the moment that the pod drains, so that load balancers leave before connections break.

Inference is translated into the gRPC endpoint's calls (`mesh.endpoint.rest`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable, Iterator

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mesh.endpoint.rest import openapi
from mesh.endpoint.rest.calls import HttpCalls, http_error, json_response
from mesh.endpoint.rest.extensions import ExtensionsRest
from mesh.endpoint.rest.generate import GenerateRest
from mesh.endpoint.rest.repository import RepositoryRest
from mesh.endpoint.rest.v1 import V1Rest
from mesh.endpoint.rest.v2 import V2Rest
from mesh.transport.base import CannotListen, TransportLimits

_CONNECTIONS_MORE = 256
"""Beside those of calls: probes and scrapers, and clients that keep one open. Beyond it uvicorn answers 503."""
_KEEPALIVE_TRIES = 4


def build_app(
    registry: CollectorRegistry, ready: Callable[[], str], calls: HttpCalls, server_version: str
) -> Starlette:
    """The application. `ready()` is empty when the pod is ready, else says why it is not."""
    described = openapi.document(server_version)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        reason = ready()
        return PlainTextResponse(f"{reason or 'ready'}\n", status_code=503 if reason else 200)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def description(_: Request) -> Response:
        return json_response(described)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/openapi.json", description),
            *RepositoryRest(calls).routes(),
            *ExtensionsRest(calls).routes(),
            *GenerateRest(calls).routes(),
            *V2Rest(calls).routes(),
            *V1Rest(calls).routes(),
        ],
        exception_handlers={HTTPException: http_error},
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the pod, not to its HTTP server."""
        yield


class HttpFront:
    """The listening HTTP server."""

    def __init__(self, app: Starlette, host: str, port: int, limits: TransportLimits, stop_grace_s: float) -> None:
        self._limits = limits
        self._host = host
        self._port = port
        self._server = _Server(
            uvicorn.Config(
                app,
                lifespan="off",
                log_level="warning",
                access_log=False,
                limit_concurrency=limits.calls_max + _CONNECTIONS_MORE,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(stop_grace_s),
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen; returns the port. Raises CannotListen."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._notice_clients_that_vanish(listener)
        try:
            listener.bind((self._host, self._port))
        except OSError as error:
            listener.close()
            raise CannotListen(
                f"http_port: cannot listen on {self._host}:{self._port}: {error.strerror}; "
                "choose another with --http-port, or 0 for any free one"
            ) from error
        port: int = listener.getsockname()[1]
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))
        listening = asyncio.ensure_future(self._server.listening.wait())
        await asyncio.wait([self._task, listening], return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            listening.cancel()
            self._task.result()
            raise CannotListen(f"http_port: the HTTP server stopped while starting on {self._host}:{port}")
        return port

    def _notice_clients_that_vanish(self, listener: socket.socket) -> None:
        """Inherited by connections. One that was lost while its request came in would keep a call for ever."""
        interval_s = self._limits.keepalive_timeout_s / _KEEPALIVE_TRIES
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, math.ceil(self._limits.keepalive_after_s))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, math.ceil(interval_s))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_TRIES)

    async def stop(self) -> None:
        """Stop listening, finish running requests, bounded."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task
