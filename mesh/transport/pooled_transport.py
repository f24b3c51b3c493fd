"""A transport of a pod in a pool: one of the two, and beside it the answering end of lines from other pods.

Clients and gRPC calls of pods come through the transport within. Batches from other pods come over a port of their own
and, from the same machine, over a unix socket that only this user may open; what lets them in is the pod's key, which
they show first. Both share the limits of the transport within, so a pod is as full as its calls are many, whichever
way they came.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from mesh.transport.admission import Admission
from mesh.transport.answering import Answering, Exchange
from mesh.transport.base import ListenAddress, PeerDoor, PeerWays, Routes, Transport, TransportLimits
from mesh.transport.listening import check_free, taken, with_port
from mesh.transport.pipe import SocketPipe
from mesh.transport.socket_directory import SocketDirectory

_log = logging.getLogger(__name__)

_GOODBYE_S = 0.5
"""For callers to end their lines when the pod stops."""


class PooledTransport:
    """`mesh.transport.base.Transport`."""

    def __init__(
        self, within: Callable[[Admission], Transport], routes: Routes, limits: TransportLimits, door: PeerDoor
    ) -> None:
        """`within`: makes the transport for all that does not come in batches."""
        self._admission = Admission(limits)
        self._within = within(self._admission)
        self._exchange = Exchange(routes, limits, self._admission, door.admit)
        self._door_address = door.address
        self._servers: list[asyncio.Server] = []
        self._sockets: SocketDirectory | None = None
        self._ways: PeerWays | None = None

    @property
    def name(self) -> str:
        return self._within.name

    @property
    def limits(self) -> TransportLimits:
        return self._within.limits

    @property
    def addresses(self) -> Sequence[ListenAddress]:
        return self._within.addresses

    @property
    def peer_ways(self) -> PeerWays | None:
        return self._ways

    @property
    def calls_in_flight(self) -> int:
        return self._within.calls_in_flight

    @property
    def calls_shed(self) -> int:
        return self._within.calls_shed

    async def start(self) -> int:
        port = await self._within.start()
        try:
            await self._open_door()
        except BaseException:
            await self.stop(0.0)
            raise
        return port

    async def _open_door(self) -> None:
        loop = asyncio.get_running_loop()
        check_free(self._door_address)
        host, _, wanted_port = self._door_address.rpartition(":")
        new_line = partial(_new_line, self._exchange)
        try:
            server = await loop.create_server(new_line, host.strip("[]"), int(wanted_port))
        except OSError as error:
            raise taken(self._door_address) from error
        self._servers.append(server)
        self._sockets = SocketDirectory()
        socket = str(self._sockets.path / "peers")
        try:
            self._servers.append(await loop.create_unix_server(new_line, socket))
        except OSError as error:
            _log.warning("pods of this machine call this one over TCP: it cannot listen on %s: %s", socket, error)
            socket = ""
        bound_port = server.sockets[0].getsockname()[1]
        self._ways = PeerWays(self._within.addresses[0].address, with_port(self._door_address, bound_port), socket)

    async def stop(self, grace_s: float) -> None:
        grace_ends_s = time.monotonic() + grace_s
        await self._admission.close(grace_s)
        for server in self._servers:
            server.close()
        await self._exchange.say_goodbye(_GOODBYE_S, max(_GOODBYE_S, grace_ends_s - time.monotonic()))
        await self._within.stop(max(0.0, grace_ends_s - time.monotonic()))
        if self._sockets is not None:
            self._sockets.remove()


def _new_line(exchange: Exchange) -> SocketPipe:
    return SocketPipe(Answering(exchange), reads_when_full=False)
