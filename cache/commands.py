"""What the cache tells the pod to do: one small frozen value for each effect.

The loader carries out StartFetch, StartLoad, StartUnload and CancelLoad and answers with events (`cache.events`
says which). The waiter's side gets Serve or Refuse, exactly once for each Want. WakeAt asks for a Tick.

Commands of one call are carried out in their order. Deliberately absent: how. Nothing here names a file or a framework.
"""

from __future__ import annotations

from dataclasses import dataclass

from cache.types import Bytes, ModelKey, Refusal, WantedModel


@dataclass(frozen=True, slots=True)
class StartFetch:
    """Bring the artifact to disk, prepare it, estimate its size; answer Fetched or FetchFailed."""

    key: ModelKey
    copy_id: int


@dataclass(frozen=True, slots=True)
class StartLoad:
    """Load, warm up, measure; answer Loaded or LoadFailed. `reserved` bytes are set aside for it."""

    key: ModelKey
    copy_id: int
    reserved: Bytes


@dataclass(frozen=True, slots=True)
class StartUnload:
    """Free the copy; nobody holds it. Answer Unloaded or UnloadFailed. `reason` is a sentence."""

    key: ModelKey
    copy_id: int
    reason: str


EVICTED_FOR = "evicted for "
"""How the reason of an unload begins when it makes room."""


@dataclass(frozen=True, slots=True)
class StartPark:
    """Move the copy from its device into RAM; nobody holds it. Answer Parked or ParkFailed. `reason` is a sentence."""

    key: ModelKey
    copy_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class StartReturn:
    """Bring a parked copy back onto its device; answer Loaded or LoadFailed (then nothing of it remains anywhere).

    `reserved` is set aside for it beside what it holds in RAM.
    """

    key: ModelKey
    copy_id: int
    reserved: Bytes


@dataclass(frozen=True, slots=True)
class CancelLoad:
    """The running fetch or load is no longer wanted. Best effort: it still answers, one way or the other."""

    copy_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Serve:
    """The copy serves this waiter. It is pinned for it from this moment; the waiter unpins it:

    `cache.unpin(cache.copy(copy_id), now_s)`.
    """

    waiter_id: int
    copy_id: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """This waiter gets no copy, and why."""

    waiter_id: int
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Prefetch:
    """This model is expected to be wanted then, and is not here. Whoever knows that it is still wanted on this pod
    answers with a background Want that carries `expected_at_s`; anybody may do nothing instead."""

    model: WantedModel
    expected_at_s: float


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a Tick at this time. An earlier WakeAt that has not fired yet is replaced by this one."""

    at_s: float


Command = (
    StartFetch | StartLoad | StartUnload | StartPark | StartReturn | CancelLoad | Serve | Refuse | Prefetch | WakeAt
)
