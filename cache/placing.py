"""On which of a pod's devices a model is loaded, where it may run on several: two GPUs, or a GPU and the CPU.

Each device is a place of the ledger with bytes of its own, and a model lies on one of them. The choice is made when
bytes are planned, not when the model was fetched: until then it waits for whichever device has room first.

The order: 1. a device whose room is free now; 2. elsewhere (on the CPU), while that has room and the pod's devices have
none, if the model may run there; 3. the device where the least is lost: where the copy worth most among those that must
leave is worth least, by the same policy that chooses who leaves; 4. the device with the most bytes free; 5. the first.
A device that is too small even when it is empty is none.

What was planned for those who stand before in the line is taken off what is free, so that two models that come at once
go to two devices.

Pure: reads the state, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import NamedTuple

from cache.claims import coming, load_slots, rank
from cache.copies import Copy
from cache.eviction import Evict, plan_eviction
from cache.state import PodState
from cache.types import NO_BYTES, Bytes, CopyState, Place


class Damage(NamedTuple):
    """What a load on one device costs those that are there. The smaller the better, in this order."""

    impossible: bool
    """It does not fit whatever leaves now."""
    worth: float
    """Of the copy worth most among those that must leave; -inf when none must."""
    evicted_bytes: int


NO_DAMAGE = Damage(False, -inf, 0)


@dataclass(frozen=True, slots=True)
class OnDevice:
    """This one of the pod's devices."""

    index: int
    needed: Bytes


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where it runs, too, though slower."""

    needed: Bytes


Placing = OnDevice | Elsewhere


def choose_place(
    devices: Sequence[Bytes],
    otherwise: Bytes | None,
    *,
    free: Bytes,
    capacity: Bytes,
    damage_on: Callable[[Bytes], Damage],
) -> Placing:
    """`devices`: what the model takes on each, in their order. `damage_on` is asked only where room must be made."""
    large_enough = [index for index, needed in enumerate(devices) if not needed.missing_from(capacity)]
    fitting = [index for index in large_enough if not devices[index].missing_from(free)]
    if otherwise is not None and (not large_enough or not (fitting or otherwise.missing_from(free))):
        return Elsewhere(otherwise)
    if not large_enough:  # its refusal names the first
        return OnDevice(0, devices[0])
    among = fitting or large_enough
    damages = dict.fromkeys(among, NO_DAMAGE)
    if not fitting and len(large_enough) > 1:
        damages = {index: damage_on(devices[index]) for index in among}
    index = min(among, key=lambda index: (damages[index], -_free_bytes(devices[index], free), index))
    return OnDevice(index, devices[index])


def _free_bytes(needed: Bytes, free: Bytes) -> int:
    return sum(free[place] for place, _ in needed)


def plan_places(state: PodState) -> list[tuple[Copy, Placing]]:
    """Where each waiting copy that has a choice goes, as things stand."""
    waiting = state.by_state[CopyState.WAITING_FOR_SPACE].values()
    if not any(_has_choice(copy) for copy in waiting):
        return []
    free, owed, slots = state.ledger.free, state.ledger.free + coming(state), load_slots(state)
    plan = []
    in_turn = state.thrash.in_turn
    for copy in sorted(waiting, key=lambda copy: (copy.copy_id not in in_turn, rank(copy))):
        if slots <= 0:  # it is not its turn to have anybody leave
            break
        slots -= 1
        needed = copy.needed
        if _has_choice(copy):
            placing = choose_place(
                copy.on_devices,
                copy.otherwise,
                free=free,
                capacity=state.limits.capacity,
                damage_on=partial(_damage, state, owed),
            )
            plan.append((copy, placing))
            needed = placing.needed
        free -= needed
        owed -= needed
    return plan


def _has_choice(copy: Copy) -> bool:
    return copy.otherwise is not None or len(copy.on_devices) > 1


def _damage(state: PodState, owed: Bytes, needed: Bytes) -> Damage:
    """`owed`: what is free, or comes free, and nobody before this load is owed."""
    missing = needed.missing_from(owed)
    if not missing:
        return NO_DAMAGE
    views = (copy.view() for copy in state.by_state[CopyState.SERVABLE].values())
    plan = plan_eviction(
        [view for view in views if any(view.charged[place] > 0 for place, _ in missing)],
        missing,
        state.now_s,
        state.score_of(),
        override_residency=False,
    )
    if not isinstance(plan, Evict):
        return Damage(True, inf, missing.total_bytes)
    freed = Bytes.sum(victim.freed for victim in plan.victims)
    return Damage(False, max(victim.score for victim in plan.victims), freed.total_bytes)


def expected_on(measured: Bytes | None, devices: Sequence[Bytes]) -> tuple[Bytes | None, ...]:
    """A measured size on each device: where it was measured, and the same moved to each of the others; None for all
    where it was measured on none of them."""
    origin = next((needed for needed in devices if _places(needed) == _places(measured or NO_BYTES)), None)
    if measured is None or origin is None:
        return (None,) * len(devices)
    return tuple(_moved(measured, origin, needed) for needed in devices)


def _moved(measured: Bytes, origin: Bytes, target: Bytes) -> Bytes | None:
    left, entered = _places(origin) - _places(target), _places(target) - _places(origin)
    if not left and not entered:
        return measured
    if len(left) != 1 or len(entered) != 1:
        return None
    (there,), (here,) = left, entered
    return Bytes.from_mapping({here if place == there else place: count for place, count in measured})


def _places(size: Bytes) -> set[Place]:
    return {place for place, _ in size}
