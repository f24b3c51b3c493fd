"""Orders that were given and have not shown their effect yet, so that the next turn does not give them again.

An order goes through these stages; each turn looks at the view and moves it on:

    given -> accepted (a load: the pod publishes a loading copy) -> done (servable; an unload: the copy is gone)

and leaves the table early when it fails (the pod publishes a failure), when its pod is gone or another process, or
when nothing shows in time. An order that came to nothing is held off: this pod and model are not tried with each other
again for a while, longer each time, whatever the reason was. The reasons are the pod's business and show in what it
publishes; without the pause an order that a pod refuses would be given once a second.

All of it is lost with the leader: the next one looks at the view and decides anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from placement.expected import ExpectedPool
from placement.peers import LoadOrder, Order
from placement.policy.snapshot import Copy, LoadFailure, ModelName, PoolView


class Outcome(Enum):
    """What became of an order."""

    DONE = "done"
    FAILED = "failed"
    """The pod published a failure, or refused."""
    VANISHED = "vanished"
    """The load was accepted, and is gone again without a word: cancelled, evicted, or no room."""
    UNANSWERED = "unanswered"
    """Nothing showed in time."""
    POD_GONE = "pod gone"


@dataclass(frozen=True, slots=True)
class InFlight:
    """One order on its way."""

    pod: str
    incarnation: str
    order: Order
    given_at_s: float
    size_bytes: int
    load_s: float
    failure_before: LoadFailure | None
    """What the pod had published of an earlier try: only another one is the answer."""
    accepted: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """An order that has left the table."""

    in_flight: InFlight
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class OrderLimits:
    """How long orders may take, and how long what failed is left alone."""

    accepted_within_s: float = 10.0
    """A load shows as a loading copy within this: two calls and one write to the store."""
    gone_within_s: float = 60.0
    """A copy that is ordered away may have requests to finish."""
    loaded_within_s: float = 1800.0
    """The longest load; the pod has a limit of its own, this one only bounds the table."""
    held_off_first_s: float = 10.0
    held_off_max_s: float = 300.0


_Held = tuple[str, bool]
"""A pod, and whether it is a load."""


class OrdersInFlight:
    """At most one order for each model and pod."""

    def __init__(self, limits: OrderLimits | None = None) -> None:
        self._limits = limits or OrderLimits()
        self._given: dict[ModelName, dict[str, InFlight]] = {}
        self._held_off: dict[ModelName, dict[_Held, tuple[float, int]]] = {}
        """Until when, and after how many vain tries."""

    def __len__(self) -> int:
        return sum(len(by_pod) for by_pod in self._given.values())

    def give(
        self, pod: str, order: Order, view: PoolView, now_s: float, *, size_bytes: int = 0, load_s: float = 0.0
    ) -> None:
        """The order is about to be sent."""
        known = view.pods.get(pod)
        self._given.setdefault(order.name, {})[pod] = InFlight(
            pod,
            known.incarnation if known is not None else "",
            order,
            now_s,
            size_bytes,
            load_s,
            _failure_at(view, order.name, pod),
        )

    def refused(self, pod: str, order: Order, now_s: float) -> None:
        """The pod did not take it, or could not be reached."""
        found = self._given.get(order.name, {}).get(pod)
        if found is not None and found.order == order:
            self._drop(found)
            self._hold_off(found, now_s)

    def of(self, name: ModelName) -> Iterable[InFlight]:
        """Orders for one model."""
        return self._given.get(name, {}).values()

    def loads_of(self, name: ModelName) -> frozenset[str]:
        """Pods with an order to load this model."""
        return frozenset(found.pod for found in self.of(name) if isinstance(found.order, LoadOrder))

    def taken(self, name: ModelName, now_s: float) -> frozenset[str]:
        """Pods that must not be ordered to load this model now: they have an order, or one came to nothing."""
        held_off = self._held_off.get(name, {})
        pods = (pod for (pod, is_load), (until_s, _) in held_off.items() if is_load and until_s > now_s)
        return frozenset((*self._given.get(name, ()), *pods))

    def may_unload(self, name: ModelName, pod: str, now_s: float) -> bool:
        """Whether the pod may be ordered to let go of the model now."""
        until_s, _ = self._held_off.get(name, {}).get((pod, False), (0.0, 0))
        return pod not in self._given.get(name, {}) and until_s <= now_s

    def lay_over(self, expected: ExpectedPool) -> None:
        """Show what is not in the view yet."""
        for name, by_pod in self._given.items():
            for found in by_pod.values():
                if isinstance(found.order, LoadOrder):
                    if not found.accepted:
                        expected.load(found.pod, name, found.order.generation, found.size_bytes, found.load_s)
                else:
                    expected.unload(found.pod, name)

    def settle(self, view: PoolView, now_s: float) -> tuple[Settled, ...]:
        """Move every order on; those that left the table, in the order of names and pods."""
        settled: list[Settled] = []
        for found in [found for by_pod in self._given.values() for found in by_pod.values()]:
            outcome = self._outcome(found, view, now_s)
            if outcome is None:
                continue
            self._drop(found)
            if outcome is Outcome.DONE:
                self._held_off.get(found.order.name, {}).pop(_held(found), None)
            elif outcome is not Outcome.POD_GONE:
                self._hold_off(found, now_s)
            settled.append(Settled(found, outcome))
        forgotten_s = now_s - self._limits.held_off_max_s
        for name, held in list(self._held_off.items()):
            for key in [key for key, (until_s, _) in held.items() if until_s < forgotten_s]:
                del held[key]
            if not held:
                del self._held_off[name]
        settled.sort(key=lambda item: (item.in_flight.order.name, item.in_flight.pod))
        return tuple(settled)

    def _outcome(self, found: InFlight, view: PoolView, now_s: float) -> Outcome | None:
        order, limits = found.order, self._limits
        pod = view.pods.get(found.pod)
        if pod is None or pod.incarnation != found.incarnation:
            return Outcome.POD_GONE
        waited_s = now_s - found.given_at_s
        copy = _copy_at(view, order.name, found.pod)
        if not isinstance(order, LoadOrder):
            if copy is None or copy.servable != order.generation:
                return Outcome.DONE
            return Outcome.UNANSWERED if waited_s > limits.gone_within_s else None
        if copy is not None and copy.servable >= order.generation:
            return Outcome.DONE
        failure = _failure_at(view, order.name, found.pod)
        if failure is not None and failure.generation >= order.generation and failure != found.failure_before:
            return Outcome.FAILED
        loading = copy is not None and copy.loading >= order.generation
        if found.accepted and not loading:
            return Outcome.VANISHED
        if loading and not found.accepted:
            self._given[order.name][found.pod] = replace(found, accepted=True)
        if waited_s > (limits.loaded_within_s if loading else limits.accepted_within_s):
            return Outcome.UNANSWERED
        return None

    def _drop(self, found: InFlight) -> None:
        by_pod = self._given[found.order.name]
        del by_pod[found.pod]
        if not by_pod:
            del self._given[found.order.name]

    def _hold_off(self, found: InFlight, now_s: float) -> None:
        held = self._held_off.setdefault(found.order.name, {})
        _, tries = held.get(_held(found), (0.0, 0))
        pause_s = min(self._limits.held_off_first_s * 2.0 ** min(tries, 16), self._limits.held_off_max_s)
        held[_held(found)] = (now_s + pause_s, tries + 1)


def _held(found: InFlight) -> _Held:
    return found.pod, isinstance(found.order, LoadOrder)


def _copy_at(view: PoolView, name: ModelName, pod: str) -> Copy | None:
    return next((copy for copy in view.copies.get(name, ()) if copy.pod == pod), None)


def _failure_at(view: PoolView, name: ModelName, pod: str) -> LoadFailure | None:
    return next((failure for failure in view.failures.get(name, ()) if failure.pod == pod), None)
