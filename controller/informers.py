"""What the cluster holds of a kind, kept up to date by its own word.

An informer lists a kind once and then watches from that point on. A watch that ends is taken up where it ended; where
the server has forgotten that point (410), or says something that does not fit, the kind is listed again, and what has
vanished meanwhile is reported as a deletion. Lists and watches carry no decision: whoever is told of a change looks at
the whole again (level-triggered), so that a change that is told twice, late, or merged with others is no harm.

Watches are ended after some minutes of their own accord, so that of several servers none keeps all of them.

What is kept is the object without `managedFields` and without kubectl's memory of it: half of its bytes, which nobody
here reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Protocol

from controller.back_off import BackOff
from controller.cluster_api import Change, Json, Kind
from controller.cluster_errors import ClusterError, Expired, Missing

log = logging.getLogger("hexcomb.controller")

WATCH_S = 300.0
"""Half of what client libraries take: a server that is replaced is left sooner."""
WATCH_AT_LEAST_S = 1.0
"""A watch that ends sooner without a word was not ended by its time: something in between cuts it off."""
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

Key = tuple[str, str]
"""Namespace (empty for kinds of the cluster) and name."""


class Listing(Protocol):
    """What an informer needs of `controller.cluster_api.ClusterApi`."""

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "") -> tuple[list[Json], str]:
        """All objects, and the resource version."""

    def watch(
        self, kind: Kind, resource_version: str, namespace: str = "", *, for_s: float, labels: str = ""
    ) -> AsyncIterator[Change]:
        """Changes after a resource version."""


class Informer:
    """One kind, in one namespace or in all of them. `run` never returns."""

    def __init__(
        self,
        api: Listing,
        kind: Kind,
        changed: Callable[[Key], None],
        *,
        namespace: str = "",
        labels: str = "",
        back_off: BackOff,
        watch_s: float = WATCH_S,
    ) -> None:
        """`changed` is told of each object that came, changed or went, and must not block. `labels`: a selector."""
        self.kind = kind
        self.is_complete = asyncio.Event()
        """Set once the kind has been listed; until then an object that is missing here may exist."""
        self._api = api
        self._changed = changed
        self._namespace = namespace
        self._labels = labels
        self._back_off = back_off
        self._watch_s = watch_s
        self._objects: dict[Key, Json] = {}
        self._owned: dict[str, set[Key]] = {}
        """By the owner's uid."""
        self._resource_version = ""

    def get(self, key: Key) -> Json | None:
        """The object, as last heard of. Not to be changed."""
        return self._objects.get(key)

    def keys(self) -> Iterator[Key]:
        """Of all objects."""
        return iter(list(self._objects))

    def of_namespace(self, namespace: str) -> tuple[Json, ...]:
        """All objects of a namespace, or of the cluster where it is empty, by name."""
        return tuple(self._objects[key] for key in sorted(self._objects) if key[0] == namespace)

    def of_owner(self, uid: str) -> tuple[Json, ...]:
        """All objects that this one controls, by name."""
        return tuple(self._objects[key] for key in sorted(self._owned.get(uid, ())))

    def __contains__(self, key: Key) -> bool:
        return key in self._objects

    def __len__(self) -> int:
        return len(self._objects)

    def heard(self, manifest: Mapping[str, Any]) -> None:
        """An object as the server returned it to a write of ours, if the watch has not come so far yet."""
        if _is_later(manifest["metadata"]["resourceVersion"], self._resource_version):
            self._put(_key(manifest), _lean(manifest))

    def forget_place(self) -> None:
        """The next turn lists anew."""
        self._resource_version = ""

    async def run(self) -> None:
        """List, watch, and begin again."""
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                await self.turn()
                if loop.time() - began_s < WATCH_AT_LEAST_S:
                    await asyncio.sleep(self._back_off.next_s())
            except ClusterError as error:
                if isinstance(error, Expired):
                    self.forget_place()
                delay_s = self._back_off.next_s()
                hint = "; the cluster does not know this kind: apply deploy/crds" if isinstance(error, Missing) else ""
                log.warning("%s: %s%s; again in %.1f s", self.kind, error, hint, delay_s)
                await asyncio.sleep(delay_s)

    async def turn(self) -> None:
        """One list if there is need of it, and one watch to its end. Raises ClusterError."""
        if not self._resource_version:
            objects, version = await self._api.list(self.kind, self._namespace, labels=self._labels)
            self._take(objects)
            self._resource_version = version
            self.is_complete.set()
        stream = self._api.watch(
            self.kind, self._resource_version, self._namespace, for_s=self._watch_s, labels=self._labels
        )
        async for change in stream:
            self._note(change)
            self._back_off.reset()

    def _take(self, objects: list[Json]) -> None:
        fresh = {_key(manifest): _lean(manifest) for manifest in objects}
        touched = [key for key in self._objects if key not in fresh]
        for key in touched:
            self._drop(key)
        for key, manifest in fresh.items():
            known = self._objects.get(key)
            if known is None or known["metadata"]["resourceVersion"] != manifest["metadata"]["resourceVersion"]:
                touched.append(key)
                self._put(key, manifest)
        for key in touched:
            self._changed(key)

    def _note(self, change: Change) -> None:
        self._resource_version = change.object["metadata"]["resourceVersion"]
        if change.type == "BOOKMARK":
            return
        key = _key(change.object)
        known = self._objects.get(key)
        if change.type == "DELETED":
            self._drop(key)
        elif known is None or not _is_later(known["metadata"]["resourceVersion"], self._resource_version):
            self._put(key, _lean(change.object))
        self._changed(key)

    def _put(self, key: Key, manifest: Json) -> None:
        self._drop(key)
        self._objects[key] = manifest
        if owner := owner_of(manifest):
            self._owned.setdefault(owner, set()).add(key)

    def _drop(self, key: Key) -> None:
        known = self._objects.pop(key, None)
        if known is not None and (owner := owner_of(known)):
            self._owned[owner].discard(key)
            if not self._owned[owner]:
                del self._owned[owner]


def _is_later(version: str, than: str) -> bool:
    # Numbers that grow over all objects of a kind, by Kubernetes' word since 1.35, and by etcd's before.
    return version.isdecimal() and than.isdecimal() and int(version) > int(than)


def controller_of(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The reference to the object that controls this one, if one does."""
    references = manifest["metadata"].get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), None)


def owner_of(manifest: Mapping[str, Any]) -> str:
    """The uid of the object that controls this one; empty: none does."""
    owner = controller_of(manifest)
    return str(owner["uid"]) if owner is not None else ""


def _key(manifest: Mapping[str, Any]) -> Key:
    metadata = manifest["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _lean(manifest: Mapping[str, Any]) -> Json:
    metadata = {name: value for name, value in manifest["metadata"].items() if name != "managedFields"}
    annotations = metadata.get("annotations")
    if annotations and _LAST_APPLIED in annotations:
        metadata["annotations"] = {name: value for name, value in annotations.items() if name != _LAST_APPLIED}
    return {**manifest, "metadata": metadata}
