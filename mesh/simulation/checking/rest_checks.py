"""What must be so when all faults have ended and the pool has had time: everything.

Every pod is up and sees what the store holds; the store holds what every pod has; nothing is left over in any of them;
one pod leads. And every registered model that can be served at all is served, by whichever pod is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import TypeVar

from mesh.simulation.chance import stream
from mesh.simulation.checking.pods import Run, room_bytes
from mesh.simulation.checking.truth import StoreTruth
from mesh.simulation.checking.violation import Violation
from mesh.simulation.clients import Answered
from mesh.simulation.execution import factor_of
from mesh.simulation.pod import SimulatedPod
from mesh.transport.base import StatusCode
from mesh.wire import messages
from placement import keys
from placement.policy.snapshot import Copy, ModelName, Parked
from placement.pool_records import copy_from_json, leader_from_json, parked_from_json

T = TypeVar("T")

LOOK_AGAIN_S = 0.37
TIDY_WITHIN_S = 15.0
LAST_CALLS_S = 150.0
"""The last requests without a deadline may wait for what never loads, as long as a pod lets them."""
NOT_YET_SEEN_S = 15.0
"""A change is in the views of other pods after this, so that it outlives the store and the pod that made it."""
RESTORED_WITHIN_S = 60.0
"""While names are being written back after a wipe, one that is unregistered may come back."""
PATIENCE_S = 60.0
"""For one model, with nothing else going on."""
AT_ONCE = 4
"""Models that are asked for at the same time."""
TRANSIENT_TRIES_MAX = 12
"""For a model whose loads fail half of the time."""

Infer = Callable[[SimulatedPod, ModelName, float], Awaitable[Answered]]


class RestChecks:
    """Belongs to the world."""

    def __init__(self, run: Run, store: StoreTruth, infer: Infer) -> None:
        self.served_at_rest = 0
        self.parked_at_rest = 0
        self.acknowledged_at_rest = 0
        self.older_at_rest = 0
        self._run = run
        self._store = store
        self._infer = infer
        self._random: Random = stream(run.scenario.seed, "rest")

    async def check(self) -> None:
        """Raise Violation for the first thing that is not right again."""
        self._check_pods()
        await self._until_right(self._check_views)
        await self._until_right(self._check_leader)
        self._check_acknowledged()
        names = [name for name in self._store.models if self._can_be_served(name)]
        aliases = [
            name for name, alias in self._store.aliases.items() if self._can_be_served(name._replace(id=alias.active))
        ]
        self._random.shuffle(names)
        for index in range(0, len(names), AT_ONCE):
            await asyncio.gather(*(self._check_served(name) for name in names[index : index + AT_ONCE]))
        for alias in aliases:
            await self._check_served(alias)
        await self._until_right(self._check_leftovers, LAST_CALLS_S)

    async def _until_right(self, look: Callable[[], None], limit_s: float = TIDY_WITHIN_S) -> None:
        """The pool goes on tidying up at rest, so at any one moment something may be on its way; not for long."""
        for _ in range(int(limit_s / LOOK_AGAIN_S)):
            try:
                look()
                return
            except Violation:
                await asyncio.sleep(LOOK_AGAIN_S)
        look()

    def _check_pods(self) -> None:
        missing = [name for name in self._run.machines_of() if name not in self._run.pods]
        unready = [pod.incarnation for pod in self._run.pods.values() if pod.ready_s is None]
        if missing or unready:
            raise Violation("every pod comes back", f"without a pod: {missing}; not ready: {unready}")

    def _check_views(self) -> None:
        stored = _read(self._store.copy_keys, copy_from_json)
        parked = _read(self._store.parked_keys, parked_from_json)
        self.parked_at_rest = sum(map(len, parked.values()))
        for pod in self._run.pods.values():
            self._check_names(pod)
            seen = {name: {copy.pod: copy for copy in copies} for name, copies in pod.view.copies.items()}
            _compare(f"copies as {pod.incarnation} sees them", seen, stored)
            on_disk = {name: {each.pod: each for each in entries} for name, entries in pod.view.parked.items()}
            _compare(f"what is parked as {pod.incarnation} sees it", on_disk, parked)
            if set(pod.view.suspicions) != set(self._store.suspicions):
                raise Violation(
                    "views converge",
                    f"{pod.incarnation} sees suspicions of {sorted(map(str, pod.view.suspicions))}, the store has "
                    f"{sorted(map(str, self._store.suspicions))}",
                )
            if set(pod.view.pods) != set(self._run.pods):
                raise Violation("views converge", f"{pod.incarnation} sees pods {sorted(pod.view.pods)}")
            if pod.view.fading:
                raise Violation("views converge", f"{pod.incarnation} still sees {dict(pod.view.fading)} fade")
            self._check_published(pod, stored)
            self._check_parked(pod, parked)

    def _check_names(self, pod: SimulatedPod) -> None:
        view = pod.node.registry.view
        models = {ModelName(record.tenant, record.id): record for record in view.every_model()}
        _compare(f"models as {pod.incarnation} sees them", models, self._store.models)
        aliases = {ModelName(a.tenant, a.id): a for tenant in view.tenants.values() for a in tenant.aliases.values()}
        _compare(f"aliases as {pod.incarnation} sees them", aliases, self._store.aliases)

    def _check_published(self, pod: SimulatedPod, stored: dict[ModelName, dict[str, Copy]]) -> None:
        """What the store says of this pod is what its cache has."""
        published = {
            (name, held[pod.machine.name].servable)
            for name, held in stored.items()
            if pod.machine.name in held and held[pod.machine.name].servable
        }
        cached = {
            (ModelName(view.key.tenant, view.key.model_id), view.key.generation)
            for view in pod.node.cache.copies()
            if pod.node.cache.servable(view.key) is not None
        }
        # While a generation follows another both may serve here; the record names one of them.
        if not published <= cached or {name for name, _ in cached} != {name for name, _ in published}:
            raise Violation(
                "the store holds what the pods have",
                f"{pod.incarnation} serves {sorted(cached - published)} unpublished, and {sorted(published - cached)} "
                "is published that it does not serve",
            )

    def _check_parked(self, pod: SimulatedPod, parked: dict[ModelName, dict[str, Parked]]) -> None:
        """What the store says is parked on this pod is what lies on its disk and has no copy in its cache."""
        machine = pod.machine
        told = {(name, held[machine.name].disk) for name, held in parked.items() if machine.name in held}
        cached = {ModelName(view.key.tenant, view.key.model_id) for view in pod.node.cache.copies()}
        there = {
            (name, record.generation)
            for name, record in self._store.models.items()
            if record.spec.uri in machine.disk and name not in cached
        }
        if told != there:
            raise Violation(
                "the store holds what the pods have",
                f"on the disk of {pod.incarnation} are {sorted(there - told)} unpublished, and "
                f"{sorted(told - there)} is published that is not there",
            )

    def _check_leader(self) -> None:
        kv = self._run.store.peek(keys.LEADER)
        holder = "" if kv is None else leader_from_json(kv.value).incarnation
        leading = [pod.incarnation for pod in self._run.pods.values() if pod.service.is_leader]
        if leading != [holder]:
            raise Violation("there is one leader", f"{leading} lead; the store says {holder!r}")

    def _check_acknowledged(self) -> None:
        """What the pool said to have registered is registered, and what it said to have unregistered is not."""
        for name, said in self._run.workload.acknowledged.items():
            if name in self._store.aliases or any(
                wiped_s - NOT_YET_SEEN_S < said.at_s < wiped_s + RESTORED_WITHIN_S for wiped_s in self._store.wiped_s
            ):
                continue
            record = self._store.models.get(name)
            uri = None if record is None else record.spec.uri
            if uri != said.uri:
                raise Violation(
                    "what was acknowledged stays so",
                    f"{name}: {said.uri or 'unregistered'} was acknowledged at {said.at_s:.3f} s, {uri} is stored",
                )
            self.acknowledged_at_rest += 1

    def _can_be_served(self, name: ModelName) -> bool:
        record = self._store.models.get(name)
        content = None if record is None else self._run.contents.at(record.spec.uri)
        if content is None or name in self._store.suspicions:
            return False
        rooms_bytes = [room_bytes(pod) for pod in self._run.pods.values()]
        return content.sound and max(content.size_bytes, content.estimate_bytes) <= max(rooms_bytes)

    async def _check_served(self, name: ModelName) -> None:
        pods = list(self._run.pods.values())
        pod = pods[self._random.randrange(len(pods))]
        for _ in range(TRANSIENT_TRIES_MAX):
            answered = await self._infer(pod, name, PATIENCE_S)
            if answered.failed is None or not self._may_fail(name):
                break
            await asyncio.sleep(5.0)
        if answered.failed is not None:
            if self._may_fail(name) and answered.failed.status is StatusCode.UNAVAILABLE:
                return
            raise Violation(
                "a registered model is never lost",
                f"at rest {name} at {pod.incarnation}: {answered.failed.status.name}: {answered.failed.message}",
            )
        self.served_at_rest += 1
        alias = self._store.aliases.get(name)
        ids = [name.id] if alias is None else [alias.active, *alias.weights]
        uris = [self._store.models[name._replace(id=model_id)].spec.uri for model_id in ids]
        if answered.factor not in {factor_of(uri) for uri in uris}:
            if any(self._has_no_room(name._replace(id=model_id)) for model_id in ids):
                self.older_at_rest += 1
                return
            known = {factor_of(uri): uri for uri in self._run.contents.by_uri}
            raise Violation(
                "the newest generation answers at rest",
                f"{name} at {pod.incarnation}: by {known.get(answered.factor)}, not by {uris}",
            )

    def _has_no_room(self, name: ModelName) -> bool:
        """The newest generation does not fit beside what is pinned on some pod that serves an older one."""
        content = self._run.contents.at(self._store.models[name].spec.uri)
        assert content is not None
        for machine in self._store.copy_keys.get(name, {}):
            if max(content.size_bytes, content.estimate_bytes) > room_bytes(self._run.pods[machine]):
                return True
        return False

    def _may_fail(self, name: ModelName) -> bool:
        alias = self._store.aliases.get(name)
        record = self._store.models.get(name if alias is None else name._replace(id=alias.active))
        content = None if record is None else self._run.contents.at(record.spec.uri)
        return content is not None and content.transient_share > 0

    def _check_leftovers(self) -> None:
        for pod in self._run.pods.values():
            try:
                pod.node.cache.validate()
            except AssertionError as error:
                raise Violation("the cache keeps its invariants", f"{pod.incarnation}: {error}") from error
            pinned = [str(view.key) for view in pod.node.cache.copies() if view.pins]
            assert pod.transport is not None
            calls = [x.call.method for x in pod.transport.exchanges.values() if x.call.method != messages.PROBE.path]
            if pinned or calls:
                raise Violation("nothing is left over", f"{pod.incarnation}: copies in use: {pinned}; calls: {calls}")


def _read(
    stored: Mapping[ModelName, Mapping[str, bytes]], read: Callable[[str, bytes], T]
) -> dict[ModelName, dict[str, T]]:
    return {name: {pod: read(pod, value) for pod, value in held.items()} for name, held in stored.items() if held}


def _compare(what: str, seen: object, true: object) -> None:
    if seen != true:
        assert isinstance(seen, dict)
        assert isinstance(true, dict)
        differing = [
            f"{name}: {seen.get(name)} seen, {true.get(name)} stored"
            for name in dict.fromkeys((*seen, *true))
            if seen.get(name) != true.get(name)
        ]
        raise Violation("views converge", f"{what}: " + "; ".join(differing[:3]))
