"""One copy on this pod, and one waiter for it.

`Copy` is the only mutable thing that leaves this package: the request path holds it, pins it and gives it back. All
else about it is changed by the machine alone. `pin` and `CacheMachine.unpin` run on every request, so a copy carries
its own last-use stamp and is not moved in any list; order is worked out when something must go, which is rare.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf

from cache.eviction import CannotFit
from cache.history import History
from cache.transitions import StoryLine
from cache.types import NO_BYTES, Bytes, CopyState, ModelKey, Shared, WantedModel
from cache.views import CopyView

STORY_LINES_MAX = 16
"""Moves that a copy remembers; a whole life has about eight."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """One Want that has no answer yet."""

    waiter_id: int
    copy_id: int
    deadline_s: float
    wanted_s: float
    background: bool


class Copy:
    """A copy, resident or on its way. Read freely; change only through `pin` and the machine."""

    __slots__ = (
        "blocked",
        "blocked_since_s",
        "cached_view",
        "charged",
        "closing_reason",
        "copy_id",
        "device_index",
        "elsewhere",
        "expected_at_s",
        "fetch_time_s",
        "foreground_waiters",
        "history",
        "history_due_s",
        "kept",
        "key",
        "last_used_s",
        "load_time_s",
        "model",
        "needed",
        "needed_shared",
        "on_devices",
        "otherwise",
        "parked",
        "parks",
        "pinned",
        "pins",
        "prefetched",
        "protected_until_s",
        "ran_out",
        "return_time_s",
        "returns",
        "shared",
        "since_s",
        "size",
        "space_wait_s",
        "state",
        "story",
        "unload_failures",
        "urgent_s",
        "waiters",
        "wanted_s",
    )

    def __init__(self, copy_id: int, model: WantedModel, history: History, now_s: float) -> None:
        self.copy_id = copy_id
        self.key: ModelKey = model.key
        self.model = model
        self.state = CopyState.QUEUED
        self.since_s = now_s
        self.story: deque[StoryLine] = deque(maxlen=STORY_LINES_MAX)
        self.pins = 0
        self.last_used_s = now_s
        self.history = history
        """Of its model; outlives the copy."""
        self.history_due_s = -inf
        """A use from then on is recorded; one before it belongs to the one before."""
        self.return_time_s = 0.0
        self.prefetched = False
        """It was brought in before anybody asked, and nobody has asked so far."""
        self.expected_at_s: float | None = None
        """What it is brought in for, if nobody waits for it."""
        # bytes: what it will reserve, what it is known to take, what the ledger holds for it
        self.needed: Bytes = NO_BYTES
        self.size: Bytes = NO_BYTES
        self.charged: Bytes = NO_BYTES
        self.on_devices: tuple[Bytes, ...] = ()
        self.otherwise: Bytes | None = None
        """What it takes on each of its devices, and elsewhere if it may run there; `needed` is one of them."""
        self.device_index = 0
        """Which of them."""
        self.elsewhere = False
        """It runs elsewhere, as its devices were full."""
        self.needed_shared: Shared = ()
        """The parts among `needed` that other copies may hold already."""
        self.shared: Shared = ()
        """The parts among `charged` that the ledger counts once for all their holders."""
        self.ran_out = False
        """A load of it found no memory and was tried again."""
        # demand: who waits, and whether the load goes on when nobody does
        self.waiters: dict[int, Waiter] = {}
        self.foreground_waiters = 0
        self.kept = False
        self.wanted_s = now_s
        self.urgent_s = float("inf")
        # standing in the line for space
        self.blocked: CannotFit | None = None
        self.blocked_since_s: float | None = None
        self.space_wait_s = 0.0
        """The longest that anybody lets it wait there."""
        # once loaded
        self.fetch_time_s = 0.0
        self.load_time_s = 0.0
        self.parks: Bytes | None = None
        """What it would take parked; None: it cannot be parked."""
        self.parked: Bytes = NO_BYTES
        """What the ledger holds for it in the host tier: parked, on its way there, or on its way back."""
        self.returns: Bytes = NO_BYTES
        """While it is parked: what it will need on its device."""
        self.pinned = False
        self.protected_until_s = 0.0
        self.closing_reason = ""
        self.unload_failures = 0
        self.cached_view: CopyView | None = None

    def pin(self, now_s: float) -> None:
        """A request uses this copy from now until `CacheMachine.unpin`. Only for copies from `servable`."""
        self.pins += 1
        self.last_used_s = now_s
        self.cached_view = None
        if now_s >= self.history_due_s:
            self.joined(now_s)

    def hold(self, now_s: float) -> None:
        """Like `pin`, for what is no use of its own: the run of a request that has its pin, or that waited."""
        self.pins += 1
        self.last_used_s = now_s
        self.cached_view = None

    def joined(self, now_s: float) -> None:
        """A request wants the copy, be it still on its way in: a use."""
        self.history_due_s = self.history.record(now_s)
        if self.prefetched:
            self.prefetched = False
            self.history.used_after_prefetch()

    @property
    def foreground(self) -> bool:
        """Does a request wait for it, or will one soon be tried again?"""
        return self.foreground_waiters > 0 or self.kept

    @property
    def debt(self) -> Bytes:
        """Bytes it takes beyond those that the ledger holds for it."""
        return self.size.missing_from(self.charged)

    def changed(self) -> None:
        """Something that the view shows is different now."""
        self.cached_view = None

    def view(self) -> CopyView:
        """A picture, kept until the next change: idle copies are asked for theirs at each eviction."""
        view = self.cached_view
        uses = self.history.pictured or self.history.picture()
        if view is None or view.uses is not uses:  # another copy of the model may have been used
            view = self.cached_view = CopyView(
                copy_id=self.copy_id,
                key=self.key,
                state=self.state,
                size=self.size,
                charged=self.charged,
                shared=self.shared,
                since_s=self.since_s,
                last_used_s=self.last_used_s,
                pins=self.pins,
                waiters=len(self.waiters),
                priority=self.model.priority,
                pinned=self.pinned,
                protected_until_s=self.protected_until_s,
                load_time_s=self.load_time_s,
                return_time_s=self.return_time_s,
                uses=uses,
                comes_back=self.model.comes_back,
            )
        return view
