"""The nouns of this pod's cache: models, places, bytes, states, failures, refusals.

The problem: one pod holds some of many models in memory that is measured in bytes on several places. Everything
that the cache decides is expressed in the values below; they are immutable, so that a decision can be kept,
compared and printed long after the world has moved on.

The map of this package's public side:

* `cache.types`    - these values.
* `cache.limits`   - `CacheLimits`: every limit, with unit, default and reason.
* `cache.events`   - what the pod tells the cache. `cache.commands` - what the cache tells the pod to do.
* `cache.machine`  - `CacheMachine`: events in, commands out; and the hot path.
* `cache.views`    - what status pages, metrics and `hexcomb explain` may look at.
* `cache.eviction` - `plan_eviction`. `cache.policies` - who leaves first. `cache.history` - how models are used.

How a caller uses it (all of it on one thread, usually the event loop):

    cache = CacheMachine(CacheLimits(capacity=Bytes.of(Place("device", "cpu"), 2 << 30)))
    copy = cache.servable(key)                           # hot path: a dictionary look-up
    if copy is not None:
        copy.pin(now_s)                                  # in use: not a victim until the unpin
        ...                                              # run the model
        commands = cache.unpin(copy, now_s)              # nearly always empty
    else:
        commands = cache.handle(Want(...), now_s)        # StartFetch, Serve, Refuse, WakeAt, ...

Deliberately absent: clocks (times are numbers that the caller passes in, `now_s`, from one monotonic clock),
model objects (the caller keeps them by `copy_id`), and the pool (other pods are placement's matter).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class ModelKey(NamedTuple):
    """One generation of one tenant's model. A tuple and not a dataclass: it is hashed on every request."""

    tenant: str
    model_id: str
    generation: int = 1

    def __str__(self) -> str:
        return f"{self.tenant}/{self.model_id}@{self.generation}"


class Place(NamedTuple):
    """Where bytes lie: a tier (`device` or `host`) and a device of that tier (`cpu`, `cuda:0`; empty for host)."""

    tier: str
    device: str = ""

    def __str__(self) -> str:
        return f"{self.tier}:{self.device}" if self.device else self.tier


