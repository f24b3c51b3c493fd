"""How each model was used, kept when its copy leaves: what a policy needs to guess when it will be wanted again.

The last use alone (LRU) cannot tell a model that is asked for every ten minutes from one that was asked for once. So
for each model we keep the gaps between its uses: a histogram with buckets that double (0.25 s to 12 days), in which
old gaps fade; the last few gaps as they were, in which a timer shows; and how often it was used lately. All of it
outlives the copy (a ghost): a cache that forgets the frequency of what it evicts does worse than LRU.

What a policy sees is `Uses`, an immutable picture. Its histogram comes as a `WaitTable`: the mass of gaps longer than
t, and the integral of that, at the edges of the buckets, blended with what is typical of models with as few gaps as
this one (`_pooled`); between edges it is linear. So P(used within T | idle for a) costs two look-ups.

Recording is on the path of every request, so uses within GAP_MIN_S of the last recorded one are not looked at (the
copy compares one number), and old gaps fade by letting new ones weigh more, so that nobody walks the buckets.

Bounded: `models_remembered_max` models, least recently loaded first out; about 1.3 kB each. Two generations of a
model share one history. Deliberately absent: clocks, and who is resident.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import frexp, inf

from cachetools import LRUCache

from cache.types import ModelKey, WantedModel

GAP_MIN_S = 0.25
"""Uses closer than this are one use. The first bucket begins here."""

BUCKETS = 22
"""Each twice as wide as the one before; the last ends at 12 days."""

GAPS_KEPT = 6
"""A timer shows after three; more than six only delays noticing that its period has changed."""

FADING = 0.99
"""What one gap weighs once the next has been seen: about a hundred gaps are remembered."""

BLUR = 0.25
"""Of a gap's weight, to each bucket beside its own: few gaps would else say that others cannot be."""

JOINED_WEIGHT = 0.3
"""Of the newest load, in the mean of what those who joined loads have waited."""

POOLED_FADING = 0.999
"""The same for the gaps of all models together."""

POOLED_WEIGHT = 1.0
"""Gaps that the pooled histogram counts for beside a model's own."""

NEVER_WEIGHT = 0.25
"""Gaps that end never, beside a model's own: what has come back rarely may not come back at all."""

FREQUENCY_HALF_LIFE_S = 6 * 3600.0
"""In which the weight of a use halves."""

_HEAVY = 1e9
"""Weights are scaled down when a new gap would weigh more than this."""

_EDGES_S = tuple(GAP_MIN_S * 2.0**bucket for bucket in range(BUCKETS + 1))

_POOLS = 3
"""Pooled histograms: of models with no gap yet, with one or two, with more."""


@dataclass(frozen=True, slots=True)
class WaitTable:
    """The distribution of gaps, not normalised: only ratios mean something."""

    longer: tuple[float, ...]
    """Mass of gaps longer than each edge; the last is what never ends."""
    area: tuple[float, ...]
    """Integral of that mass from 0 to each edge."""

    def uses_per_s(self, idle_s: float, within_s: float) -> float:
        """P(the gap ends within that time) / E(that time, or less), given that it has lasted so long already."""
        longer_now, area_now = self.at(idle_s)
        longer_then, area_then = self.at(idle_s + within_s)
        return (longer_now - longer_then) / (area_then - area_now)

    def at(self, wait_s: float) -> tuple[float, float]:
        """(mass of gaps longer than `wait_s`, integral of that mass from 0 to `wait_s`)."""
        if wait_s <= GAP_MIN_S:
            return self.longer[0], self.longer[0] * max(0.0, wait_s)
        mantissa, exponent = frexp(wait_s / GAP_MIN_S)  # = mantissa * 2**exponent, mantissa in [0.5, 1)
        bucket = exponent - 1
        if bucket >= BUCKETS:
            return self.longer[BUCKETS], self.area[BUCKETS] + self.longer[BUCKETS] * (wait_s - _EDGES_S[BUCKETS])
        before = self.longer[bucket]
        longer = before + (self.longer[bucket + 1] - before) * (2.0 * mantissa - 1.0)
        return longer, self.area[bucket] + (wait_s - _EDGES_S[bucket]) * (before + longer) * 0.5


