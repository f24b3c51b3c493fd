"""Ports for servers that keep theirs over restarts.

The system's own choice (port 0) comes from the range that outgoing connections get their ports from: while a server
is down, one of those may take its port. So these are chosen below that range, at random, and tried.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice

_FIRST, _LAST = 15_000, 32_000
"""Above what services are usually found at, below what Linux (32768) and macOS (49152) give to connections."""
_TRIES = 2000
_given: set[int] = set()
"""By this process: whoever was given a port may not listen on it yet."""


def free_ports(count: int) -> list[int]:
    """So many ports of 127.0.0.1 that nobody listens on now, none of them given before. Raises OSError."""
    with ExitStack() as held:
        ports = list(islice(_take_ports(held), count))
    if len(ports) < count:
        raise OSError(f"found {len(ports)} free ports between {_FIRST} and {_LAST}, {count} are needed")
    return ports


def _take_ports(held: ExitStack) -> Iterator[int]:
    for port in random.sample(range(_FIRST, _LAST), _TRIES):
        if port in _given:
            continue
        try:
            held.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        _given.add(port)
        yield port
