"""What a client knows of its endpoints, and which of them it asks next.

Calls go round over the endpoints that are well. One that gives no answer is left out for a while that doubles each
time it fails again, up to a limit; then it gets another chance, and a single answer makes it well. One that says it is
draining still answers, so it is only asked when no other one is well. None is ever given up: when all are left out,
the one that is nearest to its next chance is asked.

Also kept here: the highest revision that a pod has written for this client, so that the next pod does not answer from
before that.

Deliberately absent: connections, waiting, and what an error means (`mesh.client.attempts`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from mesh.transport.base import Metadata
from mesh.wire.messages import REVISION_METADATA

LEFT_OUT_FIRST_S = 1.0
LEFT_OUT_MAX_S = 30.0
"""Between the tries of an endpoint that does not answer: each costs one call a short detour."""
DRAINING_S = 10.0
"""How long a pod that said it drains is avoided: by then it has stopped, or says so again."""
WRITE_RECENT_S = 10.0
"""After a write, how long other pods are told of it: their views are behind by milliseconds, at worst by seconds."""
_RESOLVED_BY_GRPC = ("ipv4:", "ipv6:")


def parse_endpoints(endpoints: str | Iterable[str]) -> tuple[str, ...]:
    """`a:8033,b:8033`, gRPC's `ipv4:10.0.0.1:8033,10.0.0.2:8033`, or a list, as addresses; each once.

    Raises ValueError.
    """
    parts: list[str] = []
    for given in [endpoints] if isinstance(endpoints, str) else endpoints:
        scheme = next((scheme for scheme in _RESOLVED_BY_GRPC if given.startswith(scheme)), "")
        parts += given.removeprefix(scheme).split(",")
    found = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not found:
        raise ValueError("no endpoint is given; write HOST:PORT, or several with commas between them")
    for address in found:
        if address.startswith(("http://", "https://", "grpc://", "grpcs://")):
            raise ValueError(f"endpoint {address[:80]!r} is a URL; write HOST:PORT of the gRPC port, as in pod:8033")
    return found


@dataclass(slots=True)
class _Endpoint:
    address: str
    failures: int = 0
    """In a row."""
    left_out_until_s: float = 0.0
    draining_until_s: float = 0.0


class Endpoints:
    """May be used from several threads."""

    def __init__(self, addresses: Iterable[str], clock: Callable[[], float], first: int = 0) -> None:
        """`first`: where the round begins, so that clients started together do not all begin with the same pod."""
        self._endpoints = {address: _Endpoint(address) for address in addresses}
        self._order = list(self._endpoints.values())
        self._next = first
        self._clock = clock
        self._lock = threading.Lock()
        self._revision = 0
        self._wrote_at_s = 0.0

    def __len__(self) -> int:
        return len(self._order)

    def choose(self, tried: Container[str] = ()) -> str:
        """The endpoint to ask next, `tried` ones last."""
        if len(self._order) == 1:
            return self._order[0].address
        with self._lock:
            now_s = self._clock()
            turn, count = self._next, len(self._order)
            self._next = (turn + 1) % count

            def preference(index: int) -> tuple[bool, float, bool, int]:
                # 1. not tried for this call; 2. not left out, else the one with the nearest chance; 3. not draining;
                # 4. whose turn it is.
                endpoint = self._order[index]
                left_out_s = max(0.0, endpoint.left_out_until_s - now_s)
                return (
                    endpoint.address in tried,
                    left_out_s,
                    endpoint.draining_until_s > now_s,
                    (index - turn) % count,
                )

            return self._order[min(range(count), key=preference)].address

    def answered(self, address: str, *, draining: bool) -> None:
        """It gave an answer, good or bad. Others than endpoints may, too."""
        endpoint = self._endpoints.get(address)
        if endpoint is None:
            return
        if not draining and not endpoint.failures and not endpoint.draining_until_s:
            return
        with self._lock:
            endpoint.failures = 0
            endpoint.left_out_until_s = 0.0
            endpoint.draining_until_s = self._clock() + DRAINING_S if draining else 0.0

    def failed(self, address: str) -> None:
        """It gave no answer. Others than endpoints may not, either."""
        endpoint = self._endpoints.get(address)
        if endpoint is None:
            return
        with self._lock:
            now_s = self._clock()
            if now_s < endpoint.left_out_until_s:
                return  # a call that was under way when another one failed
            pause_s = min(LEFT_OUT_FIRST_S * 2.0 ** min(endpoint.failures, 30), LEFT_OUT_MAX_S)
            endpoint.left_out_until_s = now_s + pause_s
            endpoint.failures += 1

    def wrote(self, revision: int) -> None:
        """A pod has written something for this client."""
        with self._lock:
            self._revision = max(self._revision, revision)
            self._wrote_at_s = self._clock()

    def metadata(self) -> Metadata:
        """What every call says of the writes before it."""
        if not self._revision or self._clock() - self._wrote_at_s > WRITE_RECENT_S:
            return ()
        return ((REVISION_METADATA, str(self._revision)),)
