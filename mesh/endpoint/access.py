"""Who is asking, and what may they do.

The tenant of a call is, in this order: the caller's verified identity (once authentication is configured), the
`hexcomb-tenant` metadata, the tenant of the address that was called, else `default`. Names are unique per tenant and
never contain it, so an unmodified client works.

Management and inference share the port and never the role. Every method stands in the table below with the role that it
needs; a method that is not in the table is not served. Without configured credentials a pod listens on loopback only
(or was told `--insecure`), and every caller has every role: that is the one place where authentication will plug in.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto

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


EVERY_ROLE = Role.OBSERVE | Role.INFER | Role.MANAGE | Role.OPERATE | Role.PEER

ROLE_OF_METHOD: dict[str, Role] = {
    messages.SERVER_LIVE.path: Role.OBSERVE,
    messages.SERVER_READY.path: Role.OBSERVE,
    messages.SERVER_METADATA.path: Role.OBSERVE,
    messages.HEALTH_CHECK.path: Role.OBSERVE,
    messages.HEALTH_WATCH.path: Role.OBSERVE,
    messages.MODEL_READY.path: Role.INFER,
    messages.MODEL_METADATA.path: Role.INFER,
    messages.MODEL_INFER.path: Role.INFER,
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
    messages.PROBE.path: Role.PEER,
    messages.ORDER.path: Role.PEER,
    messages.EXPORT_NAMES.path: Role.PEER,
    messages.DIAL_BACK.path: Role.PEER,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking: a tenant, and what it may do."""

    tenant: str
    roles: Role


class Access:
    """Decides who a call is from. One per pod; immutable but for its memory of callers already seen."""

    def __init__(self) -> None:
        self._callers: dict[str, Caller] = {DEFAULT_TENANT: Caller(DEFAULT_TENANT, EVERY_ROLE)}

    def caller(self, call: Call) -> Caller:
        """The caller, allowed to make this call. Raises TransportError."""
        tenant = call.metadata_value(messages.TENANT_METADATA) or call.listener_tenant or DEFAULT_TENANT
        caller = self._callers.get(tenant)
        if caller is None:
            caller = self._admit(tenant)
        role = ROLE_OF_METHOD[call.method]
        if role not in caller.roles:
            raise TransportError(
                StatusCode.PERMISSION_DENIED, f"{call.method} needs the role {role.name}, which this caller lacks"
            )
        return caller

    def _admit(self, tenant: str) -> Caller:
        try:
            check_tenant(tenant)
        except InvalidName as error:
            raise TransportError(StatusCode.INVALID_ARGUMENT, str(error)) from None
        caller = Caller(tenant, EVERY_ROLE)
        if len(self._callers) < _CALLERS_REMEMBERED_MAX:
            self._callers[tenant] = caller
        return caller


_CALLERS_REMEMBERED_MAX = 10_000
"""A caller that invents tenants must not fill the memory; beyond it each call checks the name again."""
