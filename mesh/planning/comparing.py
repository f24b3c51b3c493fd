"""What a plan says in a sentence: cells side by side, for those who do not read tables.

A sentence compares two cells that differ in one thing. Which pairs, in this order:

1. the first number of pods against each other one ("what if two pods fewer?"), by policy and a pod's capacity;
2. the first policy against the one that waits least, by pods and capacity.

Alone, a cell is held against the clairvoyant of the same capacity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mesh.cli.sizes import show_size
from mesh.planning.cells import Planned
from mesh.planning.finding import Found, NotFound

_ALIKE = 0.005
"""Cold times that differ by less are the same to anyone who waits."""


def sentences(cells: Sequence[Planned]) -> list[str]:
    """What stands out, in the order of the cells."""
    if len(cells) == 1:
        return [_alone(cells[0])]
    return [*_by_pods(cells), *_by_policy(cells)]


def sentence_on_capacity(answer: Found | NotFound) -> str:
    """How much capacity keeps the goal, or why none does."""
    if isinstance(answer, NotFound):
        cell, result = answer.most.cell, answer.most.result
        return (
            f"No capacity keeps {answer.goal}: even with {show_size(cell.capacity_bytes)} {_on(cell.pods)}, where "
            f"{cell.policy_shown} never evicts, {' and '.join(answer.why)}; what is cold there are "
            f"{result.loads:,} loads, one for each model, and who waits for them."
        )
    least = answer.least
    text = (
        f"{show_size(least.cell.capacity_bytes)} {_on(least.cell.pods)} ({least.capacity_fraction:.1%} of what all "
        f"models take) keep {answer.goal} with {least.cell.policy_shown}: {_figures(least)}"
    )
    if answer.below is None:
        return text + ". With less, a pod could not hold the largest model."
    why = " and ".join(answer.goal.missed(answer.below))
    return text + f". With {show_size(answer.below.cell.capacity_bytes)}, {why}."


def _alone(planned: Planned) -> str:
    result, ideal_s = planned.result, planned.clairvoyant_cold_time_s
    text = f"{result.cold:,} of {result.requests:,} requests are cold ({result.cold_fraction:.2%})"
    if ideal_s:
        text += (
            f"; they wait {result.cold_time_s:,.1f} s in all, {result.cold_time_s / ideal_s:.2f} times what they would "
            "if evictions knew every next use"
        )
    return text + "."


def _by_pods(cells: Sequence[Planned]) -> Iterator[str]:
    first = cells[0].cell.pods
    for before in cells:
        if before.cell.pods != first:
            continue
        for after in cells:
            same_policy = after.cell.policy_shown == before.cell.policy_shown
            if after.cell.pods != first and same_policy and after.cell.pod_bytes == before.cell.pod_bytes:
                yield (
                    f"{after.cell.pods} pods in place of {first}, {show_size(after.cell.pod_bytes)} each, "
                    f"{after.cell.policy_shown}: {_change(before, after)}."
                )


def _by_policy(cells: Sequence[Planned]) -> Iterator[str]:
    pools = dict.fromkeys((planned.cell.pods, planned.cell.capacity_bytes) for planned in cells)
    for pods, capacity_bytes in pools:
        here = [each for each in cells if (each.cell.pods, each.cell.capacity_bytes) == (pods, capacity_bytes)]
        first, best = here[0], min(here, key=lambda each: each.result.cold_time_s)
        if best is first and len(here) > 1:
            yield f"At {show_size(capacity_bytes)} {_on(pods)} nothing waits less than {first.cell.policy_shown}."
        elif best is not first:
            yield (
                f"At {show_size(capacity_bytes)} {_on(pods)}, {best.cell.policy_shown} in place of "
                f"{first.cell.policy_shown}: {_change(first, best)}."
            )


def _change(before: Planned, after: Planned) -> str:
    old, new = before.result, after.result
    text = (
        f"cold requests {old.cold_fraction:.2%} → {new.cold_fraction:.2%}, cold p99 {old.cold_p99_ms:,.0f} → "
        f"{new.cold_p99_ms:,.0f} ms"
    )
    if old.cold_time_s <= 0:
        return text
    ratio = new.cold_time_s / old.cold_time_s
    if abs(ratio - 1) < _ALIKE:
        return text + ", the same waiting in all"
    if ratio >= 2:
        return text + f", {ratio:.1f} times the waiting in all"
    return text + f", {abs(ratio - 1):.0%} {'more' if ratio > 1 else 'less'} waiting in all"


def _figures(planned: Planned) -> str:
    return f"{planned.result.cold_fraction:.2%} cold, cold p99 {planned.result.cold_p99_ms:,.0f} ms"


def _on(pods: int) -> str:
    return "on 1 pod" if pods == 1 else f"on {pods} pods"
