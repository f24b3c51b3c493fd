"""Who gets bytes next: the queue of claims against what is free, what is coming free, and what can be evicted.

The idea is a line of claims with one rule: nobody takes bytes that someone before him in the line is owed. Copies
that are loaded already but grew come first (their bytes are gone, only the books are late), then the loads in the
order of `load_order`. A claim that does not fit yet keeps its place and its share of all bytes that come free; one
behind it may start only from what is left over. So a large model cannot be starved by small ones; how long it may
hold the line while everything is in use is bounded by the machine, which then refuses it.

Pure: the plan is a value. The machine may throw it away, and does so when a blocked claim is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cache.eviction import CannotFit, Victim, plan_eviction
from cache.policies.base import Score
from cache.types import Bytes, ModelKey
from cache.views import CopyView


@dataclass(frozen=True, slots=True)
class Claim:
    """One copy that needs bytes."""

    copy_id: int
    key: ModelKey
    needed: Bytes
    takes_slot: bool = True
    """A load takes a load slot; a loaded copy that grew does not."""
    may_evict: bool = True
    override_residency: bool = False


@dataclass(frozen=True, slots=True)
class SpacePlan:
    """What to do now."""

    start: tuple[int, ...]
    """Claims whose bytes are free now, in order."""
    unload: tuple[tuple[Victim, Claim], ...]
    """Victims, each with the claim that it makes room for."""
    blocked: tuple[tuple[Claim, CannotFit], ...]
    """Claims that cannot be satisfied by what is free, coming and evictable."""


def load_order(
    *, foreground: bool, priority: int, urgent_s: float, wanted_s: float, copy_id: int
) -> tuple[bool, int, float, float, int]:
    """The order of loads (and of fetches)."""
    # 1. those that requests wait for; 2. the higher priority; 3. the more urgent (earliest deadline, where patience
    # bounds how far away a deadline may count as); 4. who was wanted first; 5. the id of the copy.
    return (not foreground, -priority, urgent_s, wanted_s, copy_id)


def plan_space(
    claims: Sequence[Claim],
    residents: Iterable[CopyView],
    *,
    free: Bytes,
    coming: Bytes,
    slots: int,
    now_s: float,
    score_of: Score,
) -> SpacePlan:
    """Go down the line of `claims`. `residents` is looked at only when something must be evicted.

    `coming`: bytes of copies that are being unloaded. `slots`: loads that may start or hold a claim now.
    """
    start: list[int] = []
    unload: list[tuple[Victim, Claim]] = []
    blocked: list[tuple[Claim, CannotFit]] = []
    owed_to_nobody = free + coming
    evictable: dict[int, CopyView] | None = None
    for claim in claims:
        if claim.takes_slot:
            if slots == 0:
                break
            slots -= 1
        missing = claim.needed.missing_from(owed_to_nobody)
        if missing:
            if evictable is None:
                evictable = {copy.copy_id: copy for copy in residents}
            itself = evictable.pop(claim.copy_id, None)  # a servable copy that grew does not make room for itself
            # Without leave to evict the plan is still made, over nothing, so that the answer says what is missing.
            plan = plan_eviction(
                evictable.values() if claim.may_evict else (),
                missing,
                now_s,
                score_of,
                override_residency=claim.override_residency,
            )
            if itself is not None:
                evictable[claim.copy_id] = itself
            if isinstance(plan, CannotFit):
                blocked.append((claim, plan))
            else:
                for victim in plan.victims:
                    unload.append((victim, claim))
                    owed_to_nobody += victim.freed
                    del evictable[victim.copy_id]
        elif not claim.needed.missing_from(free):
            start.append(claim.copy_id)
            free -= claim.needed
        owed_to_nobody -= claim.needed
    return SpacePlan(tuple(start), tuple(unload), tuple(blocked))
