"""Objects in the cluster that belong to an InferenceService: applied when they differ, deleted when nobody wants them.

They are applied server-side, under our field manager: fields that the manifest has are ours, and come back if somebody
changes them; fields that it lacks are anybody's. What was applied is remembered on the object itself as a digest, so
that a field that a later manifest no longer has is noticed and given up, and a controller that starts on a thousand
services that are at rest writes nothing.

Before the first apply of a child the cluster is asked who has its name: an apply that meets no other's field would
make the object ours, and the garbage collector would take it away with the service.

Deliberately absent: the cluster's garbage collector, which deletes children with their service, by their owner
reference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from typing import Any

from controller.cluster_api import ClusterApi, Json, Kind
from controller.cluster_errors import Conflict, Missing
from controller.informers import Informer, Key, controller_of, owner_of
from controller.names import FIELD_MANAGER, MANAGED_BY_LABEL, SERVICE_LABEL
from controller.reading import Manifest

DIGEST = "hexcomb.dev/applied"
ANSWERS_MAX = 16_384
"""Children of which it is known how the server writes them: some 4 MiB. One that is forgotten is applied once more."""


class NameTaken(Exception):
    """An object of a child's name is somebody else's; it is left as it is, and the message says what to do."""


class OwnedChildren:
    """Of all services. Each kind of child has an informer that sees ours."""

    def __init__(self, api: ClusterApi, informers: Mapping[tuple[str, str], Informer]) -> None:
        """`informers`: by apiVersion and kind."""
        self._api = api
        self._informers = informers
        self._answered: dict[str, tuple[str, str]] = {}
        """By the uid of a child: digests of what was last applied, and of the spec that the server made of it."""

    def of(self, service: Json) -> tuple[Json, ...]:
        """Those that are there, of the kinds that we make."""
        uid = service["metadata"]["uid"]
        return tuple(child for informer in self._informers.values() for child in informer.of_owner(uid))

    async def apply(self, wanted: Iterable[Manifest]) -> None:
        """Raises ClusterError, NameTaken."""
        for manifest in wanted:
            informer = self._informers[manifest["apiVersion"], manifest["kind"]]
            marked = _marked(manifest)
            known = informer.get(_key(manifest))
            if known is None or not self._is_at_rest(known, marked):
                informer.heard(await self._applied(informer.kind, marked, known))

    async def delete_others(self, service: Json, wanted: Iterable[Manifest], kept: Container[tuple[str, str]]) -> None:
        """Those that are neither wanted nor, by kind and name, kept. Raises ClusterError."""
        names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in wanted}
        for child in self.of(service):
            metadata = child["metadata"]
            name = (child["kind"], metadata["name"])
            if name in names or name in kept or "deletionTimestamp" in metadata:
                continue
            kind = self._informers[child["apiVersion"], child["kind"]].kind
            with suppress(Missing):
                await self._api.delete(kind, metadata["namespace"], metadata["name"], metadata["uid"])
            self._answered.pop(metadata["uid"], None)

    async def _applied(self, kind: Kind, marked: Json, known: Json | None) -> Json:
        if known is None:
            known = await self._api.find(kind, *_key(marked))
        if known is not None and not is_for(known, marked):
            raise _taken(marked, f"its owner is {_owner_shown(known)}")
        is_ours = known is not None and owner_of(known) == owner_of(marked)
        try:
            answer = await self._api.apply(kind, marked, force=is_ours)
        except Conflict as error:
            if is_ours:
                raise
            raise _taken(marked, str(error)) from error
        if len(self._answered) >= ANSWERS_MAX:
            del self._answered[next(iter(self._answered))]
        self._answered[answer["metadata"]["uid"]] = (_digest(marked), _digest_of(answer.get("spec")))
        return answer

    def _is_at_rest(self, known: Json, marked: Json) -> bool:
        if _digest(known) != _digest(marked) or owner_of(known) != owner_of(marked):
            return False
        # The server may write a value in another way than it was said; then its own answer is what to compare with.
        return contains(known, marked) or self._answered.get(known["metadata"]["uid"]) == (
            _digest(marked),
            _digest_of(known.get("spec")),
        )


def is_for(known: Manifest, wanted: Manifest) -> bool:
    """Whether an object of a child's name is this service's, or is left of one that was called the same."""
    owner = controller_of(known)
    if owner is not None:
        wanted_by = controller_of(wanted)
        return wanted_by is not None and all(owner.get(name) == wanted_by[name] for name in ("kind", "name"))
    labels, ours = (one["metadata"].get("labels") or {} for one in (known, wanted))
    return labels.get(MANAGED_BY_LABEL) == FIELD_MANAGER and labels.get(SERVICE_LABEL) == ours.get(SERVICE_LABEL)


def contains(known: Any, wanted: Any) -> bool:
    """Whether everything that is wanted is there: fields may be added, entries of lists may not. An empty value, which
    the server leaves out, is there if nothing is."""
    if known is None and not wanted:
        return True
    if isinstance(wanted, Mapping):
        return isinstance(known, Mapping) and all(contains(known.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list | tuple):
        return (
            isinstance(known, list | tuple)
            and len(known) == len(wanted)
            and all(contains(one, other) for one, other in zip(known, wanted, strict=True))
        )
    return bool(known == wanted)


def are_alike(one: Any, other: Any) -> bool:
    """Whether they say the same: the server adds empty values by its schema, and leaves others out."""
    return contains(one, other) and contains(other, one)


def _taken(wanted: Manifest, why: str) -> NameTaken:
    name = f"{wanted['kind']} {wanted['metadata']['name']}"
    return NameTaken(f"{name} exists and is not this InferenceService's: delete it, or rename the service ({why})")


def _owner_shown(manifest: Manifest) -> str:
    owner = controller_of(manifest)
    return f"{owner.get('kind')} {owner.get('name')}" if owner is not None else "nobody that it names"


def _marked(manifest: Manifest) -> Json:
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), DIGEST: _digest_of(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def _digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _digest(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("annotations") or {}).get(DIGEST, ""))


def _key(manifest: Manifest) -> Key:
    return manifest["metadata"]["namespace"], manifest["metadata"]["name"]
