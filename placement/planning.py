"""One turn's plan while it is made: what the leader sees, what it has decided so far, and the things that it can do.

Every duty of the leader (`placement.duties`) adds to the same plan, and sees what the ones before it decided: an order
is laid over the view at once, so a model is not placed twice, and a pod's room is not given away twice. Nothing is sent
while the plan is made.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field

from placement.expected import ExpectedPool
from placement.heat import Heat
from placement.orders import OrdersInFlight
from placement.peers import LoadOrder, Order, UnloadOrder
from placement.policy.load_choice import LoadChoice, choose_load_pod
from placement.policy.no_pod import NoPod
from placement.policy.places import LOADS_PER_POD_MAX, Place, Terms
from placement.policy.snapshot import ModelFacts, ModelName, PoolView
from placement.view import RegistryView

CONSIDERED_KEPT = 5
RULED_OUT_KEPT = 5


@dataclass(frozen=True, slots=True)
class Planned:
    """An order that the turn will give."""

    pod: str
    order: Order
    size_bytes: int = 0
    load_s: float = 0.0
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A copy that is wanted and has no place."""

    name: ModelName
    wanted_for: str
    why: str
    no_pod: NoPod | None = None
    """With what is in the way on each pod; None: there are places, at too high a price."""


@dataclass(slots=True)
class Planning:
    """One turn. For the event loop; not kept beyond the turn."""

    now_s: float
    """The leader's own monotonic clock, the same for the whole turn."""
    names: RegistryView
    pool: ExpectedPool
    healthy: Container[str]
    heat: Heat
    orders: OrdersInFlight
    facts_of: Callable[[ModelName], ModelFacts | None]
    """None for a model that is not registered."""
    orders_max: int
    planned: list[Planned] = field(default_factory=list)
    unplaced: list[Unplaced] = field(default_factory=list)
    sought: int = 0
    """Orders, and places sought in vain."""

    @property
    def view(self) -> PoolView:
        """The pool as it will be, decisions of this turn included."""
        return self.pool.view

    @property
    def exhausted(self) -> bool:
        """Nothing more is to be planned in this turn."""
        return self.sought >= self.orders_max

    def terms(self, loads_per_pod_max: int = LOADS_PER_POD_MAX) -> Terms:
        """On which terms a plan of several places is made now."""
        return Terms(
            self.healthy,
            self.pool.promised,
            held_off=lambda name: self.orders.taken(name, self.now_s),
            loads_per_pod_max=loads_per_pod_max,
        )

    def place(self, model: ModelFacts, reason: str) -> str | None:
        """Order one more copy where the policy wants it; the pod, or None where there is no place."""
        self.sought += 1
        choice = choose_load_pod(
            self.view,
            model,
            healthy=self.healthy,
            excluded=self.orders.taken(model.name, self.now_s),
            promised=self.pool.promised,
        )
        if isinstance(choice, NoPod):
            self.unplaced.append(Unplaced(model.name, reason, choice.message, choice))
            return None
        self._load(model, choice.pod, reason, choice)
        return choice.pod

    def accept(self, model: ModelFacts, place: Place) -> None:
        """Order a copy that a plan of several has found a place for."""
        self.sought += 1
        self._load(model, place.pod, place.reason, place.choice)

    def unload(self, name: ModelName, generation: int, pod: str, reason: str) -> bool:
        """Order a copy away. False: the pod was asked already, or did not do it lately."""
        if not self.orders.may_unload(name, pod, self.now_s):
            return False
        self.sought += 1
        self.planned.append(Planned(pod, UnloadOrder(name, generation, reason)))
        self.pool.unload(pod, name)
        return True

    def _load(self, model: ModelFacts, pod: str, reason: str, choice: LoadChoice) -> None:
        order = LoadOrder(model.name, model.generation, reason)
        self.planned.append(Planned(pod, order, model.size_bytes, model.load_s, _details(choice)))
        self.pool.load(pod, model.name, model.generation, model.size_bytes, model.load_s)


def _details(choice: LoadChoice) -> tuple[str, ...]:
    """What a person needs of a choice: who was considered, and examples of who was out. All of it would be too much."""
    considered = (f"considered {candidate}" for candidate in choice.considered[1:CONSIDERED_KEPT])
    out = (f"out {obstacle}" for obstacle in choice.ruled_out[:RULED_OUT_KEPT])
    return (f"chosen {choice.considered[0]}", *considered, *out)