def shown(count_bytes: int) -> str:
    """A number of bytes for a person: `104,862,412 B` is `100.0 MiB`."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count_bytes) >= size:
            return f"{count_bytes / size:,.1f} {unit}"
    return f"{count_bytes} B"


@dataclass(frozen=True, slots=True, eq=True)
class Bytes:
    """An immutable vector of bytes, one component per place; a place that is not named holds zero.

    `a <= b` holds when every component does: a partial order, so `not a <= b` does not mean `a > b`.
    Components may be negative in the course of a calculation; `shortage` keeps the positive ones.
    """

    components: tuple[tuple[Place, int], ...] = ()

    @staticmethod
    def of(place: Place, count_bytes: int) -> Bytes:
        """A vector with one component."""
        return Bytes(((place, count_bytes),)) if count_bytes else NO_BYTES

    @staticmethod
    def from_mapping(bytes_by_place: Mapping[Place, int]) -> Bytes:
        """A vector with these components, zeros dropped, in one canonical order."""
        return Bytes(tuple(sorted((place, count) for place, count in bytes_by_place.items() if count)))

    @staticmethod
    def sum(vectors: Iterable[Bytes]) -> Bytes:
        """The sum of many vectors, with one allocation at the end."""
        totals: dict[Place, int] = {}
        for vector in vectors:
            for place, count in vector.components:
                totals[place] = totals.get(place, 0) + count
        return Bytes.from_mapping(totals)

    def __add__(self, other: Bytes) -> Bytes:
        if not other.components:
            return self
        totals = dict(self.components)
        for place, count in other.components:
            totals[place] = totals.get(place, 0) + count
        return Bytes.from_mapping(totals)

    def __sub__(self, other: Bytes) -> Bytes:
        if not other.components:
            return self
        totals = dict(self.components)
        for place, count in other.components:
            totals[place] = totals.get(place, 0) - count
        return Bytes.from_mapping(totals)

    def __le__(self, other: Bytes) -> bool:
        return not (self - other).shortage()

    def __bool__(self) -> bool:
        return bool(self.components)

    def __iter__(self) -> Iterator[tuple[Place, int]]:
        return iter(self.components)

    def __getitem__(self, place: Place) -> int:
        return next((count for known, count in self.components if known == place), 0)

    def __str__(self) -> str:
        return " + ".join(f"{shown(count)} on {place}" for place, count in self.components) or "0 B"

    def at_least(self, other: Bytes) -> Bytes:
        """The larger of both, place by place."""
        return self + (other - self).shortage()

    def at_most(self, other: Bytes) -> Bytes:
        """The smaller of both, place by place."""
        return self - (self - other).shortage()

    def shortage(self) -> Bytes:
        """The positive components alone."""
        return Bytes(tuple((place, count) for place, count in self.components if count > 0))

    def missing_from(self, available: Bytes) -> Bytes:
        """What this need lacks, in the places that it needs at all; empty when it fits into `available`."""
        missing = ((place, count - available[place]) for place, count in self.components if count > 0)
        return Bytes(tuple((place, count) for place, count in missing if count > 0))

    @property
    def total_bytes(self) -> int:
        """All components together."""
        components = self.components
        if len(components) == 1:  # nearly always; each eviction asks this of each copy
            return components[0][1]
        return sum(count for _, count in components)


NO_BYTES = Bytes()


class SharedPart(NamedTuple):
    """Bytes of a copy that other copies with the same content share with it (`cache.sharing`)."""

    content: str
    place: Place
    count_bytes: int


Shared = tuple[SharedPart, ...]
"""The parts of one copy; each content once."""


class CopyState(Enum):
    """Where a copy is in its life. The moves between states are one table: `cache.transitions`."""

    QUEUED = "queued"
    """Wanted; waits for a fetch slot."""
    FETCHING = "fetching"
    """StartFetch was sent; its size is not known yet."""
    WAITING_FOR_SPACE = "waiting for space"
    """On disk and sized; waits for its bytes, and for a load slot."""
    LOADING = "loading"
    """Its bytes are reserved and StartLoad was sent."""
    SETTLING = "settling"
    """Loaded, but bigger than reserved; others are making room before it serves."""
    SERVABLE = "servable"
    """Serves whoever asks."""
    RETIRING = "retiring"
    """Serves those who hold it, admits nobody, is unloaded when the last of them lets go."""
    PARKING = "parking"
    """StartPark was sent: it leaves its device for the host tier; its bytes count in both until that is done."""
    PARKED = "parked"
    """In RAM, one copy away from its device; serves nobody."""
    UNLOADING = "unloading"
    """StartUnload was sent; its bytes count until the runtime confirms."""
    STUCK = "stuck"
    """The runtime failed to unload it; its bytes still count, and the unload is tried again."""
    CANCELLING_FETCH = "cancelling fetch"
    """CancelLoad was sent during the fetch; the answer is still to come."""
    CANCELLING_LOAD = "cancelling load"
    """CancelLoad was sent during the load; its bytes count until the answer comes."""
    OVERDUE = "overdue"
    """Its load takes longer than it may and cannot be stopped; its bytes count until the answer comes."""
    GONE = "gone"
    """Holds nothing."""


class FailureKind(Enum):
    """What the failure means for the next attempt."""

    PERMANENT = "permanent"
    """Not tried again until the generation changes or the failure is forgiven."""
    TRANSIENT = "transient"
    """Tried again after a back-off that doubles."""
    NO_ROOM = "no room"
    """The same, and it was for want of memory."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a fetch or a load failed; `message` is a sentence for the person on call, without secrets."""

    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class WantedModel:
    """What the cache must know of a model to load it; taken from its spec.

    `priority`: higher goes first. `size_hint`: declared bytes, believed within bounds until a load has measured.
    `residency_min_s` and `ttl_s` override the limits' defaults for this model; a ttl of zero means none.
    `comes_back`: somebody sees to it that it is loaded, so if it leaves it is loaded again, here or elsewhere.
    """

    key: ModelKey
    priority: int = 0
    pinned: bool = False
    size_hint: Bytes | None = None
    residency_min_s: float | None = None
    ttl_s: float | None = None
    comes_back: bool = False


class RefusalKind(Enum):
    """Told apart by what the caller does next."""

    TOO_BIG = "too big"
    """Never fits this pod: another pod, more capacity, or a smaller model."""
    FULL = "full"
    """Everything is in use or pinned: elsewhere, or later."""
    OVERLOADED = "overloaded"
    """Too many wait already: elsewhere, or later."""
    DEADLINE = "deadline"
    """The load takes, or took, longer than the request has. The load goes on, so that a retry finds it."""
    LOAD_FAILED_PERMANENT = "load failed, permanent"
    """Do not retry until the spec changes."""
    LOAD_FAILED_TRANSIENT = "load failed, transient"
    """Elsewhere first, or after the back-off."""
    GONE = "gone"
    """The model was unregistered or superseded: resolve the name again."""
    DRAINING = "draining"
    """This pod is stopping: elsewhere."""
    CANCELLED = "cancelled"
    """The caller itself cancelled."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a waiter gets no copy. `retry_after_s` is a hint; None means that waiting does not help."""

    kind: RefusalKind
    message: str
    retry_after_s: float | None = None
