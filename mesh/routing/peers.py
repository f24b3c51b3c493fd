"""`placement.peers.Peers` over the lines between pods: orders, and the last view of the names.

An order to this pod takes the same way up to the last step, so that the leader cannot do to itself what it could not
do to others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator, Sequence

from mesh.routing.links import Links
from mesh.transport.base import LineBroken, Reply, ReplyWithTrailers, TransportError
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import hexcomb_pb2
from placement import keys
from placement.errors import PlacementError
from placement.peers import LoadOrder, Order, PeerError, UnloadOrder
from placement.policy.snapshot import ModelName
from placement.records import AliasRecord, ModelRecord, alias_from_json, alias_to_json, model_from_json, model_to_json
from placement.view import RegistryView

CALL_TIMEOUT_S = 3.0
LOADED_TIMEOUT_S = 600.0
"""Of an order that is answered when the model is servable."""
PAGE_BYTES_MAX = 1024 * 1024
PAGES_MAX = 100_000

TakeOrders = Callable[[Sequence[Order]], Awaitable[None]]
"""What a pod does with orders. Raises PeerError."""


class MeshPeers:
    """Calls other pods, and this one. Belongs to the event loop."""

    def __init__(
        self,
        own_pod: str,
        links: Links,
        take_orders: TakeOrders,
        names: Callable[[], RegistryView],
        clock: Callable[[], float],
    ) -> None:
        self._own_pod = own_pod
        self._links = links
        self._take_orders = take_orders
        self._names = names
        self._clock = clock

    async def order(self, pod: str, orders: Sequence[Order]) -> None:
        if pod == self._own_pod:
            await self._take_orders(orders)
            return
        request = hexcomb_pb2.OrderRequest(from_pod=self._own_pod, orders=[_as_message(order) for order in orders])
        waits = any(isinstance(order, LoadOrder) and order.wait for order in orders)
        await self._call(
            pod, messages.ORDER.path, request.SerializeToString(), LOADED_TIMEOUT_S if waits else CALL_TIMEOUT_S
        )

    async def export_names(self, pod: str) -> tuple[list[ModelRecord], list[AliasRecord]]:
        if pod == self._own_pod:
            view = self._names()
            aliases = [alias for tenant in view.tenants.values() for alias in tenant.aliases.values()]
            return list(view.every_model()), aliases
        models: list[ModelRecord] = []
        aliases = []
        token = ""
        for _ in range(PAGES_MAX):
            request = hexcomb_pb2.ExportNamesRequest(page_token=token)
            reply = await self._call(pod, messages.EXPORT_NAMES.path, request.SerializeToString(), CALL_TIMEOUT_S)
            try:
                response = messages.parse_response(messages.EXPORT_NAMES, reply)
            except InvalidMessage as error:
                raise PeerError(pod, str(error)) from error
            for record in response.records:
                try:
                    tenant, name = keys.split_name_key(record.key)
                    if record.key.startswith(keys.ALIASES):
                        aliases.append(alias_from_json(tenant, name, record.value))
                    else:
                        models.append(model_from_json(tenant, name, record.value))
                except (PlacementError, UnicodeDecodeError) as error:
                    raise PeerError(pod, f"sent a name that cannot be read: {error}") from error
            token = response.next_page_token
            if not token:
                return models, aliases
        raise PeerError(pod, f"sent more than {PAGES_MAX} pages of names")

    async def _call(self, pod: str, path: str, body: bytes, timeout_s: float) -> bytes:
        try:
            reply: Reply = await self._links.call(pod, path, body, (), self._clock() + timeout_s)
        except (LineBroken, TransportError) as error:
            raise PeerError(pod, str(error)) from error
        return reply.body if isinstance(reply, ReplyWithTrailers) else reply


def _as_message(order: Order) -> hexcomb_pb2.ModelOrder:
    kind = hexcomb_pb2.ModelOrder.LOAD if isinstance(order, LoadOrder) else hexcomb_pb2.ModelOrder.UNLOAD
    return hexcomb_pb2.ModelOrder(
        kind=kind,
        tenant=order.name.tenant,
        id=order.name.id,
        generation=order.generation,
        reason=order.reason,
        wait=isinstance(order, LoadOrder) and order.wait,
        even_last=isinstance(order, UnloadOrder) and order.even_last,
    )


def orders_of(request: hexcomb_pb2.OrderRequest) -> list[Order]:
    """The orders of a message."""
    orders: list[Order] = []
    for each in request.orders:
        name = ModelName(each.tenant, each.id)
        if each.kind == hexcomb_pb2.ModelOrder.LOAD:
            orders.append(LoadOrder(name, each.generation, each.reason, each.wait))
        else:
            orders.append(UnloadOrder(name, each.generation, each.reason, each.even_last))
    return orders


def names_page(view: RegistryView, token: str) -> hexcomb_pb2.ExportNamesResponse:
    """Names behind the one whose key is `token`, in one order, up to a size. Raises InvalidName.

    A key, and not a count, so that a page costs what is on it, and names that come and go between pages shift no
    other off the list.
    """
    response = hexcomb_pb2.ExportNamesResponse()
    size_bytes, last = 0, ""
    for key, record in _records(view, token):
        if size_bytes > PAGE_BYTES_MAX:
            response.next_page_token = last
            break
        value = model_to_json(record) if isinstance(record, ModelRecord) else alias_to_json(record)
        size_bytes += len(key) + len(value)
        response.records.add(key=key, value=value)
        last = key
    return response


def _records(view: RegistryView, after: str) -> Iterator[tuple[str, ModelRecord | AliasRecord]]:
    """By tenant, models before aliases, by name; from behind the record whose key is `after`."""
    tenant_before, id_before = keys.split_key(after, 2) if after else ("", "")
    models_are_over = after.startswith(keys.ALIASES)
    for tenant in sorted(view.tenants):
        if tenant < tenant_before:
            continue
        names = view.tenants[tenant]
        within = tenant == tenant_before
        if not (within and models_are_over):
            ids = names.sorted_ids()
            for index in range(bisect_right(ids, id_before) if within else 0, len(ids)):
                yield keys.model_key(tenant, ids[index]), names.models[ids[index]]
        ids = names.sorted_aliases()
        for index in range(bisect_right(ids, id_before) if within and models_are_over else 0, len(ids)):
            yield keys.alias_key(tenant, ids[index]), names.aliases[ids[index]]
