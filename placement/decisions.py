"""What this pod's placement service decided lately, for `explain`: bounded, by model, in memory only.

A decision that is taken again turn after turn (no pod fits, still) is one entry that counts. Nothing depends on these
entries; they are for people.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cachetools import LRUCache

from placement.policy.snapshot import ModelName

MODELS_MAX = 2_000
"""Models that are remembered; the one decided on longest ago goes first."""
PER_MODEL_MAX = 8
DETAILS_MAX = 12
"""Lines of reasons kept with one decision: the rest of a hundred pods says the same."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing the service did, or found that it could not do."""

    name: ModelName
    """The model; for an alias, its name."""
    at_s: float
    """Unix time by this pod's clock."""
    action: str
    """`load`, `unload`, `switch alias`, `no pod` and the like."""
    reason: str
    pod: str = ""
    """Where, if it is about one pod."""
    details: tuple[str, ...] = ()
    """What else was considered, a line each."""
    times: int = 1
    """How often in a row."""

    def __str__(self) -> str:
        where = f" on {self.pod}" if self.pod else ""
        again = f" ({self.times} times)" if self.times > 1 else ""
        return f"{self.action} {self.name}{where}: {self.reason}{again}"


class DecisionLog:
    """The last decisions of each model."""

    def __init__(self, *, models_max: int = MODELS_MAX, per_model_max: int = PER_MODEL_MAX) -> None:
        self._per_model_max = per_model_max
        self._by_model: LRUCache[ModelName, tuple[Decision, ...]] = LRUCache(models_max)

    def note(self, decision: Decision) -> bool:
        """Remember it; whether it is news, and not the last one once more."""
        known = self._by_model.get(decision.name, ())
        decision = replace(decision, details=decision.details[:DETAILS_MAX])
        last = known[-1] if known else None
        news = last is None or (last.action, last.pod, last.reason) != (decision.action, decision.pod, decision.reason)
        if last is not None and not news:
            known, decision = known[:-1], replace(decision, times=last.times + 1)
        self._by_model[decision.name] = (*known, decision)[-self._per_model_max :]
        return news

    def recent(self, name: ModelName) -> tuple[Decision, ...]:
        """Oldest first."""
        return self._by_model.get(name, ())
