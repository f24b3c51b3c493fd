"""The life of a copy as one table: (state, cause) -> next state.

A move that is not in the table is a defect of the caller or of the machine, never of a model; it raises
InvalidTransition, which prints the story of the copy so that the defect can be found from the log alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from cache.types import CopyState, ModelKey


class Cause(Enum):
    """Why a copy changes its state."""

    FETCH_SLOT = "a fetch slot is free"
    FETCHED = "fetched"
    FETCH_FAILED = "the fetch failed"
    RESERVED = "its bytes are reserved"
    LOADED = "loaded"
    LOADED_LARGER = "loaded, larger than reserved"
    LOAD_FAILED = "the load failed"
    OUT_OF_MEMORY = "the load found no memory"
    SETTLED = "its bytes are paid for"
    DROPPED = "dropped before any effect"
    CANCELLED = "cancelled while running"
    TIMED_OUT = "the load takes too long"
    CLOSED = "closed to newcomers"
    PARK = "makes room on its device"
    PARKED = "parked"
    PARK_FAILED = "it could not be parked"
    WANTED = "wanted again"
    PUT_BACK = "stays parked"
    UNLOAD = "unload"
    UNLOADED = "unloaded"
    UNLOAD_FAILED = "the unload failed"
    UNLOAD_AGAIN = "unload again"


_S = CopyState
TRANSITIONS: dict[tuple[CopyState, Cause], CopyState] = {
    # on the way in
    (_S.QUEUED, Cause.FETCH_SLOT): _S.FETCHING,
    (_S.QUEUED, Cause.DROPPED): _S.GONE,
    (_S.FETCHING, Cause.FETCHED): _S.WAITING_FOR_SPACE,
    (_S.FETCHING, Cause.FETCH_FAILED): _S.GONE,
    (_S.FETCHING, Cause.CANCELLED): _S.CANCELLING_FETCH,
    (_S.WAITING_FOR_SPACE, Cause.RESERVED): _S.LOADING,
    (_S.WAITING_FOR_SPACE, Cause.DROPPED): _S.GONE,
    (_S.LOADING, Cause.LOADED): _S.SERVABLE,
    (_S.LOADING, Cause.LOADED_LARGER): _S.SETTLING,
    (_S.LOADING, Cause.LOAD_FAILED): _S.GONE,
    (_S.LOADING, Cause.OUT_OF_MEMORY): _S.WAITING_FOR_SPACE,
    (_S.LOADING, Cause.CANCELLED): _S.CANCELLING_LOAD,
    (_S.LOADING, Cause.TIMED_OUT): _S.OVERDUE,
    (_S.SETTLING, Cause.SETTLED): _S.SERVABLE,
    # on the way out
    (_S.SETTLING, Cause.UNLOAD): _S.UNLOADING,
    (_S.SERVABLE, Cause.UNLOAD): _S.UNLOADING,
    (_S.SERVABLE, Cause.CLOSED): _S.RETIRING,
    (_S.RETIRING, Cause.UNLOAD): _S.UNLOADING,
    (_S.UNLOADING, Cause.UNLOADED): _S.GONE,
    # down to the host tier, and up again
    (_S.SERVABLE, Cause.PARK): _S.PARKING,
    (_S.PARKING, Cause.PARKED): _S.PARKED,
    (_S.PARKING, Cause.PARK_FAILED): _S.UNLOADING,
    (_S.PARKED, Cause.WANTED): _S.WAITING_FOR_SPACE,
    (_S.WAITING_FOR_SPACE, Cause.PUT_BACK): _S.PARKED,
    (_S.PARKED, Cause.UNLOAD): _S.UNLOADING,
    (_S.UNLOADING, Cause.UNLOAD_FAILED): _S.STUCK,
    (_S.STUCK, Cause.UNLOAD_AGAIN): _S.UNLOADING,
    # answers to what was cancelled
    (_S.CANCELLING_FETCH, Cause.FETCHED): _S.GONE,
    (_S.CANCELLING_FETCH, Cause.FETCH_FAILED): _S.GONE,
    (_S.CANCELLING_LOAD, Cause.LOADED): _S.UNLOADING,
    (_S.CANCELLING_LOAD, Cause.LOAD_FAILED): _S.GONE,
    (_S.CANCELLING_LOAD, Cause.TIMED_OUT): _S.OVERDUE,
    (_S.OVERDUE, Cause.LOADED): _S.UNLOADING,
    (_S.OVERDUE, Cause.LOAD_FAILED): _S.GONE,
}

PENDING = frozenset({_S.QUEUED, _S.FETCHING, _S.WAITING_FOR_SPACE, _S.LOADING, _S.SETTLING})
"""States in which waiters wait."""

ENDING = (_S.CANCELLING_FETCH, _S.CANCELLING_LOAD, _S.OVERDUE)
"""States in which a fetch or load runs that nobody waits for any more."""

LEAVING = (_S.CANCELLING_LOAD, _S.OVERDUE, _S.RETIRING, _S.PARKING, _S.UNLOADING, _S.STUCK)
"""States in which bytes are held that will come free, and that nobody will be served from again."""

KEPT = (_S.SERVABLE, _S.PARKED)
"""States in which a copy is of use where it is: what a tenant's guarantee is about."""

CHARGED = frozenset(
    {
        _S.LOADING,
        _S.CANCELLING_LOAD,
        _S.OVERDUE,
        _S.SETTLING,
        _S.SERVABLE,
        _S.RETIRING,
        _S.PARKING,
        _S.PARKED,
        _S.UNLOADING,
        _S.STUCK,
    }
)
"""States in which the ledger holds bytes for the copy; for one that waits parked, it does as well."""


@dataclass(frozen=True, slots=True)
class StoryLine:
    """One move in the life of a copy."""

    at_s: float
    cause: Cause
    state: CopyState

    def __str__(self) -> str:
        return f"{self.at_s:.3f} s: {self.cause.value} -> {self.state.value}"


class InvalidTransition(Exception):
    """An event that the copy's state does not allow. Always a defect; the message holds the copy's story."""

    def __init__(self, copy_id: int, key: ModelKey | None, what: str, story: Iterable[StoryLine]) -> None:
        self.copy_id = copy_id
        self.key = key
        lines = "".join(f"\n  {line}" for line in story) or "\n  (nothing is remembered of it)"
        super().__init__(f"Copy {copy_id} of {key or 'an unknown model'}: {what}. Its story:{lines}")


def next_state(state: CopyState, cause: Cause) -> CopyState | None:
    """The state after this cause, or None where the table has no such move."""
    return TRANSITIONS.get((state, cause))