def wait_table(masses: Sequence[float], never: float) -> WaitTable:
    """The table of a histogram with this mass in each bucket, and this mass of gaps that never end."""
    longer = [never]
    for mass in reversed(masses):
        longer.append(longer[-1] + mass)
    longer.reverse()
    area = [longer[0] * GAP_MIN_S]
    for bucket in range(BUCKETS):
        width_s = _EDGES_S[bucket + 1] - _EDGES_S[bucket]
        area.append(area[-1] + width_s * (longer[bucket] + longer[bucket + 1]) * 0.5)
    return WaitTable(tuple(longer), tuple(area))


_NO_GAPS = wait_table((0.0,) * BUCKETS, 1.0)


@dataclass(frozen=True, slots=True)
class Uses:
    """What is remembered of one model's uses at one moment."""

    last_s: float = -inf
    """The last use that was recorded; at most GAP_MIN_S before the last use."""
    frequency: float = 0.0
    """Uses that have not faded at `last_s`."""
    gaps_s: tuple[float, ...] = ()
    """The last gaps, oldest first."""
    waits: WaitTable = _NO_GAPS
    joined_s: float = 0.0
    """What requests that joined a load of this model have waited beside the one that caused it, in all; usual sum."""
    inflation: float = 0.0
    """GDSF's clock at the last use (`cache.policies.gdsf`)."""


NEVER_USED = Uses()


QUIET_S = 10.0
"""A use after so long without one begins a session. What is used more often is here anyway."""

TOGETHER_S = 3.0
"""Sessions that begin within so long of one another may belong together."""

SESSIONS_KEPT = 8
"""The last sessions, of all models, that a new one is compared to."""

FOLLOWERS_MAX = 4
"""Of one model."""

FOLLOWER_SESSIONS_MIN = 4
"""Sessions of a model before anything is said of its followers."""

FOLLOWER_SHARE = 0.6
"""Of its sessions, in which a model must have followed."""


@dataclass(slots=True)
class PrefetchCounts:
    """What became of copies that were brought in before anybody asked."""

    begun: int = 0
    used: int = 0
    """Somebody asked for the copy, or for its load, before it left."""
    wasted: int = 0
    """Nobody did."""


