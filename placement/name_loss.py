"""How the pool gets its registrations back when the store has lost them: who says so, who writes, who waits for it.

A pod whose registry is detached says so under `detached/<pod>`, with the revision that its last view had, and waits
for an answer in that key. The leader, whoever it is and since when, looks under that prefix, asks for the names, writes
back what is absent (`placement.restoration`), and answers; the pod then adopts what the store has. Nobody adopts before
its own knowledge was taken into account, so it does not matter who notices the loss first, or whether the leader is a
pod that was started after it. If the store is lost once more meanwhile, the keys go with it and are written again.

Views are states of one history, so the one with the highest revision knows all that the others know, what was
unregistered included; a few more are asked in case a pod had missed an earlier loss. Before it writes, the leader gives
every pod a while to notice: a pod that comes later with a higher revision is heard too, but what was unregistered last
may then be back.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from placement import keys
from placement.errors import InvalidName
from placement.membership import Membership
from placement.peers import PeerError, Peers
from placement.records import AliasRecord, ModelRecord
from placement.registry import Registry
from placement.restoration import merge_names, restore_names
from placement.service_limits import ServiceLimits
from placement.store.base import Delete, KeyValue, Put, unchanged
from placement.store.format import open_format

log = logging.getLogger(__name__)

RECORD_VERSION = 1
PODS_MAX = 1000
"""Keys read in one look."""
EXPORTS_MAX = 3
"""Views that are asked for: each may be tens of megabytes."""


@dataclass(frozen=True, slots=True)
class DetachedPod:
    """What a pod says of itself while its registry is detached."""

    pod: str
    word: str
    """Names this loss: of this process, at this view."""
    revision: int
    """Of its last view."""
    answered: bool
    key_revision: int = 0


class NameLoss:
    """Both sides of it, for one pod. Belongs to the event loop."""

    def __init__(
        self,
        membership: Membership,
        registry: Registry,
        peers: Peers,
        limits: ServiceLimits,
        clock: Callable[[], float],
    ) -> None:
        self._membership = membership
        self._registry = registry
        self._peers = peers
        self._limits = limits
        self._clock = clock
        self._first_heard_s: float | None = None
        self._look_at_s = 0.0
        self.notice = ""
        """What happened last, for status; empty: nothing."""

    # Every pod ------------------------------------------------------------------------------------------------------

    async def wait_turn(self) -> None:
        """One step of a pod that is detached: say so, or adopt once it is answered. Raises StoreError."""
        if not self._registry.detached:
            return
        store, key = self._membership.store, keys.detached_key(self._membership.pod_id)
        pod = self._membership.view.pods.get(self._membership.pod_id)
        word = f"{pod.incarnation if pod is not None else ''}:{self._registry.view.revision}"
        kv = await store.get(key)
        found = _read(kv) if kv is not None else None
        if found is None or found.word != word:
            record = DetachedPod(self._membership.pod_id, word, self._registry.view.revision, answered=False)
            await store.txn((), [Put(key, _to_json(record))])
        elif found.answered:
            await self._registry.adopt()
            # What pods died over is a union: the leader may be a pod that never heard of it.
            await self._membership.restore_suspicions()
            count = self._registry.view.model_count()
            self.notice = f"the store lost its data; {count} models are registered since it was restored"
            log.warning("%s", self.notice)
            await store.txn((), [Delete(key)])

    # The leader -----------------------------------------------------------------------------------------------------

    async def lead_turn(self) -> None:
        """One step of the leader: look whether somebody waits, and if so restore. Raises StoreError."""
        now_s = self._clock()
        if now_s < self._look_at_s:
            return
        self._look_at_s = now_s + self._limits.restore_look_every_s
        waiting = await self._waiting()
        if not waiting:
            self._first_heard_s = None
            return
        self._first_heard_s = now_s if self._first_heard_s is None else self._first_heard_s
        pods = self._membership.view.pods
        if now_s - self._first_heard_s < self._limits.restore_gathers_s and not {w.pod for w in waiting}.issuperset(
            pods
        ):
            return
        await self._membership.set_restoring(True)
        try:
            await self._restore(waiting)
        finally:
            await self._membership.set_restoring(False)

    async def _waiting(self) -> list[DetachedPod]:
        """Pods without an answer; keys of pods that are gone are cleaned up."""
        store = self._membership.store
        waiting: list[DetachedPod] = []
        for kv in (await store.range(keys.DETACHED, limit=PODS_MAX)).items:
            found = _read(kv)
            if found is None:
                continue
            if found.pod not in self._membership.view.pods:
                await store.txn([unchanged(kv.key, kv.mod_revision)], [Delete(kv.key)])
            elif not found.answered:
                waiting.append(found)
        return waiting

    async def _restore(self, waiting: Sequence[DetachedPod]) -> None:
        exports: list[tuple[list[ModelRecord], list[AliasRecord]]] = []
        heard: dict[int, str] = {}
        """Revision of a view -> the pod that told it."""
        # 1. The latest view first; 2. of equal ones our own, which costs nothing; 3. the pod's id.
        own = self._membership.pod_id
        for detached in sorted(waiting, key=lambda each: (-each.revision, each.pod != own, each.pod)):
            if detached.revision in heard or len(heard) == EXPORTS_MAX:
                continue
            try:
                async with asyncio.timeout(self._limits.export_within_s):
                    exports.append(await self._peers.export_names(detached.pod))
            except (PeerError, TimeoutError) as error:
                log.warning("the names that pod %s knows are not heard yet: %s", detached.pod, error)
                continue
            heard[detached.revision] = detached.pod
        if not heard:
            return
        pod = self._membership.view.pods.get(own)
        # First the mark that tells this pool from an emptied one: without it a second loss would go unnoticed.
        await open_format(self._membership.store, f"hexcomb {pod.version if pod is not None else ''}".strip())
        restored = await restore_names(self._membership.store, merge_names(exports))
        suspicions = await self._membership.restore_suspicions()
        self.notice = f"the store lost its data: {restored}, as pod {', '.join(heard.values())} knew them"
        log.error("%s; %d suspicions were written back", self.notice, suspicions)
        latest = max(heard)
        for detached in waiting:
            if detached.revision <= latest:
                await self._answer(detached)

    async def _answer(self, detached: DetachedPod) -> None:
        key = keys.detached_key(detached.pod)
        record = DetachedPod(detached.pod, detached.word, detached.revision, answered=True)
        await self._membership.store.txn([unchanged(key, detached.key_revision)], [Put(key, _to_json(record))])


def _to_json(record: DetachedPod) -> bytes:
    fields = {"v": RECORD_VERSION, "word": record.word, "revision": record.revision, "answered": record.answered}
    return json.dumps(fields).encode()


def _read(kv: KeyValue) -> DetachedPod | None:
    """None: no version of hexcomb that this one understands has written it."""
    try:
        (pod,) = keys.split_key(kv.key, 1)
        data = json.loads(kv.value)
        if data["v"] != RECORD_VERSION:
            return None
        return DetachedPod(pod, str(data["word"]), int(data["revision"]), data["answered"] is True, kv.mod_revision)
    except (InvalidName, ValueError, TypeError, KeyError):
        log.warning("the record under %r cannot be read and is left out", kv.key)
        return None
