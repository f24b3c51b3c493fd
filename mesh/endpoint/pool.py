"""What pods ask of one another: are you there, load this, what did you last know, can you reach me.

All but the first need the role PEER, which no client has (`mesh.endpoint.access`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mesh.endpoint.access import Access
from mesh.routing.peers import TakeOrders, names_page, orders_of
from mesh.transport.base import (
    Call,
    Dial,
    LineBroken,
    PeerWays,
    Reply,
    ReplyWithTrailers,
    StatusCode,
    TransportError,
    UnaryHandler,
)
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import hexcomb_pb2
from placement.peers import PeerError
from placement.view import RegistryView

DIAL_BACK_TIMEOUT_S = 2.0


class PoolEndpoint:
    """Handlers of `hexcomb.v1.Pool`."""

    def __init__(
        self,
        access: Access,
        own_pod: str,
        incarnation: str,
        *,
        is_draining: Callable[[], bool],
        take_orders: TakeOrders,
        names: Callable[[], RegistryView],
        dial: Dial,
        clock: Callable[[], float],
    ) -> None:
        self._access = access
        self._own_pod = own_pod
        self._incarnation = incarnation
        self._is_draining = is_draining
        self._take_orders = take_orders
        self._names = names
        self._dial = dial
        self._clock = clock

    def routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method."""
        return {
            messages.PROBE.path: self.probe,
            messages.ORDER.path: self.order,
            messages.EXPORT_NAMES.path: self.export_names,
            messages.DIAL_BACK.path: self.dial_back,
        }

    async def probe(self, call: Call) -> Reply:
        """The event loop turns."""
        self._access.caller(call)
        return hexcomb_pb2.ProbeResponse(
            pod=self._own_pod, incarnation=self._incarnation, draining=self._is_draining()
        ).SerializeToString()

    async def order(self, call: Call) -> Reply:
        """Take the leader's orders."""
        self._access.caller(call)
        try:
            await self._take_orders(orders_of(messages.parse(messages.ORDER, call.body)))
        except PeerError as error:
            raise TransportError(StatusCode.FAILED_PRECONDITION, error.message) from error
        return hexcomb_pb2.OrderResponse().SerializeToString()

    async def export_names(self, call: Call) -> Reply:
        """A page of the names as this pod last saw them."""
        self._access.caller(call)
        request = messages.parse(messages.EXPORT_NAMES, call.body)
        return names_page(self._names(), request.page_token).SerializeToString()

    async def dial_back(self, call: Call) -> Reply:
        """Whether the pod that asks answers where it says that it does."""
        self._access.caller(call)
        request = messages.parse(messages.DIAL_BACK, call.body)
        line = self._dial(PeerWays(request.address))
        probe = hexcomb_pb2.ProbeRequest(from_pod=self._own_pod).SerializeToString()
        response = hexcomb_pb2.DialBackResponse()
        try:
            async with asyncio.timeout(2 * DIAL_BACK_TIMEOUT_S):
                reply = await line.call(messages.PROBE.path, probe, (), self._clock() + DIAL_BACK_TIMEOUT_S)
            body = reply.body if isinstance(reply, ReplyWithTrailers) else reply
            found = messages.parse_response(messages.PROBE, body)
            response.reached = (found.pod, found.incarnation) == (request.pod, request.incarnation)
            if not response.reached:
                response.message = f"another pod, {found.pod!r}, answers at {request.address}"
        except (LineBroken, TransportError, TimeoutError, InvalidMessage) as error:
            response.message = f"no answer at {request.address} from pod {self._own_pod!r}: {error}"
        finally:
            await line.close()
        return response.SerializeToString()
