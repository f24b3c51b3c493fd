"""Follows what all pods publish, and keeps the picture of it: list, then watch, then list again where that breaks.

One watch over all prefixes, so that each revision is seen whole. Pages of a list are read while the world moves: the
watch that follows begins at the revision of the first page, and what a later page already showed in a newer state is
not turned back (`_ahead`).

When the store was replaced (`StoreReplaced`), pods that have not published again yet are kept, since they fade as if
their leases had run out; suspicions are kept until somebody writes them back (`Membership.restore_suspicions`).

Sizes of copies that are gone are remembered, so that whoever looks for a place for a model knows how large it was.

Deliberately absent: JSON (`placement.pool_reading`), what events make of the picture (`placement.pool_view`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Protocol

from placement import keys
from placement.errors import Compacted, StoreClosed, StoreError, StoreReplaced
from placement.policy.snapshot import Intent, ModelName, PoolView
from placement.pool_reading import HotEvent, IntentEvent, LeaderEvent, PoolReader, SideEvent
from placement.pool_records import HotModel, LeaderRecord
from placement.pool_view import (
    PodEvent,
    PoolChanges,
    PoolEvent,
    SuspicionEvent,
    advance,
    faded,
    let_go,
    list_pods,
    vanished,
)
from placement.store.base import KeyValue, KeyValueStore, WatchBatch
from placement.store_reach import StoreReach

log = logging.getLogger(__name__)

LIST_PAGE = 1000
"""Keys in one page: few round trips."""
READ_AT_ONCE = 200
"""Keys that are read before others have their turn on the loop: some milliseconds."""
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 1.0
"""Between tries to follow a store that is away."""
KNOWN_SIZES_MAX = 200_000
"""Of models without a copy; some 50 bytes each beside the name."""

_WATCHED = (keys.PODS, keys.COPIES, keys.PARKED, keys.FAILURES, keys.INTENTS, keys.SUSPICIONS, keys.LEADER, keys.HOT)
"""Pods first: see lists in placement.pool_view."""
_KEY_OF = {"copies": keys.copy_key, "parked": keys.parked_key, "failures": keys.failure_key}


class OwnKeys(Protocol):
    """This pod's own keys: whoever writes them is shown what the store has of them (`placement.publishing`)."""

    def observe(self, key: str, value: bytes | None, revision: int) -> None:
        """A key, anybody's, was put or deleted (None) at a revision."""

    def listed(self, keys_there: Collection[str], revision: int) -> None:
        """At a revision the store had these keys and no others."""

    def store_replaced(self) -> None:
        """The store has lost all that it had."""


