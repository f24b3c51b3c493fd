"""Objects in the cluster that belong to an InferenceService: applied when they differ, deleted when nobody wants them.

They are applied server-side, under our field manager: fields that the manifest has are ours, and come back if somebody
changes them; fields that it lacks are anybody's. What was applied is remembered on the object itself as a digest, so
that a field that a later manifest no longer has is noticed and given up, and a controller that starts on a thousand
services that are at rest writes nothing.

Deliberately absent: the cluster's garbage collector, which deletes children with their service, by their owner
reference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from controller.cluster_api import ClusterApi, Json, Kind
from controller.cluster_errors import Conflict, Missing
from controller.informers import Informer, Key, owner_of
from controller.reading import Manifest

DIGEST = "hexcomb.dev/applied"
SERVICES = Kind("", "v1", "services")


class NameTaken(Exception):
    """An object of a child's name is somebody else's; it is left as it is, and the message says what to do."""


class OwnedChildren:
    """Of all services. Each kind of child has an informer that sees ours."""

    def __init__(self, api: ClusterApi, informers: Mapping[tuple[str, str], Informer]) -> None:
        """`informers`: by apiVersion and kind."""
        self._api = api
        self._informers = informers

    def of(self, service: Json) -> tuple[Json, ...]:
        """Those that are there, of the kinds that we make."""
        uid = service["metadata"]["uid"]
        return tuple(
            {**child, "apiVersion": api_version, "kind": kind}
            for (api_version, kind), informer in self._informers.items()
            for child in informer.of_owner(uid)
        )

    async def apply(self, wanted: Iterable[Manifest]) -> None:
        """Raises ClusterError, NameTaken."""
        for manifest in wanted:
            informer = self._informer(manifest)
            marked = _marked(manifest)
            known = informer.get(_key(manifest))
            if known is None or not contains(known, marked):
                is_ours = known is not None and owner_of(known) == owner_of(manifest)
                try:
                    informer.heard(await self._api.apply(informer.kind, marked, force=is_ours))
                except Conflict as error:
                    if is_ours:
                        raise
                    name = f"{manifest['kind']} {manifest['metadata']['name']}"
                    raise NameTaken(
                        f"{name} exists and is not this InferenceService's: delete it, or rename the service ({error})"
                    ) from error

    async def delete_others(self, service: Json, wanted: Iterable[Manifest]) -> None:
        """Raises ClusterError."""
        kept = {(manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]) for manifest in wanted}
        for child in self.of(service):
            metadata = child["metadata"]
            if (child["apiVersion"], child["kind"], metadata["name"]) in kept or "deletionTimestamp" in metadata:
                continue
            try:
                await self._api.delete(
                    self._informer(child).kind, metadata["namespace"], metadata["name"], metadata["uid"]
                )
            except Missing:
                continue  # it has gone

    def _informer(self, manifest: Manifest) -> Informer:
        return self._informers[manifest["apiVersion"], manifest["kind"]]


def contains(known: Any, wanted: Any) -> bool:
    """Whether everything that is wanted is there: fields may be added, entries of lists may not."""
    if isinstance(wanted, Mapping):
        return isinstance(known, Mapping) and all(contains(known.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list | tuple):
        return (
            isinstance(known, list | tuple)
            and len(known) == len(wanted)
            and all(contains(one, other) for one, other in zip(known, wanted, strict=True))
        )
    return bool(known == wanted)


def _marked(manifest: Manifest) -> Json:
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:32]
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), DIGEST: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def _key(manifest: Manifest) -> Key:
    return manifest["metadata"]["namespace"], manifest["metadata"]["name"]
