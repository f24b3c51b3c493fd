"""The leader's turn over aliases: those on their way to another model, and those whose traffic was just split.

`policy/transitions.py` says what the next step is. The target gets copies until it may take over, then the alias is
switched; a target that cannot be loaded leaves the active model serving, the alias says why, and the next try comes
after a pause that doubles, or at once when the target has another spec.

A split is looked after until each of its models has served once. After that they are as any other model: what gets no
requests may be evicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from placement.errands import Errands
from placement.planning import Planning, Unplaced
from placement.policy.places import Place
from placement.policy.snapshot import ModelFacts, ModelName
from placement.policy.transitions import Fail, Finish, Prepare, Wait, plan_split, plan_transition
from placement.records import AliasRecord, AliasState
from placement.registry import Registry
from placement.service_limits import ServiceLimits
from placement.view import Changes, RegistryView

AliasName = ModelName
"""Aliases and models share one name space."""


@dataclass(frozen=True, slots=True)
class Told:
    """What is to be said of an alias in the log and to `explain`."""

    alias: AliasName
    action: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Failed:
    """A transition that failed, and when it is tried again."""

    target: str
    generation: int
    retry_at_s: float
    pause_s: float


class Aliases:
    """Belongs to one leader."""

    def __init__(
        self, registry: Registry, errands: Errands, limits: ServiceLimits, wall_clock: Callable[[], float]
    ) -> None:
        self._registry = registry
        self._errands = errands
        self._limits = limits
        self._wall_clock = wall_clock
        self._moving: dict[AliasName, None] = {}
        self._splitting: dict[AliasName, None] = {}
        self._failed: dict[AliasName, _Failed] = {}
        self._wanted: dict[ModelName, int] = {}

    def begin(self, names: RegistryView) -> None:
        """Take in everything, as a new leader."""
        for tenant in names.tenants.values():
            for record in tenant.aliases.values():
                self._note(record, at_begin=True)

    def names_changed(self, changes: Changes) -> None:
        """Aliases were set or deleted."""
        for change in changes.aliases:
            name = AliasName(change.tenant, change.id)
            self._moving.pop(name, None)
            self._splitting.pop(name, None)
            if change.before is None or change.after is None or change.before.target != change.after.target:
                self._failed.pop(name, None)
            if change.after is not None:
                self._note(change.after)

    def recheck(self, names: RegistryView) -> None:
        """Whatever events have told: what is on its way is looked after."""
        for tenant in names.tenants.values():
            for record in tenant.aliases.values():
                if record.state is not AliasState.DEFINED:
                    self._moving[AliasName(record.tenant, record.id)] = None

    def wanted_copies(self, name: ModelName) -> int:
        """How many copies of a model a transition needs, as of the last turn: those are not surplus."""
        return self._wanted.get(name, 0)

    def _note(self, record: AliasRecord, *, at_begin: bool = False) -> None:
        name = AliasName(record.tenant, record.id)
        if record.state is not AliasState.DEFINED:
            self._moving[name] = None
        # A new leader does not bring back what has not been asked for since the split.
        old = at_begin and self._wall_clock() - record.changed_at_s > self._limits.split_prepared_within_s
        if record.weights and not old:
            self._splitting[name] = None

    def turn(self, plan: Planning) -> tuple[Told, ...]:
        """Plan the next step of every alias that is not where it shall be."""
        told: list[Told] = []
        self._wanted.clear()
        for name in list(self._moving):
            record = plan.names.tenant(name.tenant).aliases.get(name.id)
            if record is None or record.state is AliasState.DEFINED:
                self._moving.pop(name, None)
                self._failed.pop(name, None)
            elif name not in self._errands and not plan.exhausted:
                told += self._move(plan, name, record)
        for name in list(self._splitting):
            record = plan.names.tenant(name.tenant).aliases.get(name.id)
            if record is None or self._split(plan, record):
                self._splitting.pop(name, None)
        return tuple(told)

    def _move(self, plan: Planning, name: AliasName, record: AliasRecord) -> list[Told]:
        target = plan.facts_of(ModelName(record.tenant, record.target))
        if target is None:
            reason = f"model {record.target!r} is not registered any more"
            return self._fail(plan, name, record, 0, reason)
        active_name = ModelName(record.tenant, record.active)
        active = plan.facts_of(active_name)
        if record.state is AliasState.TRANSITION_FAILED and plan.now_s < self._retry_at_s(name, target, plan.now_s):
            return []
        step = plan_transition(
            plan.view,
            active,
            target,
            plan.heat.rate_per_s(active_name, plan.now_s),
            plan.terms(),
        )
        serving = sum(copy.servable > 0 for copy in plan.view.copies.get(active_name, ()))
        self._wanted[target.name] = max(self._wanted.get(target.name, 0), serving)
        match step:
            case Finish(reason):
                self._failed.pop(name, None)
                self._errands.send(name, self._registry.finish_transition(record.tenant, record.id, record.target))
                return [Told(name, "switch alias", f"from {record.active!r} to {record.target!r}: {reason}")]
            case Fail(reason):
                return self._fail(plan, name, record, target.generation, reason)
            case Prepare(places, reason):
                _accept(plan, target, places)
            case Wait(reason):
                pass
        return [Told(name, "prepare alias", f"{record.target!r} shall follow {record.active!r}: {reason}")]

    def _retry_at_s(self, name: AliasName, target: ModelFacts, now_s: float) -> float:
        """When a transition that has failed is tried again; it has its next try until it fails once more."""
        failed, first_s = self._failed.get(name), self._limits.alias_retry_first_s
        if failed is None:
            # Under another leader, or somebody else said so.
            failed = _Failed(target.name.id, target.generation, now_s + first_s, first_s)
        elif (failed.target, failed.generation) != (target.name.id, target.generation):
            failed = _Failed(target.name.id, target.generation, now_s, first_s)
        self._failed[name] = failed
        return failed.retry_at_s

    def _fail(self, plan: Planning, name: AliasName, record: AliasRecord, generation: int, reason: str) -> list[Told]:
        before = self._failed.get(name)
        limits = self._limits
        pause_s = (
            min(2 * before.pause_s, limits.alias_retry_max_s) if before is not None else limits.alias_retry_first_s
        )
        self._failed[name] = _Failed(record.target, generation, plan.now_s + pause_s, pause_s)
        if record.failure != reason:
            self._errands.send(name, self._registry.fail_transition(record.tenant, record.id, record.target, reason))
        return [Told(name, "alias stays", f"on {record.active!r}, not on {record.target!r}: {reason}")]

    def _split(self, plan: Planning, record: AliasRecord) -> bool:
        """Whether nothing is left to be done."""
        models = [
            (model, share)
            for model_id, share in record.weights.items()
            if (model := plan.facts_of(ModelName(record.tenant, model_id))) is not None
        ]
        found = plan_split(plan.view, models, plan.terms())
        facts = {model.name: model for model, _ in models}
        for place in found.places:
            plan.accept(facts[place.name], place)
        for unplaced in found.unplaced:
            wanted_for = f"a share of alias {record.id!r}"
            plan.unplaced.append(Unplaced(unplaced.name, wanted_for, unplaced.reason, unplaced.no_pod))
        lasting = all(unplaced.lasting for unplaced in found.unplaced)
        return not (found.places or found.waiting) and lasting


def _accept(plan: Planning, model: ModelFacts, places: tuple[Place, ...]) -> None:
    for place in places:
        plan.accept(model, place)
