"""The pipelines that are registered: their graphs, what they ask in the end, and who asks whom.

Steps name what they ask, and names are looked up when a request comes: a model may have a new generation, an alias
another target, without the pipeline hearing of it. So nothing is copied from models into pipelines, and what is
checked at a registration (every name is there, none leads back to the pipeline) is checked again by every request,
which ends with an error where somebody has changed that since, on another pod at the same moment, say.

What a pipeline asks is not unregistered while the pipeline is there: `users` knows it. That, too, is this pod's view.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cachetools import LRUCache

from mesh.pipelines.errors import BrokenPipeline
from mesh.pipelines.graph import Graph
from mesh.pipelines.settings import PIPELINES_DEPTH_MAX
from mesh.pipelines.spec import graph_of
from placement.errors import InvalidSpec, PlacementError, StillReferenced
from placement.records import ModelRecord, ModelSpec
from placement.registry import Registry
from placement.view import Changes, ModelChange

GRAPHS_KEPT_MAX = 1024
"""Of those that were read; the others are read again when they are asked."""
NAMES_MAX = 4096
"""That a pipeline leads to, as often as it does: they are walked on the event loop, some 4 ms, by each registration,
and whenever somebody asks for its state. One graph alone names no more."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a pipeline asks in the end."""

    models: tuple[ModelRecord, ...]
    problem: str = ""
    """Why it cannot answer, whatever its models do; empty: nothing."""


@dataclass(slots=True)
class _Walk:
    """Through a pipeline and those in it."""

    written: Mapping[str, ModelSpec]
    """Names as they will be, in place of what is registered."""
    models: dict[str, ModelRecord] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    """Pipelines that were walked, and how deep they were when they were."""
    names: int = 0


