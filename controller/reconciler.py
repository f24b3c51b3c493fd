"""One turn for one InferenceService: read, decide, act, and say when to look again.

The decision is `controller.desired`; here is what it is made from and what is done about it. A turn may break off
anywhere (the process dies, the API server or the mesh does not answer) and is repeated from the start: every step
compares with what is there, so what was done already is not done again.

The order of a turn: 1. our finalizer, before the mesh holds anything of the object, so that a deletion waits for us
to take it away; 2. children in the cluster; 3. models and aliases on the mesh; 4. children that are no longer wanted;
5. the status, if it differs (after a first write to the mesh not yet: the next turn knows what came of it);
6. events; 7. for an object that is being deleted, the finalizer goes last.

An object that vanished without our finalizer (somebody took it off by hand) is found by what the mesh still holds under
its name, and that is taken away.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from controller.cluster_api import INFERENCE_SERVICES, ClusterApi, Json
from controller.cluster_errors import Forbidden, Missing, Rejected
from controller.cluster_events import Recorder
from controller.desired import Desired, desired
from controller.informers import Informer, Key
from controller.mesh_effects import MeshEffects
from controller.mesh_mirror import MeshMirror
from controller.mesh_view import MeshView
from controller.objects import Objects
from controller.owned_children import NameTaken, OwnedChildren, are_alike
from controller.policy import Policy
from controller.status import events_between, status_blocked
from mesh.client import HexcombError

log = logging.getLogger("hexcomb.controller")

FINALIZER = "hexcomb.dev/registrations"
SOON_S = 0.25
"""After a write to the mesh: what it led to is looked at this soon."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is known of the cluster without asking."""

    services: Informer
    runtimes: Informer
    cluster_runtimes: Informer
    kinds: frozenset[str]
    """That not every cluster has, as `keda.sh/v1alpha1/ScaledObject`."""


class Reconciler:
    """Belongs to one loop; turns for different services may overlap, those for one may not."""

    def __init__(
        self,
        api: ClusterApi,
        cluster: Cluster,
        children: OwnedChildren,
        mirror: MeshMirror,
        policy: Policy,
        recorder: Recorder,
    ) -> None:
        self._api = api
        self._cluster = cluster
        self._children = children
        self._mirror = mirror
        self._policy = policy
        self._recorder = recorder
        self._refusals: dict[Key, Mapping[str, str]] = {}
        self._moving: set[Key] = set()
        """Services whose last turn wrote to the mesh, and told nothing yet."""

    async def turn(self, key: Key) -> float | None:
        """Seconds until it should be looked at again; None: when something changes.

        Raises ClusterError, HexcombError, NameTaken."""
        namespace, name = key
        service = self._cluster.services.get(key)
        if service is None:
            await self._clear(key, await self._mirror.view(namespace, name, {}))
            return None
        metadata = service["metadata"]
        is_leaving = "deletionTimestamp" in metadata
        has_finalizer = FINALIZER in metadata.get("finalizers", ())
        if is_leaving and not has_finalizer:
            return None  # others' finalizers hold it; ours is done
        view = await self._view(key, must_answer=is_leaving)
        decided = desired(self._objects(key, service), view, self._policy, time.time())
        if not decided.acts:
            if has_finalizer:
                await self._let_go(key, service, view)
            return None
        if is_leaving:
            await self._clear(key, view)
            await self._set_finalizer(service, wanted=False)
            return None
        requeue_s = decided.requeue_after_s
        if not decided.hold:
            if decided.registrations and not has_finalizer:
                service = await self._set_finalizer(service, wanted=True)
            try:
                await self._children.apply(decided.children)
            except (Rejected, Forbidden, NameTaken) as error:
                await self._report_blocked(service, decided, str(error))
                raise
            wrote = view.reachable and await self._carry_out(key, view, decided)
            await self._children.delete_others(service, decided.children, decided.keep_children)
            if wrote:
                requeue_s = SOON_S
                if key not in self._moving:
                    self._moving.add(key)
                    return requeue_s  # what is decided next, from what this led to, is worth telling
        self._moving.discard(key)
        await self._report(service, decided)
        return requeue_s

    def _objects(self, key: Key, service: Json) -> Objects:
        return Objects(
            service=service,
            runtimes=self._cluster.runtimes.of_namespace(key[0]),
            cluster_runtimes=self._cluster.cluster_runtimes.of_namespace(""),
            children=self._children.of(service),
            kinds=self._cluster.kinds,
        )

    async def _view(self, key: Key, *, must_answer: bool) -> MeshView:
        try:
            return await self._mirror.view(*key, self._refusals.get(key, {}))
        except HexcombError as error:
            if must_answer:
                raise
            log.warning("%s/%s: the mesh does not answer: %s", *key, error)
            return MeshView()

    async def _carry_out(self, key: Key, view: MeshView, decided: Desired) -> bool:
        """Whether the next decision may be another one."""
        outcome = await MeshEffects(self._mirror, *key, view).apply(decided)
        before = self._refusals.get(key, {})
        if outcome.refusals:
            self._refusals[key] = outcome.refusals
        else:
            self._refusals.pop(key, None)
        # A refusal may hold a number that differs each time: that alone is no reason to hurry.
        return outcome.moved or outcome.refusals.keys() != before.keys()

    async def _clear(self, key: Key, view: MeshView) -> None:
        """Take away all that the mesh holds for the service."""
        if view.models or view.aliases:
            outcome = await MeshEffects(self._mirror, *key, view).apply(Desired())
            # Somebody else's alias may lead there; it is tried again with the next look at the namespace.
            for about, refusal in outcome.refusals.items():
                log.warning("%s/%s: %s stays on the mesh: %s", *key, about, refusal)
            if not outcome.refusals:
                log.info("%s/%s: taken off the mesh", *key)
        self._refusals.pop(key, None)
        self._moving.discard(key)

    async def _let_go(self, key: Key, service: Json, view: MeshView) -> None:
        """It was ours, and is another controller's now."""
        await self._clear(key, view)
        await self._set_finalizer(service, wanted=False)

    async def _set_finalizer(self, service: Json, *, wanted: bool) -> Json:
        metadata = service["metadata"]
        others = [other for other in metadata.get("finalizers", ()) if other != FINALIZER]
        patch = {
            "metadata": {
                "resourceVersion": metadata["resourceVersion"],
                "finalizers": [*others, FINALIZER] if wanted else others,
            }
        }
        try:
            written = await self._api.merge(INFERENCE_SERVICES, metadata["namespace"], metadata["name"], patch)
        except Missing:
            if wanted:
                raise
            return service  # it has gone
        self._cluster.services.heard(written)
        return written

    async def _report_blocked(self, service: Json, decided: Desired, problem: str) -> None:
        before = service.get("status") or {}
        status = status_blocked(decided.status, before, problem, time.time())
        events = events_between(service["metadata"]["name"], before, status)
        await self._report(service, Desired(status=status, events=events))

    async def _report(self, service: Json, decided: Desired) -> None:
        if decided.status and not are_alike(service.get("status", {}), decided.status):
            written = await self._api.replace(INFERENCE_SERVICES, {**service, "status": decided.status}, part="status")
            self._cluster.services.heard(written)
        for event in decided.events:
            await self._recorder.record(service, event)
