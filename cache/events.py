"""What the pod tells its cache: one small frozen value for each thing that can happen.

Two sides speak: those who want models (`Want`, `Cancel`, and the management calls below them), and the loader,
which answers each command exactly once:

    StartFetch -> Fetched | FetchFailed           StartLoad -> Loaded | LoadFailed | LoadOutOfMemory
                                                  (LoadOverdue may come before either)
    StartPark -> Parked | ParkFailed              StartReturn -> Loaded | LoadFailed (LoadOverdue before either)
    StartUnload -> Unloaded | UnloadFailed        CancelLoad -> no answer of its own: the running StartFetch or
                                                  StartLoad answers, perhaps with a failure, perhaps not

Answers name the copy and not the model: a cancelled load may answer when the next load of that model already waits.
Deliberately absent: times. `CacheMachine.handle(event, now_s)` takes them beside the event.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from cache.types import Bytes, Failure, ModelKey, Shared, WantedModel


@dataclass(frozen=True, slots=True)
class Want:
    """Someone waits for a servable copy. Answered by exactly one Serve or Refuse with this `waiter_id`.

    `deadline_s` is absolute, in the caller's clock. `background`: nobody's request waits (a prefetch, an
    ensureLoaded); it comes after all requests, and evicts only if the limits allow. `expected_at_s`: a prefetch for a
    use that is expected then; it may evict what is worth less than such a copy. `space_wait_s`: how long it lets its
    model wait for room, if that is less than the limit: it has waited on other pods before.
    """

    waiter_id: int
    model: WantedModel
    deadline_s: float | None = None
    background: bool = False
    expected_at_s: float | None = None
    space_wait_s: float = inf


@dataclass(frozen=True, slots=True)
class Cancel:
    """This waiter gives up. Answered by Refuse(CANCELLED), or ignored when it was answered before."""

    waiter_id: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """The artifact is on disk and prepared; `size` is the adapter's estimate of the loaded copy, `shared` the parts of
    it that other copies on this pod may hold already.

    `estimate_knows`: it follows from the artifact, so that a declared size is checked against it. Not so where
    somebody's code decides at its load what it takes.
    """

    copy_id: int
    size: Bytes
    estimate_knows: bool = True
    shared: Shared = ()
    otherwise: Bytes | None = None
    """What it takes where it may run when its device is full, on the CPU; None: it waits for its device."""
    peers: tuple[Bytes, ...] = ()
    """What it takes on each of the other devices that it may be loaded on as well (`size`: on the first)."""


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """The fetch (or the preparation, or the estimate) failed, or was cancelled."""

    copy_id: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Loaded:
    """The copy is loaded and warm; `size` is what it was measured to take, `shared` the parts of it that other copies
    may hold, too. `remark` is for `explain`. `parks`: what it would take parked in RAM; None: it cannot be parked.
    """

    copy_id: int
    size: Bytes
    remark: str = ""
    shared: Shared = ()
    parks: Bytes | None = None


@dataclass(frozen=True, slots=True)
class Parked:
    """The copy lies in RAM and has left its device; `size` is what it was measured to take there."""

    copy_id: int
    size: Bytes


@dataclass(frozen=True, slots=True)
class ParkFailed:
    """The copy could not be parked; it is unloaded instead."""

    copy_id: int
    message: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The load failed, or was cancelled, and nothing of it remains in memory."""

    copy_id: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class LoadOutOfMemory:
    """The framework found no memory for the load, and nothing of it remains; `needed` is what to reserve instead.

    Tried once more with those bytes; a second time the pod is FULL, for the reason that the message says.
    """

    copy_id: int
    needed: Bytes
    message: str


@dataclass(frozen=True, slots=True)
class LoadOverdue:
    """The load takes longer than it may, and cannot be stopped: it will still answer, perhaps never.

    Its waiters are refused with this failure, its bytes stay charged, its turn goes to another load.
    """

    copy_id: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The runtime confirms that the copy's bytes are free."""

    copy_id: int


@dataclass(frozen=True, slots=True)
class UnloadFailed:
    """The runtime could not free the copy; the unload will be asked for again."""

    copy_id: int
    message: str


@dataclass(frozen=True, slots=True)
class Resized:
    """A loaded copy was measured again (arenas grow with the largest batch seen); as in Loaded."""

    copy_id: int
    size: Bytes
    shared: Shared = ()


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process of a loaded copy died: admit nobody, unload it when the last holder lets go."""

    copy_id: int
    message: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Unregistered, or superseded by a newer generation: its waiters get GONE, its copy leaves."""

    key: ModelKey


@dataclass(frozen=True, slots=True)
class Forgive:
    """Forget this key's failures and its retirement: it was registered again, or an operator says: try."""

    key: ModelKey


@dataclass(frozen=True, slots=True)
class SetPinned:
    """The spec's `pinned` changed."""

    key: ModelKey
    pinned: bool


@dataclass(frozen=True, slots=True)
class SetPriority:
    """The spec's `priority` changed."""

    key: ModelKey
    priority: int


@dataclass(frozen=True, slots=True)
class EvictRequest:
    """An operator wants this model's copy out, pinned or not. Loads in progress are left alone."""

    key: ModelKey


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; sent at the moment that WakeAt named."""


@dataclass(frozen=True, slots=True)
class CapacityChanged:
    """What this pod may hold from now on: at most its limits. Idle copies leave until it is true; those in use, and
    pinned ones, stay, and their bytes are not given to others.

    `why` is shown to whoever is refused for it. `loads_paused`: nothing new is loaded until the next such event.
    """

    capacity: Bytes
    why: str = ""
    loads_paused: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """The pod is stopping: new Wants are refused, what waits and runs is finished."""


Event = (
    Want
    | Cancel
    | Fetched
    | FetchFailed
    | Loaded
    | Parked
    | ParkFailed
    | LoadFailed
    | LoadOutOfMemory
    | LoadOverdue
    | Unloaded
    | UnloadFailed
    | Resized
    | Crashed
    | Retire
    | Forgive
    | SetPinned
    | SetPriority
    | EvictRequest
    | Tick
    | CapacityChanged
    | Drain
)
