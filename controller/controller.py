"""The controller: informers, a queue, workers, and the watch over the mesh, put together.

What changes in the cluster puts a service into the queue: the service itself, a child of it, a runtime of its namespace
or of the cluster. What changes on the mesh does so by asking: a decision that waits for something says when to look
again, and every namespace with services is asked for everything now and then, so that an emptied store is refilled and
what somebody took away comes back.

Only the leader works the queue; the others keep their informers warm. One that loses its lease ends, and is started
again by whoever runs it: there is no way back to standing by, so no state that could be stale.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial

from controller.back_off import BackOff
from controller.cluster_api import (
    AUTOSCALERS,
    CLUSTER_SERVING_RUNTIMES,
    DEPLOYMENTS,
    INFERENCE_SERVICES,
    SCALED_OBJECTS,
    SERVICES,
    SERVING_RUNTIMES,
    ClusterApi,
    Kind,
)
from controller.cluster_errors import ClusterError, Conflict, Unreachable
from controller.cluster_events import Recorder
from controller.informers import Informer, Key
from controller.leader import Leadership
from controller.mesh_mirror import MeshMirror
from controller.names import FIELD_MANAGER, MANAGED_BY_LABEL, SERVICE_LABEL
from controller.owned_children import NameTaken, OwnedChildren
from controller.reconciler import Cluster, Reconciler
from controller.settings import Settings
from controller.status import Event
from controller.telemetry import Telemetry
from controller.work_queue import WorkQueue
from mesh.client import AsyncClient, DeadlineExceeded, HexcombError, Overloaded, Unavailable

log = logging.getLogger("hexcomb.controller")

CHILDREN = {
    ("v1", "Service"): SERVICES,
    ("apps/v1", "Deployment"): DEPLOYMENTS,
    ("autoscaling/v2", "HorizontalPodAutoscaler"): AUTOSCALERS,
}
OPTIONAL_CHILDREN = {("keda.sh/v1alpha1", "ScaledObject"): SCALED_OBJECTS}
"""By apiVersion and kind."""


class Controller:
    """Belongs to the loop that it is made on."""

    def __init__(self, settings: Settings, api: ClusterApi, telemetry: Telemetry) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._identity = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        self._api = api
        self._is_assembled = False
        self._children: Mapping[tuple[str, str], Informer] = {}
        self._queue: WorkQueue[Key] = WorkQueue(self._back_off)
        self._services = self._informer(INFERENCE_SERVICES, self._queue.add)
        self._runtimes = self._informer(SERVING_RUNTIMES, self._runtime_changed)
        self._cluster_runtimes = Informer(
            api, CLUSTER_SERVING_RUNTIMES, self._cluster_runtime_changed, back_off=self._back_off()
        )
        self._informers = [self._services, self._runtimes, self._cluster_runtimes]
        self._mirror = MeshMirror(self._connect, age_max_s=settings.mesh_view_age_max_s)
        self._recorder = Recorder(api, self._identity)
        self._service_of: dict[tuple[str, Key], Key] = {}
        """Of each child, by its kind and name: a child that is gone can no longer be asked."""
        self._told: dict[Key, str] = {}
        """What was last told of a service that cannot be worked on."""
        telemetry.show("services", "InferenceServices that are known.", lambda: len(self._services))
        telemetry.show("queue", "Services that wait for a worker.", lambda: len(self._queue))
        telemetry.show("failing", "Services whose last look failed.", lambda: self._queue.failing)

    def why_unready(self) -> str:
        """Empty when it is."""
        if not self._is_assembled:
            return "the API server has not said yet which kinds it has"
        missing = [str(informer.kind) for informer in self._informers if not informer.is_complete.is_set()]
        return f"not read yet: {', '.join(missing)}" if missing else ""

    async def run(self) -> None:
        """Act until cancelled; returns only when the lease was lost."""
        reconciler = self._assembled(await self._optional_children())
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(informer.run()) for informer in self._informers]
            for informer in self._informers:
                await informer.is_complete.wait()
            log.info("%d InferenceServices are known", len(self._services))
            await self._lead(tasks, background, reconciler)
            for task in background:
                task.cancel()

    async def close(self) -> None:
        """Connections to the mesh end."""
        await self._mirror.close()

    async def _optional_children(self) -> dict[tuple[str, str], Kind]:
        """Kinds of children that not every cluster has, looked for once: one that is installed later is seen after a
        restart."""
        back_off = self._back_off()
        while True:
            try:
                return {name: kind for name, kind in OPTIONAL_CHILDREN.items() if await self._api.serves(kind)}
            except ClusterError as error:
                delay_s = back_off.next_s()
                log.warning("the API server: %s; again in %.1f s", error, delay_s)
                await asyncio.sleep(delay_s)

    def _assembled(self, optional: Mapping[tuple[str, str], Kind]) -> Reconciler:
        labels = f"{MANAGED_BY_LABEL}={FIELD_MANAGER}"
        children = {
            name: self._informer(kind, partial(self._child_changed, name), labels)
            for name, kind in {**CHILDREN, **optional}.items()
        }
        self._children = children
        self._informers += children.values()
        self._is_assembled = True
        kinds = frozenset(f"{api_version}/{kind}" for api_version, kind in optional)
        return Reconciler(
            self._api,
            Cluster(self._services, self._runtimes, self._cluster_runtimes, kinds),
            OwnedChildren(self._api, children),
            self._mirror,
            self._settings.policy(),
            self._recorder,
        )

    async def _lead(
        self, tasks: asyncio.TaskGroup, background: list[asyncio.Task[None]], reconciler: Reconciler
    ) -> None:
        settings = self._settings
        leadership = Leadership(self._api, settings.lease_namespace, settings.lease_name, self._identity)
        if settings.leader_elect:
            await leadership.acquire()
        self._telemetry.is_leading.set(1)
        acting = [tasks.create_task(self._work(reconciler)) for _ in range(settings.workers)]
        acting.append(tasks.create_task(self._watch_mesh()))
        background += acting
        try:
            if settings.leader_elect:
                await leadership.hold()
            else:
                await asyncio.Event().wait()
        finally:
            self._telemetry.is_leading.set(0)
            for task in acting:  # the next one may act as soon as the lease is nobody's
                task.cancel()
            await asyncio.gather(*acting, return_exceptions=True)
            try:
                await leadership.release()
            except ClusterError as error:
                log.warning("the lease stays ours until it runs out: %s", error)

    async def _work(self, reconciler: Reconciler) -> None:
        while True:
            await self._work_once(reconciler, await self._queue.take())

    async def _work_once(self, reconciler: Reconciler, key: Key) -> None:
        began_s = time.monotonic()
        outcome = "ok"
        try:
            requeue_s = await reconciler.turn(key)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever it is, other services go on
            outcome = type(error).__name__
            await self._failed(key, error)
        else:
            self._told.pop(key, None)
            self._queue.done(key)
            if requeue_s is not None:
                self._queue.add_after(key, requeue_s)
        finally:
            self._telemetry.turn_seconds.labels(outcome=outcome).observe(time.monotonic() - began_s)

    async def _failed(self, key: Key, error: Exception) -> None:
        known = isinstance(error, ClusterError | HexcombError | NameTaken)
        at_least_s = getattr(error, "retry_after_s", None) or 0.0
        delay_s = self._queue.failed(key, at_least_s)
        log.log(
            logging.WARNING if known else logging.ERROR,
            "%s/%s: %s: %s; again in %.1f s",
            *key,
            type(error).__name__,
            error,
            delay_s,
            exc_info=None if known else error,
        )
        # Once per kind of trouble: the message may hold a number that differs each time.
        service = self._services.get(key)
        if service is None or self._told.get(key) == type(error).__name__:
            return
        passes = isinstance(error, Unreachable | Conflict | Unavailable | DeadlineExceeded | Overloaded)
        # The status of an object that is being deleted is not written; somebody may be waiting for it to go.
        if not passes or "deletionTimestamp" in service["metadata"]:
            self._told[key] = type(error).__name__
            await self._recorder.record(service, Event("Warning", "InternalError", str(error)))

    async def _watch_mesh(self) -> None:
        while True:
            await asyncio.sleep(self._settings.mesh_resync_s)
            inhabited = {key[0] for key in self._services.keys()}  # noqa: SIM118  # it is no mapping
            for namespace in inhabited | self._mirror.namespaces():
                try:
                    changed = await self._mirror.changed_services(namespace)
                    known = self._mirror.services(namespace)
                    orphans = {service for service in known if (namespace, service) not in self._services}
                    for service in changed | orphans:
                        self._queue.add((namespace, service))
                except HexcombError as error:
                    log.warning("the mesh does not answer for tenant %s: %s", namespace, error)
                except Exception:  # whatever it is, other namespaces are asked
                    log.exception("what the mesh says of tenant %s", namespace)
                else:
                    if namespace not in inhabited and not known:
                        await self._mirror.forget(namespace)

    def _informer(self, kind: Kind, changed: Callable[[Key], None], labels: str = "") -> Informer:
        return Informer(
            self._api,
            kind,
            changed,
            namespace=self._settings.watch_namespace,
            labels=labels,
            back_off=self._back_off(),
        )

    def _back_off(self) -> BackOff:
        return BackOff(self._settings.retry_base_s, self._settings.retry_max_s)

    def _connect(self, namespace: str) -> AsyncClient:
        return AsyncClient(
            self._settings.mesh_endpoint,
            tenant=namespace,
            timeout_s=self._settings.mesh_timeout_s,
            follow_owners=False,
        )

    def _runtime_changed(self, key: Key) -> None:
        for service in self._services.of_namespace(key[0]):
            self._queue.add((key[0], service["metadata"]["name"]))

    def _cluster_runtime_changed(self, key: Key) -> None:
        for service in self._services.keys():  # noqa: SIM118  # it is no mapping
            self._queue.add(service)

    def _child_changed(self, name: tuple[str, str], key: Key) -> None:
        child = self._children[name].get(key)
        known = (name[1], key)
        if child is not None:
            labels = child["metadata"].get("labels") or {}
            self._service_of[known] = (key[0], labels.get(SERVICE_LABEL, ""))
        service = self._service_of.get(known) if child is not None else self._service_of.pop(known, None)
        if service is not None and service in self._services:
            self._queue.add(service)
