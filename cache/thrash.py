"""When the working set exceeds the memory: to notice it, and to serve by turns in place of loading without end.

The problem: 40 models share memory for 30, all of them in use. Each request for one of the other ten evicts a model
that is wanted again a moment later. Every core loads, nothing is served, and no eviction policy helps: whichever model
leaves is missed. The throughput falls off a cliff, although a load could have served hundreds of requests.

To notice it: a load is a *reload* when its model was wanted again sooner after its eviction than it had been here. Had
it stayed once more as long, there would have been no load. The pod thrashes when reloads take more than a share of
the time of its load slots. A scan (every model once) is no thrashing, nor is a busy start, nor are rare models that
come and go.

What is done: loads that must evict something get a *turn* each. After a turn the next one waits until the first has
taken no more than its share of the time, so that what is resident serves meanwhile, and the requests for what is not
here gather. A turn goes to the model with most requests gathered per second of loading; they are served together.
Nobody waits longer than before by more than this:

* A model is due, turn or not, when the first of its requests has waited as long as patience lasts, or would otherwise
  miss its deadline. So the rotation is bounded.
* When nothing is loaded and nothing resident used for a while, all wait for what is not here: the next turn begins.
* What fits into free memory is loaded at once.

It ends when for some seconds nobody had to wait for a turn: then there is enough room, or enough time.

Deliberately absent: whom to evict (the policy's), and background loads: they do not evict while the pod thrashes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp
from typing import NamedTuple

from cachetools import LRUCache

from cache.types import ModelKey

WINDOW_S = 3.0
"""Over which the share of reloads is averaged (exponentially): a burst of loads is over by then."""

BEGINS_AT = 1.5
"""Thrashing begins when reloads take this many times the share that turns may take. Below it turns change nothing."""

CALM_S = 5.0
"""It ends when nobody had to wait for a turn for so long."""

IDLE_S = 0.005
"""Nothing resident in use and nothing loaded for so long: all wait for what is not here. Longer than a hiccup."""

GHOSTS_MAX = 20_000
"""Evicted models that are remembered; one that is forgotten counts as new."""

LOAD_WEIGHT = 0.1
"""Of the newest load in the mean."""


class Ghost(NamedTuple):
    """What is remembered of an evicted copy."""

    until_s: float
    """Wanted again before this, it should have stayed."""
    load_s: float
    """What its load took, without the fetch."""


@dataclass(frozen=True, slots=True)
class Gathering:
    """One model that waits for its turn."""

    copy_id: int
    priority: int
    requests: int
    due_s: float
    """When it goes, turn or not."""
    load_s: float
    wanted_s: float


@dataclass(frozen=True, slots=True)
class Thrashing:
    """The working set exceeds the capacity; for status."""

    since_s: float
    reload_share: float
    """Of the time of the load slots, lately."""
    turns: int
    """Since it began."""

    def __str__(self) -> str:
        return (
            f"the working set exceeds the capacity: bringing back what was evicted a moment before takes "
            f"{self.reload_share:.0%} of the time for loads"
            + (f"; {self.turns} models were given turns" if self.turns else "")
        )


def choose_turns(gathering: Iterable[Gathering], now_s: float, *, turn: bool) -> list[int]:
    """The copies that may evict now: all that are due, and with a `turn` the best of the others."""
    due = [each for each in gathering if each.due_s <= now_s]
    waiting = [each for each in gathering if each.due_s > now_s]
    chosen = sorted(due, key=lambda each: (-each.priority, each.due_s, each.wanted_s, each.copy_id))
    if turn and not chosen and waiting:
        # 1. the higher priority; 2. the most requests per second of loading; 3. who is due first; 4. who was wanted
        # first; 5. the id of the copy.
        chosen = [
            min(
                waiting,
                key=lambda each: (
                    -each.priority,
                    -each.requests / max(each.load_s, 1e-6),
                    each.due_s,
                    each.wanted_s,
                    each.copy_id,
                ),
            )
        ]
    return [each.copy_id for each in chosen]


class ThrashWatch:
    """What evictions and loads have shown, and whose turn it is. Owned by the machine."""

    def __init__(self, *, slots: int, share: float) -> None:
        """`share`: of the time of all load slots, what reloads may take."""
        self._slots = slots
        self._share = share
        self._ghosts: LRUCache[ModelKey, Ghost] = LRUCache(maxsize=GHOSTS_MAX)
        self._reload_s = 0.0
        self._reload_at_s = 0.0
        self._since_s: float | None = None
        self._held_back_s = 0.0
        self.load_mean_s = 0.0
        self.next_turn_s = 0.0
        self.turns = 0
        self.episodes = 0
        self.in_turn: dict[int, None] = {}
        """Copies that had their turn given and wait for their bytes."""

    @property
    def active(self) -> bool:
        """Does the pod thrash?"""
        return self._since_s is not None

    def evicted(self, key: ModelKey, stay_s: float, load_s: float, now_s: float) -> None:
        """A copy that was here for `stay_s` makes room for another."""
        self._ghosts[key] = Ghost(now_s + stay_s, load_s)

    def load_s(self, key: ModelKey) -> float:
        """What loading this model is expected to take, fetched as it is."""
        ghost = self._ghosts.get(key)
        return self.load_mean_s if ghost is None else ghost.load_s

    def loaded(self, key: ModelKey, wanted_s: float, load_s: float, now_s: float) -> None:
        """A model that was wanted at `wanted_s` is here; the load itself took `load_s`."""
        self.load_mean_s += (LOAD_WEIGHT if self.load_mean_s else 1.0) * (load_s - self.load_mean_s)
        ghost = self._ghosts.pop(key, None)
        if ghost is not None and wanted_s <= ghost.until_s:
            self._reload_s = self._faded(now_s) + load_s
            self._reload_at_s = now_s

    def forget(self, key: ModelKey) -> None:
        """The model was retired."""
        self._ghosts.pop(key, None)

    def reload_share(self, now_s: float) -> float:
        """Of the time of all load slots, what reloads take at present."""
        return self._faded(now_s) / (WINDOW_S * self._slots)

    def _faded(self, now_s: float) -> float:
        return self._reload_s * exp(-max(0.0, now_s - self._reload_at_s) / WINDOW_S)

    def judge(self, now_s: float) -> None:
        """Does it begin, or end?"""
        if self.reload_share(now_s) >= BEGINS_AT * self._share:
            self._held_back_s = now_s  # by no turn, but by the loads of others
            if self._since_s is None:
                self._since_s = self.next_turn_s = now_s
                self.turns = 0
                self.episodes += 1
        elif self._since_s is not None and now_s >= self.ends_at_s:
            self._since_s = None
            self.in_turn.clear()

    @property
    def ends_at_s(self) -> float:
        """When it ends unless somebody has to wait for a turn before."""
        return self._held_back_s + CALM_S

    def held_back(self, now_s: float) -> None:
        """Somebody waits for a turn."""
        self._held_back_s = now_s

    def give_turn(self, copy_id: int, load_s: float, now_s: float) -> None:
        """This copy may evict; the next one after its share of the time."""
        pause_s = load_s / (self._share * self._slots)
        # Those that are due do not ask whose turn it is; what they took is paid back, but not for ever.
        self.next_turn_s = min(max(now_s, self.next_turn_s) + pause_s, now_s + 2 * pause_s)
        self.in_turn[copy_id] = None
        self.turns += 1

    def picture(self, now_s: float) -> Thrashing | None:
        """For status; None when the pod does not thrash."""
        if self._since_s is None:
            return None
        return Thrashing(self._since_s, self.reload_share(now_s), self.turns)
