"""How much this pod may hold while memory is short: a rule over readings, with memory of its own and no clock.

A capacity is a promise that was made at start, from limits. The world may break it: neighbours in the same group or on
the same machine take memory, runs need more than was known, the kernel takes mapped weights back so that "resident" is
no longer true. Then the pod holds less for a while. Three things lower its capacity:

* **danger**: what the kernel cannot take back is near the limit. The next step is the kernel's, and it kills. So at
  once, and by as much as is missing to a safe distance; until then nothing is loaded. Not down to nothing, though: a
  quarter stays. Where that does not help, models are not what takes the memory, and a pod that lives on without any
  is no better than one that starts anew.
* **reclaim that hurts**: near the limit, pages that were taken come back soon (refaults), requests wait for the disk
  (major faults) or for memory (stalls), for several readings in a row. A copy less is quicker than all of them from
  disk: by a tenth, and once more while it goes on.
* **there was no memory** for a load or a run: what the ledger held then, less what was missing, is what there is.

It comes back in steps, each after a calm while, and only while the room for the step is really there. Entering and
leaving have thresholds of their own, so that one copy more or less does not swing it.

A cold load also reads its file by major faults; pages that come for the first time are no refaults, and do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from runtime_adapters.memory_reading import MemoryReading

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PressureLimits:
    """When memory counts as short."""

    danger_share: float = 0.04
    """Of the limit: less left than this is danger. A load of a large model takes that much in a moment."""
    danger_bytes: int = 32 * MIB
    """And never less than this, in a small box."""
    danger_bytes_max: int = 256 * MIB
    """Nor more than this, in a large one: it is what one load needs, not a share of anything."""
    safe_factor: float = 2.0
    """Of the danger threshold: from here on it is safe again."""
    near_share: float = 0.9
    """Of the limit in use, page cache included: below it reclaim has other causes."""
    faults_per_s: float = 50.0
    """Major faults of this process, each some 0.1 ms of disk: half a percent of a core, and of somebody's latency."""
    refaults_per_s: float = 50.0
    stalled_share: float = 0.2
    """Of the time, some task waited for memory."""
    calm_share: float = 0.2
    """Of those thresholds: below it is calm. Between the two nothing changes."""
    readings_in_a_row: int = 3
    lower_share: float = 0.1
    lower_every_s: float = 5.0
    raise_share: float = 0.1
    """Of the full capacity, per step."""
    raise_every_s: float = 10.0
    calm_for_s: float = 20.0
    least_share: float = 0.25
    """The capacity is lowered to this share of the full one at most, or of what the box has, if that is less."""


class Level(Enum):
    """How things stand."""

    CALM = "calm"
    REDUCED = "reduced"
    """The cause is over, the capacity not yet back."""
    RECLAIM = "reclaim"
    DANGER = "danger"


@dataclass(frozen=True, slots=True)
class Pressure:
    """The state of the rule; times are of the caller's clock."""

    full_bytes: int
    """The capacity as configured."""
    capacity_bytes: int
    level: Level = Level.CALM
    why: str = ""
    """For people; empty when calm."""
    hurting: int = 0
    """Readings in a row in which reclaim hurt."""
    calm_since_s: float = 0.0
    lowered_at_s: float = float("-inf")
    raised_at_s: float = float("-inf")
    episodes: int = 0
    """Times that it left calm."""

    @property
    def loads_paused(self) -> bool:
        """Nothing new is loaded now."""
        return self.level is Level.DANGER


def calm(full_bytes: int) -> Pressure:
    """The state at the start."""
    return Pressure(full_bytes, full_bytes)


