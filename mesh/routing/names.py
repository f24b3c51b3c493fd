"""Names that another pod knows a moment before this one.

A client registers a model at one pod and calls it at the next; between the two lies the watch of the store, some
milliseconds. Our own client says what it has seen, and the pod waits for it (`mesh.endpoint.revisions`). For every
other client a name that is not known is looked up in the store itself, once, before it is called unknown: never for a
name that is known, so the store stays off the request path, and no more than so many a second, so that nobody can ask
it to death with names that do not exist.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from placement import keys
from placement.errors import PlacementError, StoreError
from placement.pod_lease import bounded
from placement.registry import Registry
from placement.store.base import Get, KeyValueStore

log = logging.getLogger("hexcomb.names")

WAIT_S = 2.0
"""For the store's answer, and for the view to reach what somebody else has seen: milliseconds when all is well."""
LOOK_UPS_PER_S = 100.0
"""Of names that are unknown here, by this pod."""


class Names:
    """Catches up with other pods' knowledge. Belongs to the event loop."""

    def __init__(self, registry: Registry, store: KeyValueStore, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._store = store
        self._clock = clock
        self._allowance = LOOK_UPS_PER_S
        self._counted_s = clock()

    async def look_up(self, tenant: str, name: str) -> bool:
        """Whether a name that is unknown here is in the store after all; then it is known here now."""
        if not self._may_ask():
            return False
        try:
            keys.check_tenant(tenant)
            keys.check_id(name)
            wanted = [Get(keys.model_key(tenant, name)), Get(keys.alias_key(tenant, name))]
            found = await bounded(self._store.txn((), wanted), WAIT_S)
        except StoreError as error:
            log.debug("name %r was not looked up: %s", name[:200], error)
            return False
        except PlacementError:
            return False
        revision = max((kv.mod_revision for kv in found.reads if kv is not None), default=0)
        return revision > 0 and await self._registry.wait_revision(revision, WAIT_S)

    def _may_ask(self) -> bool:
        now_s = self._clock()
        self._allowance = min(LOOK_UPS_PER_S, self._allowance + (now_s - self._counted_s) * LOOK_UPS_PER_S)
        self._counted_s = now_s
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True