class Histories:
    """The histories of this pod's models. Owned by the machine."""

    def __init__(self, models_max: int) -> None:
        self.inflation = 0.0
        """GDSF's clock now; each use takes it down."""
        self.prefetches = PrefetchCounts()
        self.expected: list[WantedModel] = []
        """Models that usually follow those whose sessions have begun since somebody last looked; bounded."""
        self._sessions: deque[tuple[float, History]] = deque(maxlen=SESSIONS_KEPT)
        self._by_model: LRUCache[tuple[str, str], History] = LRUCache(maxsize=models_max)
        self._made = 0
        self._pooled = [_Histogram(POOLED_FADING) for _ in range(_POOLS)]

    def of(self, model: WantedModel) -> History:
        """This model's history, from now on among the last to be forgotten."""
        name = model.key[:2]
        history = self._by_model.get(name)
        if history is None:
            self._made += 1
            history = self._by_model[name] = History(self, self._made)
        history.model = model
        return history

    def known(self, key: ModelKey) -> History | None:
        """This model's history, if there is one."""
        return self._by_model.get(key[:2])

    def session_begins(self, history: History, now_s: float) -> None:
        """This model is used again after a while; who is used with it?"""
        for began_s, before in self._sessions:
            if now_s - began_s <= TOGETHER_S and before is not history:
                before.followed_by(history)
        self._sessions.append((now_s, history))
        if len(self.expected) < SESSIONS_KEPT * FOLLOWERS_MAX:
            found = (self._by_model.get(name) for name in history.followers())
            self.expected.extend(other.model for other in found if other is not None and other.model is not None)

    def pooled(self, gaps: int) -> _Histogram:
        """Gaps that followed when a model had shown so many."""
        return self._pooled[min((gaps + 1) // 2, _POOLS - 1)]

    def __len__(self) -> int:
        return len(self._by_model)


class History:
    """One model's uses. Changed by `record` and `loaded` alone."""

    __slots__ = (
        "_all",
        "_followers",
        "_frequency",
        "_gaps_s",
        "_histogram",
        "_inflation",
        "_joined_s",
        "_last_s",
        "_sessions",
        "gaps_seen",
        "model",
        "number",
        "pictured",
    )

    def __init__(self, histories: Histories, number: int) -> None:
        self._all = histories
        self.number = number
        """Names it in alarms."""
        self.model: WantedModel | None = None
        """As it was wanted last."""
        self._joined_s = 0.0
        self._sessions = 0
        self._followers: dict[tuple[str, str], int] | None = None
        """By name: what is forgotten must not be kept by what it followed."""
        self._last_s = -inf
        self._frequency = 0.0
        self._gaps_s: tuple[float, ...] = ()
        self._histogram: _Histogram | None = None
        self._inflation = 0.0
        self.pictured: Uses | None = None
        """The picture, while it is up to date."""
        self.gaps_seen = 0

    def record(self, now_s: float) -> float:
        """The model is used now. The answer is the time before which further uses need not be recorded."""
        gap_s = now_s - self._last_s
        if gap_s >= GAP_MIN_S:
            self.pictured = None
            if gap_s >= QUIET_S:
                self._sessions += 1
                self._all.session_begins(self, now_s)
            if self.gaps_seen or self._last_s > -inf:
                self._note_gap(gap_s)
                self._frequency = 1.0 + self._frequency * 0.5 ** (gap_s / FREQUENCY_HALF_LIFE_S)
            else:
                self._frequency = 1.0
            self._last_s = now_s
            self._inflation = self._all.inflation
        return self._last_s + GAP_MIN_S

    def loaded(self, joined_s: float) -> None:
        """A load has ended, for which those who joined it have waited so long in all."""
        self._joined_s += JOINED_WEIGHT * (joined_s - self._joined_s)
        self.pictured = None

    def followed_by(self, other: History) -> None:
        """The other model's session began shortly after one of this model's."""
        if other.model is None:
            return
        if self._followers is None:
            self._followers = {}
        counts, name = self._followers, other.model.key[:2]
        if name not in counts and len(counts) >= FOLLOWERS_MAX:
            del counts[min(counts, key=lambda each: (counts[each], each))]
        counts[name] = counts.get(name, 0) + 1

    def followers(self) -> list[tuple[str, str]]:
        """Models that are usually used right after this one: tenant and id."""
        if self._followers is None or self._sessions < FOLLOWER_SESSIONS_MIN:
            return []
        least = FOLLOWER_SHARE * self._sessions
        return [name for name, count in self._followers.items() if count >= least]

    def used_after_prefetch(self) -> None:
        """Somebody asked for what was brought in beforehand."""
        self._all.prefetches.used += 1

    def _note_gap(self, gap_s: float) -> None:
        self._all.pooled(self.gaps_seen).add(gap_s)
        if self._histogram is None:
            self._histogram = _Histogram(FADING)
        self._histogram.add(gap_s)
        self._gaps_s = (*self._gaps_s[1 - GAPS_KEPT :], gap_s)
        self.gaps_seen += 1

    def picture(self) -> Uses:
        """What a policy may look at; the same object until the next use is recorded."""
        if self.pictured is None:
            masses = self._all.pooled(self.gaps_seen).masses(POOLED_WEIGHT)
            if self._histogram is not None:
                own = self._histogram.masses()
                masses = [mine + others for mine, others in zip(own, masses, strict=True)]
            self.pictured = Uses(
                last_s=self._last_s,
                frequency=self._frequency,
                gaps_s=self._gaps_s,
                waits=wait_table(masses, NEVER_WEIGHT),
                joined_s=self._joined_s,
                inflation=self._inflation,
            )
        return self.pictured


class _Histogram:
    """Gaps by bucket, in which old ones fade: each new one weighs 1 / fading times as much as the one before."""

    __slots__ = ("_fading", "_masses", "_weight")

    def __init__(self, fading: float) -> None:
        self._fading = fading
        self._masses = array("f", bytes(4 * BUCKETS))
        self._weight = 1.0

    def add(self, gap_s: float) -> None:
        """One more gap."""
        self._weight /= self._fading
        if self._weight > _HEAVY:
            self._masses = array("f", [mass / self._weight for mass in self._masses])
            self._weight = 1.0
        bucket = min(BUCKETS - 1, max(0, frexp(gap_s / GAP_MIN_S)[1] - 1))
        self._masses[bucket] += (1.0 - 2.0 * BLUR) * self._weight
        self._masses[max(0, bucket - 1)] += BLUR * self._weight
        self._masses[min(BUCKETS - 1, bucket + 1)] += BLUR * self._weight

    def masses(self, total: float | None = None) -> list[float]:
        """The mass of each bucket, where the newest gap weighs 1; or where all together weigh `total`."""
        weight = self._weight
        if total is not None:
            weight = (sum(self._masses) or 1.0) / total
        return [mass / weight for mass in self._masses]