def after_reading(
    state: Pressure,
    before: MemoryReading,
    now: MemoryReading,
    *,
    elapsed_s: float,
    used_bytes: int,
    now_s: float,
    limits: PressureLimits,
) -> Pressure:
    """The state after one more reading, `elapsed_s` after the one before. `used_bytes`: what the ledger holds."""
    danger_bytes = danger_bytes_of(now.limit_bytes, limits)
    least_bytes = min(state.capacity_bytes, int(limits.least_share * min(state.full_bytes, now.limit_bytes)))
    safe_bytes = int(limits.safe_factor * danger_bytes)
    # 1. Danger goes before everything, and stays until the distance is safe.
    threshold_bytes = safe_bytes if state.level is Level.DANGER else danger_bytes
    if now.headroom_bytes < threshold_bytes:
        missing_bytes = safe_bytes - now.headroom_bytes
        why = f"{_mib(now.headroom_bytes)} left of {_mib(now.limit_bytes)} ({now.source})"
        capacity_bytes = max(least_bytes, min(state.capacity_bytes, used_bytes - missing_bytes))
        return _left_calm(state, Level.DANGER, why, now_s, capacity_bytes)
    # 2. Reclaim that hurts, several times in a row, and not more often than its effect can show.
    rates = _Rates(before, now, max(elapsed_s, 1e-3))
    hurts = rates.near(limits.near_share) and rates.exceed(limits, 1.0)
    state = replace(state, hurting=state.hurting + 1 if hurts else 0)
    if state.hurting >= limits.readings_in_a_row:
        if now_s - state.lowered_at_s < limits.lower_every_s:
            return _left_calm(state, Level.RECLAIM, rates.text, now_s, state.capacity_bytes)
        lowered_bytes = int(min(state.capacity_bytes, used_bytes) * (1 - limits.lower_share))
        return replace(
            _left_calm(state, Level.RECLAIM, rates.text, now_s, max(least_bytes, lowered_bytes)), lowered_at_s=now_s
        )
    if state.level is Level.CALM:
        return state
    # 3. On the way back: calm for a while, then step by step, as far as there is room.
    if rates.near(limits.near_share) and rates.exceed(limits, limits.calm_share):
        return replace(state, calm_since_s=now_s)
    room_bytes = now.headroom_bytes - safe_bytes
    return _back(state, room_bytes, now_s, limits)


def danger_bytes_of(limit_bytes: int, limits: PressureLimits) -> int:
    """Less left than this is danger."""
    return max(limits.danger_bytes, min(limits.danger_bytes_max, int(limits.danger_share * limit_bytes)))


def missing_room(reading: MemoryReading, needed_bytes: int, limits: PressureLimits) -> tuple[int, str]:
    """Bytes by which a load of so many would lead into danger, and the sentence for it; (0, "") when it would not."""
    left_bytes = reading.headroom_bytes - danger_bytes_of(reading.limit_bytes, limits)
    if needed_bytes <= left_bytes:
        return 0, ""
    why = (
        f"it takes {_mib(needed_bytes)}, and {_mib(max(0, left_bytes))} of {_mib(reading.limit_bytes)} can be used "
        f"without danger ({reading.source})"
    )
    return needed_bytes - left_bytes, why


def after_running_out(
    state: Pressure,
    used_bytes: int,
    missing_bytes: int,
    message: str,
    *,
    counted: bool,
    now_s: float,
    limits: PressureLimits,
) -> Pressure:
    """The state after there was no memory for the `used_bytes` that the ledger holds: `missing_bytes` too few.

    Where the kernel's own figures say so (`counted`) it holds at once, but only where others that leave could make that
    much room. Of what frameworks say, one report in `lower_every_s` does: whoever sends a request that no pod could run
    must not empty this one.
    """
    if counted:
        if missing_bytes > used_bytes:
            return state
        capacity_bytes = min(state.capacity_bytes, used_bytes - missing_bytes)
        return replace(_left_calm(state, Level.REDUCED, message, now_s, capacity_bytes), lowered_at_s=now_s)
    if now_s - state.lowered_at_s < limits.lower_every_s:
        return state
    least_bytes = min(state.capacity_bytes, int(limits.least_share * state.full_bytes))
    capacity_bytes = max(least_bytes, min(state.capacity_bytes, used_bytes - missing_bytes))
    return replace(_left_calm(state, Level.REDUCED, message, now_s, capacity_bytes), lowered_at_s=now_s)


