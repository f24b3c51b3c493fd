"""The nouns of placement's decisions: a pod, a copy, a failure, as the pool knows them, and the whole in one picture.

Every pod publishes what it holds under keys of its own (`placement.pool_records` has the JSON), every pod follows all
of them, and each decision in this package is a function of the picture that comes of it. A picture never changes; the
next one shares what stayed the same. Two pods with the same picture come to the same decision: nothing here depends
on the order of a mapping, on chance, or on who asks, but for the arguments that say so.

Times: `..._s` that a pod publishes are durations, or seconds of Unix time where the name ends in `_at_s`. Pods' clocks
differ by minutes, so no decision compares two pods' Unix times; `now_s` is the deciding pod's own monotonic clock.

Deliberately absent: what a request path needs of its own pod (the cache knows that at once), and who is reachable
(`healthy` pods are an argument: each pod sees its own network).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class ModelName(NamedTuple):
    """A model's name in the pool. Its generations are numbers beside it."""

    tenant: str
    id: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.id}"


@dataclass(frozen=True, slots=True)
class BusyModel:
    """One of the models that a pod ran most in the last seconds, as that pod measured it."""

    name: ModelName
    rate_per_s: float
    """Requests per second that ran here."""
    in_flight: float
    """Mean number of requests that ran or waited for their run."""
    queue_delay_s: float
    """Mean wait before a run."""
    run_s: float
    """Mean run."""
    concurrency: int
    """Runs that this copy takes at a time: 1 in a subprocess, else what the pod's threads allow."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One place on a pod where models lie."""

    tier: str
    device: str
    capacity_bytes: int
    free_bytes: int
    """Not reserved, resident or on its way out."""


@dataclass(frozen=True, slots=True)
class Pod:
    """What a pod says of itself, on its lease, every second or when something changed."""

    id: str
    incarnation: str
    """Drawn at each start: tells a restarted pod from the one before it."""
    address: str
    """HOST:PORT where other pods reach its gRPC endpoint."""
    version: str = ""
    zone: str = ""
    labels: frozenset[str] = frozenset()
    """Words, as ModelMesh's MM_LABELS: `gpu`, `disk=ssd`."""
    formats: frozenset[str] = frozenset()
    """Formats that it can load; empty: not said, any."""
    capacity_bytes: int = 0
    """Of all `tiers`: of a pod with a GPU, its memory and the host's. A model lies on one or on both, and its size is
    told as one number, too. So what exceeds this fits nowhere on the pod; of the rest the pod has the last word."""
    free_bytes: int = 0
    """Of all `tiers`."""
    tiers: tuple[Tier, ...] = ()
    pinned_bytes: int = 0
    """Never evicted for another."""
    eviction_age_s: float = 0.0
    """How long ago its longest unused copy was used; 0 when it has none."""
    loads_queued: int = 0
    """Models on their way in, running loads included."""
    load_wait_s: float = 0.0
    """When a load that comes now would begin, by its own estimate."""
    requests_in_flight: int = 0
    queue_delay_s: float = 0.0
    rate_per_s: float = 0.0
    busy: tuple[BusyModel, ...] = ()
    """Hottest first, bounded (`membership.BUSY_MODELS_MAX`)."""
    ready: bool = False
    draining: bool = False
    why_unready: str = ""
    started_at_s: float = 0.0
    loads: int = 0
    load_failures: int = 0
    """Since the start."""
    peer_key: str = field(default="", repr=False)
    """Drawn at each start: what another pod shows when it calls this one. Who can read the store is in the pool."""
    peer_address: str = ""
    """HOST:PORT where it takes forwarded calls in batches; empty: nowhere."""
    peer_socket: str = ""
    """The same for pods on its own machine: the path of a unix socket."""


@dataclass(frozen=True, slots=True)
class Copy:
    """What one pod has of one model. `servable` and `loading` are generations; 0: none.

    Both are set while a newer generation comes in beside the one that serves.
    """

    pod: str
    servable: int
    loading: int
    size_bytes: int
    """Of the servable generation; of the loading one, as far as known, while there is no other."""
    since_at_s: float


