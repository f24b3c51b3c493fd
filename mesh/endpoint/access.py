"""Who is asking, and what may they do.

The tenant of a call is, in this order: the caller's verified identity (once authentication is configured), the
`hexcomb-tenant` metadata, the tenant of the address that was called, else `default`. Names are unique per tenant and
never contain it, so an unmodified client works.

Management and inference share the port and never the role. Every method stands in the table below with the role that it
needs; a method that is not in the table is not served. Without configured credentials a pod listens on loopback only
(or was told `--insecure`), and every caller has every client's role: that is where authentication will plug in.

Pods of a pool share the clients' port, too, and are told from clients by a key: each pod draws one at its start and
publishes it in its record in the store, and who calls it shows it. So nobody has to hand out a secret: what makes a pod
of the pool is that it can read the pool's store. Without the key a call is a client's, whatever else it says of itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto
from hmac import compare_digest
from ipaddress import ip_address
from urllib.parse import unquote

from mesh.transport.base import Call, StatusCode, TransportError
from mesh.wire import messages
from placement.errors import InvalidName
from placement.keys import check_tenant

DEFAULT_TENANT = "default"


class Role(Flag):
    """What a caller may do."""

    OBSERVE = auto()
    """Ask whether the server and its models are there."""
    INFER = auto()
    """Call models of the own tenant."""
    MANAGE = auto()
    """Register, unregister, pin and alias models of the own tenant."""
    OPERATE = auto()
    """See the pods and what they hold, of all tenants; drain them."""
    PEER = auto()
    """Be a pod of this pool."""


CLIENT_ROLES = Role.OBSERVE | Role.INFER | Role.MANAGE | Role.OPERATE
"""Of every caller, until authentication is configured. PEER is not among them: pods prove that they are pods."""

ROLE_OF_METHOD: dict[str, Role] = {
    messages.SERVER_LIVE.path: Role.OBSERVE,
    messages.SERVER_READY.path: Role.OBSERVE,
    messages.SERVER_METADATA.path: Role.OBSERVE,
    messages.HEALTH_CHECK.path: Role.OBSERVE,
    messages.HEALTH_WATCH.path: Role.OBSERVE,
    messages.MODEL_READY.path: Role.INFER,
    messages.MODEL_METADATA.path: Role.INFER,
    messages.MODEL_INFER.path: Role.INFER,
    messages.MODEL_STREAM_INFER.path: Role.INFER,
    messages.MODEL_CONFIG.path: Role.INFER,
    messages.MODEL_STATISTICS.path: Role.INFER,
    messages.SYSTEM_SHM_STATUS.path: Role.INFER,
    messages.SYSTEM_SHM_REGISTER.path: Role.INFER,
    messages.SYSTEM_SHM_UNREGISTER.path: Role.INFER,
    messages.CUDA_SHM_STATUS.path: Role.INFER,
    messages.CUDA_SHM_REGISTER.path: Role.INFER,
    messages.CUDA_SHM_UNREGISTER.path: Role.INFER,
    messages.TRACE_SETTING.path: Role.OPERATE,
    messages.LOG_SETTINGS.path: Role.OPERATE,
    messages.PREDICT.path: Role.INFER,
    messages.REPOSITORY_INDEX.path: Role.INFER,
    messages.REPOSITORY_LOAD.path: Role.MANAGE,
    messages.REPOSITORY_UNLOAD.path: Role.MANAGE,
    messages.REGISTER_MODEL.path: Role.MANAGE,
    messages.UNREGISTER_MODEL.path: Role.MANAGE,
    messages.GET_MODEL_STATUS.path: Role.MANAGE,
    messages.ENSURE_LOADED.path: Role.MANAGE,
    messages.SET_VMODEL.path: Role.MANAGE,
    messages.DELETE_VMODEL.path: Role.MANAGE,
    messages.GET_VMODEL_STATUS.path: Role.MANAGE,
    messages.REGISTER_MODELS.path: Role.MANAGE,
    messages.REGISTER_MODELS_STREAM.path: Role.MANAGE,
    messages.UNREGISTER_MODELS.path: Role.MANAGE,
    messages.LIST_MODELS.path: Role.MANAGE,
    messages.DESCRIBE_MODEL.path: Role.MANAGE,
    messages.SET_PINNED.path: Role.MANAGE,
    messages.EXPLAIN.path: Role.MANAGE,
    messages.RELEASE_MODEL.path: Role.MANAGE,
    messages.SET_ALIAS.path: Role.MANAGE,
    messages.LIST_ALIASES.path: Role.MANAGE,
    messages.DELETE_ALIAS.path: Role.MANAGE,
    messages.POD_STATUS.path: Role.OPERATE,
    messages.DRAIN_POD.path: Role.OPERATE,
    messages.PROBE.path: Role.OBSERVE,
    messages.ORDER.path: Role.PEER,
    messages.EXPORT_NAMES.path: Role.PEER,
    messages.DIAL_BACK.path: Role.PEER,
    messages.BEGIN_STREAM.path: Role.PEER,
    messages.NEXT_PART.path: Role.PEER,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking: a tenant, and what it may do."""

    tenant: str
    roles: Role


class Access:
    """Decides who a call is from. One per pod; immutable but for its memory of callers already seen."""

    def __init__(self, peer_key: str = "") -> None:
        """`peer_key`: what pods must show; empty: nobody is a pod."""
        self._peer_key = peer_key.encode()
        self._callers: dict[str, Caller] = {DEFAULT_TENANT: Caller(DEFAULT_TENANT, CLIENT_ROLES)}

    def caller(self, call: Call) -> Caller:
        """The caller, allowed to make this call. Raises TransportError."""
        tenant = call.metadata_value(messages.TENANT_METADATA) or call.listener_tenant or DEFAULT_TENANT
        caller = self._callers.get(tenant)
        if caller is None:
            caller = self._admit(tenant)
        role = ROLE_OF_METHOD[call.method]
        if role is Role.PEER:
            self.check_peer(call)
        elif role not in caller.roles:
            raise TransportError(
                StatusCode.PERMISSION_DENIED, f"{call.method} needs the role {role.name}, which this caller lacks"
            )
        return caller

    def is_peer(self, call: Call) -> bool:
        """Whether a pod of this pool is calling: only then is what it says of itself and of the call believed."""
        shown = call.metadata_value(messages.PEER_KEY_METADATA) if call.metadata else None
        return shown is not None and self._peer_key != b"" and compare_digest(shown.encode(), self._peer_key)

    def check_peer(self, call: Call) -> None:
        """Raises TransportError unless a pod of this pool is calling."""
        if not self.is_peer(call):
            raise TransportError(
                StatusCode.PERMISSION_DENIED,
                f"{call.method} is for pods of this pool, and this caller does not show the key that pods find in "
                "their store",
            )

    def _admit(self, tenant: str) -> Caller:
        try:
            check_tenant(tenant)
        except InvalidName as error:
            raise TransportError(StatusCode.INVALID_ARGUMENT, str(error)) from None
        caller = Caller(tenant, CLIENT_ROLES)
        if len(self._callers) < _CALLERS_REMEMBERED_MAX:
            self._callers[tenant] = caller
        return caller


_CALLERS_REMEMBERED_MAX = 10_000
"""A caller that invents tenants must not fill the memory; beyond it each call checks the name again."""


def is_on_this_machine(peer: str) -> bool:
    """Whether a caller's address, as any of the transports write it, is one that only this machine has."""
    kind, _, rest = peer.partition(":")
    if kind == "unix":
        return True
    host = unquote(rest if kind in ("ipv4", "ipv6") else peer).rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
