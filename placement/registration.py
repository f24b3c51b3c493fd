"""What a registration comes to, given what the store holds under its name: a pure decision.

Order of the cases: 1. a record that cannot be read refuses; 2. an alias of that name refuses; 3. an equal spec is
already there, whatever generation was asked for (so that a retry of a call whose answer was lost succeeds); 4. a
wrong `if_generation` refuses; 5. a different spec refuses unless `if_generation` is the present one; 6. else write.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from placement.errors import AlreadyExists, GenerationMismatch, PlacementError
from placement.records import ModelRecord, ModelSpec, Tombstone


class Outcome(Enum):
    """What a registration did."""

    CREATED = "created"
    UNCHANGED = "unchanged"
    """The same spec was registered already."""
    UPDATED = "updated"
    """A new generation of an existing model."""


@dataclass(frozen=True, slots=True)
class Registration:
    """One entry of a bulk registration. `if_generation`: replace the spec if this is the generation; 0: only create."""

    id: str
    spec: ModelSpec
    if_generation: int | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    """The record after the call."""

    record: ModelRecord
    outcome: Outcome

    @property
    def created(self) -> bool:
        """Whether the model is new."""
        return self.outcome is Outcome.CREATED


@dataclass(frozen=True, slots=True)
class NameState:
    """What the store holds under one name."""

    model: ModelRecord | None = None
    tombstone: Tombstone | None = None
    is_alias: bool = False
    unreadable: PlacementError | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing is written."""

    error: PlacementError


def plan_registration(
    tenant: str, entry: Registration, state: NameState, now_s: float, *, auto_delete: bool = False
) -> Registered | Refused:
    """The record to write (CREATED, UPDATED), the one that is there (UNCHANGED), or why not."""
    if state.unreadable is not None:
        return Refused(state.unreadable)
    if state.is_alias:
        return Refused(
            AlreadyExists(
                f"{entry.id!r} (tenant {tenant!r}) is an alias, and models and aliases share their names; choose "
                "another id or delete the alias"
            )
        )
    known = state.model
    if known is not None and known.spec == entry.spec:
        return Registered(known, Outcome.UNCHANGED)
    found = known.generation if known is not None else 0
    if entry.if_generation is not None and entry.if_generation != found:
        there = f"is at generation {found}" if known is not None else "is not registered (generation 0)"
        return Refused(
            GenerationMismatch(
                f"model {entry.id!r} (tenant {tenant!r}) {there}, not at {entry.if_generation} as if_generation says; "
                "read it again and decide anew"
            )
        )
    if known is None:
        first = state.tombstone.generation + 1 if state.tombstone is not None else 1
        return Registered(ModelRecord(tenant, entry.id, entry.spec, first, now_s, now_s, auto_delete), Outcome.CREATED)
    if entry.if_generation is None:
        differing = ", ".join(known.spec.differences(entry.spec))
        return Refused(
            AlreadyExists(
                f"model {entry.id!r} (tenant {tenant!r}) is registered with another spec (generation {found}; differs "
                f"in {differing}); to replace it, pass if_generation={found}, or choose another id"
            )
        )
    updated = replace(known, spec=entry.spec, generation=found + 1, generation_at_s=now_s, revision=0)
    return Registered(updated, Outcome.UPDATED)