@dataclass(frozen=True, slots=True)
class Parked:
    """What one pod keeps of a model that it has no copy of: one tier below its memory."""

    pod: str
    disk: int
    """The generation whose artifact is on the pod's disk."""
    disk_load_s: float = 0.0
    """Seconds that a load took there once the artifact was on the disk, to one digit; 0: not measured yet."""


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A pod could not load a generation of a model."""

    pod: str
    generation: int
    permanent: bool
    message: str
    failed_at_s: float
    retry_after_s: float
    """From when it was published; meaningless when permanent."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What a pod is about to do with a model, written before it does it and not on its lease: it tells of a death."""

    pod: str
    incarnation: str
    generation: int
    doing: str
    """`loading` or `running`."""
    at_s: float


class Verdict(Enum):
    """What the pool does with a model that was there when pods died."""

    SUSPECT = "suspect"
    """Seen at a death. One proves nothing; seen at two, whether loading or running, it loads and runs in a process of
    its own from then on (`Suspicion.isolate`)."""
    QUARANTINED = "quarantined"
    """Seen loading at two deaths, or crashing again and again in its own process: no pod loads it until its spec
    changes or somebody releases it."""


@dataclass(frozen=True, slots=True)
class Death:
    """A pod's process ended without a word while it loaded or ran this model, or the model's own process did."""

    pod: str
    incarnation: str
    doing: str
    """`loading` or `running`; `crashed`: its own process ended, and the pod lives."""
    at_s: float


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Deaths that a generation was seen at. Not on a lease: it outlives the pods."""

    generation: int
    verdict: Verdict
    deaths: tuple[Death, ...]

    @property
    def isolate(self) -> bool:
        """Whether the model may only run in a process of its own: it was on board when two pods died. At the first
        death everything in use is named, hundreds of models at a `kill -9`, and isolating costs each one memory.
        A pod that dies in a model's first run may still say that it was loading it, so the two count together."""
        return len({(death.pod, death.incarnation) for death in self.deaths if death.doing != "crashed"}) >= 2


@dataclass(frozen=True, slots=True)
class PoolView:
    """Every pod and every copy, as of a revision of the store."""

    revision: int = 0
    pods: Mapping[str, Pod] = field(default_factory=dict)
    copies: Mapping[ModelName, tuple[Copy, ...]] = field(default_factory=dict)
    """In the order of pod ids."""
    parked: Mapping[ModelName, tuple[Parked, ...]] = field(default_factory=dict)
    """In the order of pod ids."""
    failures: Mapping[ModelName, tuple[LoadFailure, ...]] = field(default_factory=dict)
    suspicions: Mapping[ModelName, Suspicion] = field(default_factory=dict)
    fading: Mapping[str, float] = field(default_factory=dict)
    """Pods whose lease ran out, and when on this pod's monotonic clock. They are kept with their copies for a while:
    the store may have been away from them, or they from it, while they serve on. Whether they answer, probes tell."""
    unconfirmed: Mapping[str, frozenset[ModelName]] = field(default_factory=dict)
    """Of each fading pod, the copies that it has not published again yet."""
    parked_unconfirmed: Mapping[str, frozenset[ModelName]] = field(default_factory=dict)
    """As `unconfirmed`, of what it keeps parked."""

    def holders(self, name: ModelName, generation: int) -> tuple[Copy, ...]:
        """Copies that serve this generation."""
        return tuple(copy for copy in self.copies.get(name, ()) if copy.servable == generation)


def is_there(view: PoolView, pod: str, healthy: Container[str]) -> bool:
    """Whether a pod still counts as holding what it holds: not when its lease ran out and it does not answer either.

    One that only does not answer may be cut off from this pod alone, and its lease tells within seconds.
    """
    return pod in view.pods and (pod in healthy or pod not in view.fading)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What must be known of a model to find it a place; from its spec and from what was measured before."""

    name: ModelName
    generation: int
    size_bytes: int
    """Declared, else last measured, else the mean of the pool's copies."""
    format: str = ""
    """Empty: not known yet."""
    priority: int = 0
    pinned: bool = False
    copies_min: int = 0
    copies_max: int | None = None
    labels_required: frozenset[str] = frozenset()
    """A pod must have all of these."""
    labels_preferred: frozenset[str] = frozenset()
    load_s: float = 1.0
    """Seconds of a load from the remote tier."""
    disk_load_s: float = 0.2
    """Seconds of a load from a pod's own disk; counts as `load_s` where that is less."""
    on_disk: frozenset[str] = frozenset()
    """Pods whose disk has the artifact of this generation."""
