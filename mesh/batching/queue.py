"""Which of a model's waiting requests run next, together.

Nothing is held back for company unless the model's rules say so: whoever has a free thread takes what waits, and what
arrives while a run is in progress waits for the next one. That alone makes batches exactly as large as the load
makes worth while.

The order, in prose and in code:

1. Requests whose deadline passes before their run could end are answered at once, and take nobody's place. Where that
   would leave nobody, the one with the most time left runs: a prediction that is wrong must not last.
2. Requests that would be late if they waited for one run more come first, the most pressing before the others.
3. Then those that name a priority, 1 before 2, then all others; of equal ones in the order of arrival. The first is the
   head: others of its kind join it, in this order, while the batch stays within its limits. One that does not fit ends
   the batch: it is not passed by smaller ones.
4. A batch grows no longer than the deadlines of those in it allow.

Requests of another kind keep their places, and the first of them is the head some runs later.

Pure: values in, values out; `now_s` is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Generic, Protocol, TypeVar

LOOKED_AT_MORE = 64
"""Waiting requests that one decision looks at, beyond those that it may join, so that a long queue costs no more per
request than a short one."""
LATE_SHARE = 0.5
"""Of the predicted run: a request is given up only when not even half of it fits before its deadline, since predictions
are means."""


class Waiting(Protocol):
    """What a decision must know of a request."""

    @property
    def rows(self) -> int:
        """0: it runs by itself."""

    @property
    def kind(self) -> Hashable: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def deadline_s(self) -> float | None: ...

    @property
    def arrived_s(self) -> float: ...

    @property
    def priority(self) -> int:
        """1 before 2; 0 after all others."""


W = TypeVar("W", bound=Waiting)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one run may hold; `rows_max` 1: one request. `delay_s`: how long a request may be kept for company."""

    rows_max: int
    bytes_max: int
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan(Generic[W]):
    """What to do now."""

    late: tuple[W, ...] = ()
    """They cannot be answered in time."""
    batch: tuple[W, ...] = ()
    """They run now, together. Empty: nobody runs yet."""
    wait_until_s: float = inf
    """When to decide again, where requests are kept for company."""


def plan_batch(
    waiting: Collection[W], limits: BatchLimits, predicted_s: Callable[[int], float], now_s: float
) -> Plan[W]:
    """`waiting` in the order of arrival; `predicted_s(rows)` is what a run would take."""
    if len(waiting) == 1 and not limits.delay_s:
        (only,) = waiting  # most plans are made for one: it runs, unless it is too late for that
        return Plan((only,)) if _deadline_s(only) <= now_s else Plan((), (only,))
    looked_at = list(islice(waiting, limits.rows_max + LOOKED_AT_MORE))
    late, ordered = _ordered(looked_at, limits, predicted_s, now_s)
    if not ordered:
        return Plan(late)
    head = ordered[0]
    batch, rows = [head], max(1, head.rows)
    size_bytes, ends_max_s = head.size_bytes, _deadline_s(head)
    full = not head.rows or rows >= limits.rows_max
    for each in ordered[1:]:
        if full:
            break
        if each.kind != head.kind or not each.rows:
            continue
        ends_max_s = min(ends_max_s, _deadline_s(each))
        if (
            rows + each.rows > limits.rows_max
            or size_bytes + each.size_bytes > limits.bytes_max
            or (ends_max_s < inf and now_s + predicted_s(rows + each.rows) > ends_max_s)
        ):
            full = True
            break
        batch.append(each)
        rows += each.rows
        size_bytes += each.size_bytes
        full = rows >= limits.rows_max
    if limits.delay_s and not full:
        since_s = min(each.arrived_s for each in batch)
        wait_until_s = min(since_s + limits.delay_s, ends_max_s - 2 * predicted_s(rows))
        if wait_until_s > now_s:
            return Plan(late, (), wait_until_s)
    return Plan(late, tuple(batch))


def _ordered(
    looked_at: list[W], limits: BatchLimits, predicted_s: Callable[[int], float], now_s: float
) -> tuple[tuple[W, ...], list[W]]:
    """Those that are late, and the others in the order in which they run."""
    first_deadline_s = min(map(_deadline_s, looked_at), default=inf)
    next_run_s = now_s + predicted_s(limits.rows_max)
    if first_deadline_s > next_run_s + predicted_s(max((each.rows for each in looked_at), default=1) or 1):
        return (), _by_priority(looked_at)
    late: list[W] = []
    pressing: list[W] = []
    others: list[W] = []
    for each in looked_at:
        own_s, deadline_s = predicted_s(each.rows or 1), _deadline_s(each)
        if deadline_s <= now_s + LATE_SHARE * own_s:
            late.append(each)
        elif deadline_s < next_run_s + own_s:
            pressing.append(each)
        else:
            others.append(each)
    pressing.sort(key=_deadline_s)  # stable: of equal ones the first to arrive
    if late and not pressing and not others:
        hope = max(late, key=_deadline_s)
        if _deadline_s(hope) > now_s:
            late.remove(hope)
            others.append(hope)
    return tuple(late), pressing + _by_priority(others)


def _by_priority(waiting: list[W]) -> list[W]:
    if not any(each.priority for each in waiting):
        return waiting
    return sorted(waiting, key=lambda each: each.priority or inf)  # stable


def _deadline_s(each: Waiting) -> float:
    return inf if each.deadline_s is None else each.deadline_s
