"""The leader's turn over the store itself: old history is forgotten, and what is hot is written for the next leader."""

from __future__ import annotations

from placement.compaction import CompactionPlan
from placement.errands import Errands
from placement.heat import Heat
from placement.membership import Membership
from placement.pool_records import HotModel
from placement.service_limits import ServiceLimits


class Housekeeping:
    """Belongs to one leader."""

    def __init__(self, membership: Membership, errands: Errands, heat: Heat, limits: ServiceLimits) -> None:
        self._membership = membership
        self._errands = errands
        self._heat = heat
        self._limits = limits
        self._compaction = CompactionPlan(kept_s=limits.kept_history_s, every_s=limits.compacted_every_s)
        self._hot_at_s = 0.0
        self._hot_written: tuple[HotModel, ...] = ()

    def begin(self, now_s: float) -> None:
        """What the leader before has written is the first that is known to be hot."""
        self._hot_written = self._membership.hot
        self._hot_at_s = now_s + self._limits.hot_written_every_s
        self._heat.observe({hot.name: hot.rate_per_s for hot in self._hot_written}, now_s)

    def turn(self, revision: int, now_s: float) -> None:
        """Send out what is due. `revision`: of the view, and thus of the store at least."""
        old_revision = self._compaction.note(revision, now_s)
        if old_revision is not None:
            self._errands.send("compaction", self._membership.store.compact(old_revision))
        if now_s >= self._hot_at_s:
            self._hot_at_s = now_s + self._limits.hot_written_every_s
            hot = self._hot_models(now_s)
            if hot != self._hot_written:
                self._hot_written = hot
                self._errands.send("hot", self._membership.write_hot(hot))

    def _hot_models(self, now_s: float) -> tuple[HotModel, ...]:
        """With two digits: who reads it needs the order, and a steady pool should not write each time."""
        hottest = self._heat.hottest(self._limits.hot_models_max, now_s)
        return tuple(
            HotModel(name, float(f"{rate_per_s:.2g}"))
            for name, rate_per_s in hottest
            if rate_per_s >= self._limits.heat_min_per_s
        )