class PoolFollower:
    """Belongs to the event loop that starts it; `view` may be read by any thread."""

    def __init__(
        self,
        store: KeyValueStore,
        reader: PoolReader,
        *,
        reach: StoreReach,
        clock: Callable[[], float],
        fading_s: float,
        own_keys: OwnKeys,
    ) -> None:
        """`clock`: monotonic."""
        self._store = store
        self._reader = reader
        self._reach = reach
        self._clock = clock
        self._fading_s = fading_s
        self._own_keys = own_keys
        self.view = PoolView()
        self.intents: dict[str, tuple[ModelName, Intent]] = {}
        """By key; few: loads that are under way, and those that pods died in."""
        self.suspicion_revisions: dict[ModelName, int] = {}
        """Of those that are in the store."""
        self.leader: LeaderRecord | None = None
        self.hot: tuple[HotModel, ...] = ()
        self._sizes: dict[ModelName, int] = {}
        """Longest gone first."""
        self._ahead: dict[str, int] = {}
        """Key -> revision that a list showed, beyond the revision from which the watch goes on."""
        self._ahead_until = 0
        self._listeners: dict[int, Callable[[PoolChanges], None]] = {}
        self._listener_ids = itertools.count()
        self._untold: deque[PoolChanges] = deque()
        self._telling = False
        self._fade_timer: asyncio.TimerHandle | None = None

    def on_change(self, listener: Callable[[PoolChanges], None]) -> Callable[[], None]:
        """Call `listener` on the loop after each change of the view; returns its end."""
        listener_id = next(self._listener_ids)
        self._listeners[listener_id] = listener

        def stop() -> None:
            self._listeners.pop(listener_id, None)

        return stop

    def known_size_bytes(self, name: ModelName) -> int | None:
        """Of its largest copy, or of the last one that was; None: never seen."""
        sizes = (copy.size_bytes for copy in self.view.copies.get(name, ()))
        return max(sizes, default=0) or self._sizes.get(name)

    def forget(self, pod: str) -> None:
        """The pod does not answer: if it is fading, it is not awaited any longer."""
        self._move(*let_go(self.view, (pod,)))

    def close(self) -> None:
        """Leave no timer behind."""
        if self._fade_timer is not None:
            self._fade_timer.cancel()
            self._fade_timer = None

    # Following ------------------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Apply what the watch brings, for as long as the store is open. A list comes before."""
        retry_s = RETRY_FIRST_S
        listed = True
        while True:
            try:
                if not listed:
                    await self.read_all()
                    listed = True
                async with contextlib.aclosing(self._store.watch(_WATCHED, self.view.revision + 1)) as batches:
                    async for batch in batches:
                        self._apply(batch)
                        self._reach.answered()
                        retry_s = RETRY_FIRST_S
            except StoreReplaced as error:
                log.error("what the pods published is gone from the store: %s", error)
                self.suspicion_revisions.clear()
                self._own_keys.store_replaced()
                listed = False
                continue
            except Compacted:
                log.info("the pool's view fell behind the store's history; listing everything again")
                listed = False
                continue
            except StoreClosed:
                return
            except StoreError as error:
                self._reach.failed(error, self._clock())
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def read_all(self) -> None:
        """Read everything, page by page, and drop what is not there any more. Raises StoreError."""
        first: int | None = None
        listed: set[str] = set()
        ahead: dict[str, int] = {}
        last = 0
        for prefix in _WATCHED:
            pods: list[PodEvent] = []
            from_key: str | None = ""
            while from_key is not None:
                page = await self._store.range(prefix, limit=LIST_PAGE, from_key=from_key)
                if first is None:
                    first = page.revision
                    self.view = replace(self.view, revision=first - 1)
                last = page.revision
                ahead.update((kv.key, kv.mod_revision) for kv in page.items if kv.mod_revision > first)
                listed.update(kv.key for kv in page.items)
                for start in range(0, len(page.items), READ_AT_ONCE):
                    pods += self._take(page.items[start : start + READ_AT_ONCE], first)
                    await asyncio.sleep(0)
                from_key = page.next_key
            if prefix == keys.PODS:
                self._move(*list_pods(self.view, pods, now_s=self._clock()))
        assert first is not None
        self._ahead, self._ahead_until = ahead, last
        await self._end_list(listed, first)

    def _take(self, items: Iterable[KeyValue], revision: int) -> list[PodEvent]:
        """Apply a page, but for its pods. The view stays before `revision` until the list has ended."""
        events: list[PoolEvent] = []
        side_events: list[SideEvent] = []
        for kv in items:
            self._own_keys.observe(kv.key, kv.value, kv.mod_revision)
            self._sort_out(self._reader.read(kv, revision, deleted=False), kv.mod_revision, events, side_events)
        self._publish([event for event in events if not isinstance(event, PodEvent)], side_events, revision - 1)
        return [event for event in events if isinstance(event, PodEvent)]

    async def _end_list(self, listed: set[str], revision: int) -> None:
        def is_listed(kind: str, name: ModelName, pod: str) -> bool:
            return _KEY_OF[kind](name.tenant, name.id, pod) in listed

        events: list[PoolEvent] = []
        known = list(dict.fromkeys((*self.view.copies, *self.view.parked, *self.view.failures)))
        for start in range(0, len(known), READ_AT_ONCE):
            events += vanished(self.view, known[start : start + READ_AT_ONCE], is_listed, revision)
            await asyncio.sleep(0)
        for name in [n for n in self.suspicion_revisions if keys.suspicion_key(*n) not in listed]:
            del self.suspicion_revisions[name]
            events.append(SuspicionEvent(revision, name, None))
        side_events: list[SideEvent] = [
            IntentEvent(key, name, None) for key, (name, _) in self.intents.items() if key not in listed
        ]
        if self.leader is not None and keys.LEADER not in listed:
            side_events.append(LeaderEvent(None))
        self._publish(events, side_events, revision)
        self._own_keys.listed(listed, revision)

    def _apply(self, batch: WatchBatch) -> None:
        """One turn of following: the view and the listeners move on by one batch."""
        events: list[PoolEvent] = []
        side_events: list[SideEvent] = []
        for event in batch.events:
            kv = event.kv
            if self._ahead and kv.mod_revision <= self._ahead.get(kv.key, 0):
                continue
            deleted = event.kind == "delete"
            self._own_keys.observe(kv.key, None if deleted else kv.value, kv.mod_revision)
            read = self._reader.read(kv, kv.mod_revision, deleted=deleted)
            self._sort_out(read, 0 if deleted else kv.mod_revision, events, side_events)
        if batch.revision >= self._ahead_until:
            self._ahead.clear()
        self._publish(events, side_events, batch.revision)

    def _sort_out(
        self,
        event: PoolEvent | SideEvent | None,
        mod_revision: int,
        events: list[PoolEvent],
        side_events: list[SideEvent],
    ) -> None:
        if isinstance(event, IntentEvent | LeaderEvent | HotEvent):
            side_events.append(event)
        elif event is not None:
            events.append(event)
            if isinstance(event, SuspicionEvent):
                self.suspicion_revisions[event.name] = mod_revision
                if not mod_revision:
                    del self.suspicion_revisions[event.name]

    # Moving on ------------------------------------------------------------------------------------------------------

    def _publish(self, events: Iterable[PoolEvent], side_events: Iterable[SideEvent], revision: int) -> None:
        view, changes = advance(self.view, events, revision, now_s=self._clock())
        for event in side_events:
            if isinstance(event, IntentEvent):
                if event.intent is None:
                    self.intents.pop(event.key, None)
                else:
                    self.intents[event.key] = (event.name, event.intent)
                changes = replace(changes, intents=True)
            elif isinstance(event, LeaderEvent):
                self.leader = event.leader
                changes = replace(changes, leader=True)
            else:
                self.hot = event.models
                changes = replace(changes, hot=True)
        self._move(view, changes)

    def _move(self, view: PoolView, changes: PoolChanges) -> None:
        before, self.view = self.view, view
        self._remember_sizes(before, changes)
        if changes.began_fading:
            log.warning("no word in the store from %s: kept for a while", ", ".join(sorted(changes.began_fading)))
            self._await_fading()
        if changes:
            self._untold.append(changes)
            self._tell()

    def _tell(self) -> None:
        """Listeners hear of changes in their order, also of those that a listener brings about (`forget`)."""
        if self._telling:
            return
        self._telling = True
        while self._untold:
            changes = self._untold.popleft()
            for listener in tuple(self._listeners.values()):
                try:
                    listener(changes)
                except Exception:
                    log.exception("a listener of the pool's view failed on revision %d", changes.revision)
        self._telling = False

    def _remember_sizes(self, before: PoolView, changes: PoolChanges) -> None:
        for name in changes.copies:
            if name in self.view.copies:
                self._sizes.pop(name, None)
            elif size_bytes := max((copy.size_bytes for copy in before.copies.get(name, ())), default=0):
                self._sizes[name] = size_bytes
                if len(self._sizes) > KNOWN_SIZES_MAX:
                    del self._sizes[next(iter(self._sizes))]

    def _await_fading(self) -> None:
        if self._fade_timer is None and self.view.fading:
            delay_s = min(self.view.fading.values()) + self._fading_s - self._clock()
            self._fade_timer = asyncio.get_running_loop().call_later(max(0.0, delay_s), self._end_fading)

    def _end_fading(self) -> None:
        self._fade_timer = None
        gone = faded(self.view, self._clock(), self._fading_s)
        if gone:
            log.warning("nothing more was heard from %s: gone", ", ".join(sorted(gone)))
        self._move(*let_go(self.view, gone))
        self._await_fading()
