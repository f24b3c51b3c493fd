"""What failed, and when it may be tried again.

A permanent failure stands until the model's generation changes (that is another key) or someone forgives it. After a
transient one the pause doubles with each failure in a row, up to a limit. The count outlives the pause by as long as
the longest pause, or every second failure would count as the first.

The memory is bounded: beyond its size the least recently used entry is forgotten, which costs one more attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from cachetools import TLRUCache

from cache.limits import CacheLimits
from cache.types import ModelKey, Refusal, RefusalKind

PERMANENT_KINDS = frozenset({RefusalKind.TOO_BIG, RefusalKind.LOAD_FAILED_PERMANENT})
"""Refusals that waiting does not cure."""


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """The last failure of one model on this pod."""

    kind: RefusalKind
    message: str
    failures: int
    """In a row."""
    failed_at_s: float
    retry_at_s: float
    """Infinite when permanent."""
    forget_at_s: float


class FailureMemory:
    """Failures by model; bounded in number and in time."""

    def __init__(self, limits: CacheLimits) -> None:
        self._limits = limits
        self._now_s = -inf
        self._records: TLRUCache[ModelKey, FailureRecord] = TLRUCache(
            maxsize=limits.failures_remembered_max,
            ttu=lambda _key, record, _now_s: record.forget_at_s,
            timer=lambda: self._now_s,
        )

    def record(self, key: ModelKey, kind: RefusalKind, message: str, now_s: float) -> Refusal:
        """Remember a failure; returns the refusal for those who waited."""
        before = self.get(key, now_s)
        failures = 1 if before is None else before.failures + 1
        retry_at_s = forget_at_s = inf
        if kind not in PERMANENT_KINDS:
            # The exponent is capped so that a long outage cannot overflow a float.
            pause_s = self._limits.failure_backoff_base_s * 2.0 ** min(failures - 1, 60)
            retry_at_s = now_s + min(pause_s, self._limits.failure_backoff_max_s)
            forget_at_s = retry_at_s + self._limits.failure_backoff_max_s
        self._records[key] = FailureRecord(kind, message, failures, now_s, retry_at_s, forget_at_s)
        return _as_refusal(self._records[key], now_s)

    def refusal(self, key: ModelKey, now_s: float) -> Refusal | None:
        """The answer to whoever wants this model now; None when it may be tried."""
        record = self.get(key, now_s)
        if record is None or record.retry_at_s <= now_s:
            return None
        return _as_refusal(record, now_s)

    def get(self, key: ModelKey, now_s: float) -> FailureRecord | None:
        """What is remembered of this model."""
        self._now_s = max(self._now_s, now_s)
        return self._records.get(key)

    def forget(self, key: ModelKey) -> None:
        """It loaded, it was retired, or it was forgiven."""
        self._records.pop(key, None)


def _as_refusal(record: FailureRecord, now_s: float) -> Refusal:
    retry_after_s = None if record.retry_at_s == inf else max(0.0, record.retry_at_s - now_s)
    return Refusal(record.kind, record.message, retry_after_s)
