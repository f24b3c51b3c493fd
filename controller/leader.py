"""One controller acts, others stand by: Kubernetes' own rule, by a Lease.

The lease names its holder and when it was renewed. A candidate takes it if it is nobody's, its own, or has not changed
for its duration: by the candidate's clock since it first saw it so, never by comparing its clock with the time that is
written there. The holder renews it long before that; if it cannot, it stops acting before another may start: it gives
up after `RENEW_WITHIN_S`, which is less than the duration. Every write is to the version that was read, so of two that
take it at once one is refused.

Between giving up and the other's start a call of the old holder may still be on its way. That does no harm: what the
controller writes is either to a version that it has read (status) or the same whoever writes it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from controller.cluster_api import LEASES, ClusterApi, Json
from controller.cluster_errors import ClusterError, Conflict, Missing

log = logging.getLogger("hexcomb.controller")

DURATION_S = 15
RENEW_WITHIN_S = 10.0
RETRY_S = 2.0
"""client-go's defaults, which clusters are run with."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A lease as it was first seen in this state, and when, by our clock."""

    record: tuple[str, str]
    at_s: float


def may_take(lease: Json, identity: str, seen: Seen, now_s: float) -> bool:
    """Whether `identity` may write itself into the lease."""
    spec = lease.get("spec", {})
    holder = spec.get("holderIdentity") or ""
    duration_s = float(spec.get("leaseDurationSeconds") or DURATION_S)
    return holder in ("", identity) or now_s - seen.at_s > duration_s


class Leadership:
    """A candidate for one lease."""

    def __init__(self, api: ClusterApi, namespace: str, name: str, identity: str) -> None:
        """`identity`: of this process, different from every other's."""
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seen: Seen | None = None
        self._renewed_s = 0.0
        """When the write began that was answered last."""
        self.is_held = False

    async def acquire(self) -> None:
        """Returns once the lease is ours."""
        while not self.is_held:
            self.is_held = await self._tried_within(RENEW_WITHIN_S)
            if not self.is_held:
                await asyncio.sleep(RETRY_S)
        log.info("%s leads by the lease %s/%s", self._identity, self._namespace, self._name)

    async def hold(self) -> None:
        """Renews the lease; returns once it is lost."""
        loop = asyncio.get_running_loop()
        while (since_s := loop.time() - self._renewed_s) < RENEW_WITHIN_S:
            await asyncio.sleep(RETRY_S)
            is_renewed = await self._tried_within(max(0.1, RENEW_WITHIN_S - since_s - RETRY_S))
            if not is_renewed and self._seen is not None and self._seen.record[0] not in ("", self._identity):
                break
        self.is_held = False
        log.error("the lease %s/%s could not be renewed, or is another's now", self._namespace, self._name)

    async def release(self) -> None:
        """Let the next one take it without waiting. Raises ClusterError."""
        if not self.is_held:
            return
        self.is_held = False
        lease = await self._api.get(LEASES, self._namespace, self._name)
        if lease["spec"].get("holderIdentity") == self._identity:
            lease["spec"] = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
            await self._api.replace(LEASES, lease)

    async def _tried_within(self, limit_s: float) -> bool:
        """As `_tried`. An answer that came later would be to a lease that may be another's by now."""
        began_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(limit_s):
                is_written = await self._tried()
        except TimeoutError:
            return False
        if is_written:
            self._renewed_s = began_s
        return is_written

    async def _tried(self) -> bool:
        """Whether the lease was written with our name in it."""
        try:
            return await self._try()
        except Conflict:
            return False  # another was quicker
        except ClusterError as error:
            log.warning("the lease %s/%s: %s", self._namespace, self._name, error)
            return False

    async def _try(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        try:
            lease = await self._api.get(LEASES, self._namespace, self._name)
        except Missing:
            manifest = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name, "namespace": self._namespace},
                "spec": self._spec({}),
            }
            await self._api.create(LEASES, self._namespace, manifest)
            return True
        spec = lease.get("spec", {})
        record = (spec.get("holderIdentity") or "", str(spec.get("renewTime")))
        if self._seen is None or self._seen.record != record:
            self._seen = Seen(record, now_s)
        if not may_take(lease, self._identity, self._seen, now_s):
            return False
        await self._api.replace(LEASES, {**lease, "spec": self._spec(spec)})
        return True

    def _spec(self, old: Json) -> dict[str, Any]:
        now = time.time()
        written = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
        is_ours = old.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": DURATION_S,
            "acquireTime": old.get("acquireTime", written) if is_ours else written,
            "renewTime": written,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if is_ours else 1),
        }
