"""Addresses to listen on: what is one, and what is in the way of listening there.

The libraries below are more generous than is good: gRPC takes port 99999 for 34463 and a lone host name for port 443,
and whoever binds a unix socket deletes the file that is there, served by another process or not.
"""

from __future__ import annotations

import os
import socket

from mesh.transport.base import CannotListen

_PORT_MAX = 65535


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
