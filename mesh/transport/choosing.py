"""Which transport serves, and why.

pygrpc-native answers several times as many requests per core as grpcio (`make bench`, transport), so it serves where it
can. What it cannot:

* Speak TLS.
* Refuse a message before it lies in memory whole. That is nobody's concern on loopback, where whoever reaches the port
  is on this machine already; beyond it, whoever reaches the port could fill the pod's memory.
* Answer a gRPC channel whose target is a list (`ipv4:10.0.0.1:8033,10.0.0.2:8033`). Such a channel sends the whole list
  as `:authority`, which the library's HTTP/2 takes for a broken request. Clients of a pool are told to use such lists.

So beyond loopback, and in a pool, an operator has to ask for it.

A host name is left to grpcio, which listens on every address that the name stands for (`localhost` often has two).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from ipaddress import ip_address
from typing import Literal

from mesh.transport.base import ListenAddress

Wanted = Literal["auto", "grpcio", "native"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A transport's name, and a clause that says why it was taken."""

    name: Literal["grpcio", "native"]
    why: str

    def __str__(self) -> str:
        return f"{self.name}, {self.why}"


class TransportMissing(Exception):
    """The transport that was asked for is not installed; the message says how to install it."""


def choose_transport(
    wanted: Wanted, addresses: Sequence[ListenAddress], *, is_pooled: bool, why_no_native: Callable[[], str]
) -> Choice:
    """The transport for these addresses. Raises TransportMissing when `wanted` is one that cannot be used here.
    `why_no_native` is asked only where it would be native."""
    if wanted == "grpcio":
        return Choice("grpcio", "as was asked for")
    if wanted == "auto":
        if is_pooled:
            why_not = "since a pool's clients may name several pods in one target, which native cannot read"
            return Choice("grpcio", why_not)
        for listen in addresses:
            if why_not := _why_not_native(listen):
                return Choice("grpcio", why_not)
    missing = why_no_native()
    if not missing:
        why = "as was asked for" if wanted == "native" else "since only this machine reaches it, and it is no pool"
        return Choice("native", why)
    if wanted == "native":
        raise TransportMissing(
            f"transport: `native` was asked for, but pygrpc-native {missing}; run `pip install pygrpc-native`, or use "
            "--transport auto"
        )
    return Choice("grpcio", f"since pygrpc-native {missing} (`pip install pygrpc-native`)")


def why_no_native() -> str:
    """Why pygrpc-native cannot be used here, as a clause about it; empty where it can. Imports it: an installed wheel
    may be for another C library or processor, which must not be found out by the first pod that listens."""
    try:
        import_module("pygrpc_native")
    except ModuleNotFoundError as error:
        if error.name == "pygrpc_native":
            return "is not installed"
        return f"cannot be imported ({error})"
    except Exception as error:  # whatever a broken extension raises
        return f"cannot be imported ({type(error).__name__}: {error})"
    return ""


def _why_not_native(listen: ListenAddress) -> str:
    if listen.is_unix_socket:
        return ""
    host = listen.address.rpartition(":")[0].strip("[]")
    try:
        if ip_address(host).is_loopback:
            return ""
    except ValueError:
        return f"since {host} is a name, which may stand for several addresses"
    return f"since {host} is reached from elsewhere, and the native transport measures a message only once it is read"