class Pipelines:
    """Belongs to the event loop."""

    def __init__(self, registry: Registry, depth_max: int = PIPELINES_DEPTH_MAX) -> None:
        """`depth_max`: pipelines that may be in one another."""
        self._registry = registry
        self._depth_max = depth_max
        self._graphs: LRUCache[tuple[str, str, int, float], Graph] = LRUCache(GRAPHS_KEPT_MAX)
        self._users: dict[tuple[str, str], set[str]] = {}

    def graph(self, record: ModelRecord) -> Graph:
        """Of a pipeline. Raises BrokenPipeline where this version cannot read it."""
        # With its time: a name that was given up long ago begins at generation 1 again.
        key = (record.tenant, record.id, record.generation, record.generation_at_s)
        graph = self._graphs.get(key)
        if graph is None:
            try:
                graph = graph_of(record.spec)
            except InvalidSpec as error:
                raise BrokenPipeline(f"pipeline {record.id!r} cannot be read: {error}; register it again") from error
            self._graphs[key] = graph
        return graph

    def enter(self, record: ModelRecord, chain: Sequence[str]) -> tuple[str, ...]:
        """The pipelines that a request is in, with this one. Raises BrokenPipeline: it is among them, or too deep."""
        if record.id in chain:
            circle = " -> ".join([*chain[chain.index(record.id) :], record.id])
            raise BrokenPipeline(f"pipelines lead back to one another: {circle}; register one of them anew")
        if len(chain) >= self._depth_max:
            raise BrokenPipeline(
                f"more than {self._depth_max} pipelines in one another ({' -> '.join(chain)} -> {record.id}); this "
                "pod's limit is pipeline_depth_max"
            )
        return (*chain, record.id)

    def parts(self, record: ModelRecord) -> Parts:
        """Every model that a request to this pipeline may ask, and what stands against the pipeline itself."""
        walk = _Walk({})
        try:
            self._collect(record, (), walk)
        except BrokenPipeline as broken:
            return Parts(tuple(walk.models.values()), str(broken))
        return Parts(tuple(walk.models.values()))

    def _collect(self, record: ModelRecord, chain: tuple[str, ...], walk: _Walk) -> None:
        chain = self.enter(record, chain)
        if walk.done.get(record.id, -1) >= len(chain):
            return
        walk.done[record.id] = len(chain)
        for name in self.graph(record).services:
            found = list(self._behind(record.tenant, name, walk.written))
            walk.names += max(1, len(found))
            if walk.names > NAMES_MAX:
                raise BrokenPipeline(
                    f"pipeline {chain[0]!r} leads to more than {NAMES_MAX} names, those of pipelines in it and of "
                    "aliases included; divide it"
                )
            if not found:
                raise BrokenPipeline(
                    f"pipeline {record.id!r} has a step for {name!r}, which is not registered (tenant "
                    f"{record.tenant!r}); register it first"
                )
            for target in found:
                if not target.spec.has_copies:
                    self._collect(target, chain, walk)
                else:
                    walk.models[target.id] = target

    def _behind(self, tenant: str, name: str, written: Mapping[str, ModelSpec]) -> Iterable[ModelRecord]:
        """The models that a name may stand for: of an alias, all that it may go to."""
        view = self._registry.view.tenant(tenant)
        alias = view.aliases.get(name)
        for each in [name] if alias is None else sorted(alias.referenced):
            if each in written:
                yield ModelRecord(tenant, each, written[each], 0, 0.0, 0.0)
            elif each in view.models:
                yield view.models[each]

    def check(self, tenant: str, model_id: str, spec: ModelSpec, together: Mapping[str, ModelSpec]) -> None:
        """Whether this may be registered; `together`: with what else. Raises InvalidSpec."""
        known = self._registry.model(tenant, model_id)
        if known is not None and known.spec.has_copies != spec.has_copies:
            now, then = ("pipeline", "model") if not known.spec.has_copies else ("model", "pipeline")
            raise InvalidSpec(
                f"{model_id!r} is registered as a {now}, and cannot become a {then} while it answers; unregister it "
                "first, or take another name"
            )
        if spec.has_copies:
            return
        graph_of(spec)
        try:
            record = ModelRecord(tenant, model_id, spec, 0, 0.0, 0.0)
            self._forget(tenant, [*together, model_id])
            self._collect(record, (), _Walk({**together, model_id: spec}))
        except BrokenPipeline as broken:
            raise InvalidSpec(str(broken)) from None
        finally:
            self._forget(tenant, [*together, model_id])

    def _forget(self, tenant: str, names: Iterable[str]) -> None:
        """Graphs of generation 0 are of what is not registered yet."""
        for name in names:
            self._graphs.pop((tenant, name, 0, 0.0), None)

    def check_alias(self, tenant: str, alias: str, targets: Iterable[str]) -> None:
        """Whether an alias may point there: not at a pipeline that asks the alias. Raises InvalidSpec."""
        for target in targets:
            record = self._registry.model(tenant, target)
            if record is not None and not record.spec.has_copies and self._asks(record, alias, set()):
                raise InvalidSpec(f"alias {alias!r} cannot point at pipeline {target!r}, which has a step that asks it")

    def _asks(self, record: ModelRecord, name: str, walked: set[str]) -> bool:
        walked.add(record.id)
        try:
            services = self.graph(record).services
        except BrokenPipeline:
            return False
        return name in services or any(
            self._asks(target, name, walked)
            for service in services
            for target in self._behind(record.tenant, service, {})
            if not target.spec.has_copies and target.id not in walked
        )

    def is_pipeline(self, tenant: str, name: str) -> bool:
        """Whether this id is registered as a pipeline's."""
        record = self._registry.model(tenant, name)
        return record is not None and not record.spec.has_copies

    # Who asks whom ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take in what is registered; `heed` tells of what changes from then on."""
        for record in self._registry.view.every_model():
            if not record.spec.has_copies:
                self._heed(ModelChange(record.tenant, record.id, None, record))

    def heed(self, changes: Changes) -> None:
        """Registrations changed."""
        for change in changes.models:
            self._heed(change)

    def _heed(self, change: ModelChange) -> None:
        for record, asks in ((change.before, False), (change.after, True)):
            if record is None or record.spec.has_copies:
                continue
            try:
                services = self.graph(record).services
            except BrokenPipeline:
                continue
            for name in services:
                users = self._users.setdefault((record.tenant, name), set())
                (users.add if asks else users.discard)(record.id)
                if not users:
                    del self._users[record.tenant, name]

    def why_kept(self, tenant: str, name: str, leaving: Collection[str] = ()) -> PlacementError | None:
        """Why a name must not go: pipelines ask it, other than those that are `leaving` with it."""
        users = sorted(self._users.get((tenant, name), set()).difference(leaving))
        if not users:
            return None
        return StillReferenced(
            f"{name!r} (tenant {tenant!r}) is asked by a step of pipeline {users[0]!r}"
            + (f" and {len(users) - 1} more" if len(users) > 1 else "")
            + "; change or unregister that first"
        )
