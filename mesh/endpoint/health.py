"""`grpc.health.v1`: what load balancers and Kubernetes' gRPC probes ask.

The empty service name and `inference.GRPCInferenceService` are SERVING from start to drain. A watcher gets each change
once, as the protocol has it; it waits on an event, not on a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from mesh.endpoint.access import Access
from mesh.transport.base import Call, StatusCode, TransportError
from mesh.wire import messages
from mesh.wire.generated import health_pb2

KNOWN_SERVICES = frozenset({"", "inference.GRPCInferenceService", "mmesh.ModelMesh", "hexcomb.v1.Management"})


class HealthEndpoint:
    """Handlers of `grpc.health.v1.Health`."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._serving = False
        self._closing = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        """Tell all watchers."""
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Not serving any more, for good: watchers are told and their streams end, so that none holds up the stop."""
        self._closing = True
        self.set_serving(False)

    async def check(self, call: Call) -> bytes:
        """The state now. NOT_FOUND for a service that is not served here."""
        self._access.caller(call)
        service = messages.parse(messages.HEALTH_CHECK, call.body).service
        if service not in KNOWN_SERVICES:
            raise TransportError(
                StatusCode.NOT_FOUND,
                f"service {service[:100]!r} is not served here; ask for one of "
                f"{', '.join(repr(name) for name in sorted(KNOWN_SERVICES))}",
            )
        return self._response(service)

    async def watch(self, call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The state now and after each change, until the client leaves or the pod stops."""
        self._access.caller(call)
        async for body in requests:
            service = messages.parse(messages.HEALTH_WATCH, body).service
            told = b""
            while True:
                changed, now = self._changed, self._response(service)
                if now != told:
                    yield now
                    told = now
                    continue  # it may have changed while the client read
                if self._closing:
                    return
                await changed.wait()

    def _response(self, service: str) -> bytes:
        states = health_pb2.HealthCheckResponse
        if service not in KNOWN_SERVICES:
            status = states.SERVICE_UNKNOWN
        else:
            status = states.SERVING if self._serving else states.NOT_SERVING
        return states(status=status).SerializeToString()
