"""Addresses to listen on: what is one, and what is in the way of listening there; and what all that listen have.

The libraries below are more generous than is good: gRPC takes port 99999 for 34463 and a lone host name for port 443,
and whoever binds a unix socket deletes the file that is there, served by another process or not.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from mesh.transport.admission import Admission
from mesh.transport.base import CannotListen, ListenAddress, PeerWays, Routes, TransportLimits

_PORT_MAX = 65535


class Listening:
    """What every transport has: its routes, where it listens, its limits, and the count of calls against them."""

    def __init__(
        self,
        routes: Routes,
        addresses: Sequence[ListenAddress],
        limits: TransportLimits | None,
        admission: Admission | None = None,
    ) -> None:
        """`admission`: of the transport that this one is a part of."""
        if not addresses:
            raise ValueError("a transport needs at least one address to listen on")
        self._routes = routes
        self._addresses = tuple(addresses)
        self._limits = limits or TransportLimits()
        self._admission = admission or Admission(self._limits)

    @property
    def limits(self) -> TransportLimits:
        return self._limits

    @property
    def addresses(self) -> Sequence[ListenAddress]:
        return self._addresses

    @property
    def peer_ways(self) -> PeerWays | None:
        return None

    @property
    def calls_in_flight(self) -> int:
        return self._admission.in_flight

    @property
    def calls_shed(self) -> int:
        return self._admission.shed


def check_free(address: str) -> None:
    """Raises CannotListen for what is no address, and for a unix socket that a process serves."""
    if address.startswith("unix:"):
        _refuse_live_socket(address.removeprefix("unix:"))
        return
    _, _, port_text = address.rpartition(":")
    if ":" not in address or not port_text.isdecimal() or int(port_text) > _PORT_MAX:
        raise CannotListen(f"cannot listen on {address}: write HOST:PORT, [IPv6]:PORT or unix:PATH")


def taken(address: str) -> CannotListen:
    """The system has refused this address."""
    return CannotListen(
        f"cannot listen on {address}: it is taken by another process, or is no address of this machine; stop that "
        f"process or choose another address (port 0 takes any free one)"
    )


def with_port(address: str, port: int) -> str:
    """HOST:0 with the port that was bound."""
    return f"{address.rpartition(':')[0]}:{port}"


def _refuse_live_socket(path: str) -> None:
    if not os.path.exists(path):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return
    raise CannotListen(f"cannot listen on unix:{path}: another process serves it; stop that one or choose another path")