def shared_out(capacity_bytes: int, full: Sequence[int], used: Sequence[int]) -> list[int]:
    """What places may hold that lie in the same memory, of which there is so much: each what it has now, the first one
    first; and what is left then goes to the first again, up to its full capacity. All of it is shared out, as far as
    the full capacities go."""
    kept, left_bytes = [], capacity_bytes
    for full_bytes, used_bytes in zip(full, used, strict=True):
        kept.append(min(used_bytes, full_bytes, left_bytes))
        left_bytes -= kept[-1]
    shares = []
    for full_bytes, kept_bytes in zip(full, kept, strict=True):
        shares.append(min(full_bytes, kept_bytes + left_bytes))
        left_bytes -= shares[-1] - kept_bytes
    return shares


def after_a_while(state: Pressure, *, now_s: float, limits: PressureLimits) -> Pressure:
    """The state of a device that gives no readings: it comes back with time alone."""
    return state if state.level is Level.CALM else _back(state, state.full_bytes, now_s, limits)


def _left_calm(state: Pressure, level: Level, why: str, now_s: float, capacity_bytes: int) -> Pressure:
    return replace(
        state,
        capacity_bytes=min(capacity_bytes, state.full_bytes),
        level=level,
        why=why,
        calm_since_s=now_s,
        episodes=state.episodes + (state.level is Level.CALM),
    )


def _back(state: Pressure, room_bytes: int, now_s: float, limits: PressureLimits) -> Pressure:
    state = replace(state, level=Level.REDUCED)
    last_s = max(state.calm_since_s + limits.calm_for_s, state.raised_at_s + limits.raise_every_s)
    if now_s < last_s:
        return state
    step_bytes = min(max(1, int(limits.raise_share * state.full_bytes)), state.full_bytes - state.capacity_bytes)
    if step_bytes > room_bytes:
        return state
    capacity_bytes = state.capacity_bytes + step_bytes
    if capacity_bytes < state.full_bytes:
        return replace(state, capacity_bytes=capacity_bytes, raised_at_s=now_s)
    return replace(state, capacity_bytes=state.full_bytes, level=Level.CALM, why="", raised_at_s=now_s)


class _Rates:
    """What happened between two readings, per second."""

    def __init__(self, before: MemoryReading, now: MemoryReading, elapsed_s: float) -> None:
        self._used_share = now.used_bytes / max(1, now.limit_bytes)
        self._faults_per_s = max(0, now.major_faults - before.major_faults) / elapsed_s
        self._refaults_per_s = max(0, now.refaults - before.refaults) / elapsed_s
        # A kernel that does not count refaults says 0 for ever; then faults must do.
        self._counts_refaults = now.refaults > 0
        self._stalled_share = max(0, now.stalled_us - before.stalled_us) / 1e6 / elapsed_s
        self._source = now.source

    def near(self, share: float) -> bool:
        return self._used_share >= share

    def exceed(self, limits: PressureLimits, factor: float) -> bool:
        returning = not self._counts_refaults or self._refaults_per_s >= factor * limits.refaults_per_s
        thrash = self._faults_per_s >= factor * limits.faults_per_s and returning
        return thrash or self._stalled_share >= factor * limits.stalled_share

    @property
    def text(self) -> str:
        return (
            f"the kernel takes pages back that are still needed: {self._faults_per_s:.0f} major faults and "
            f"{self._refaults_per_s:.0f} refaults a second, {self._stalled_share:.0%} of the time stalled, "
            f"{self._used_share:.0%} of the limit in use ({self._source})"
        )


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / MIB:,.0f} MiB"
