"""One copy's waiting requests, and what was learned of its content: is it row-wise, and how many rows pay?

What is learned belongs to a content and what runs it, so that a copy that comes back need not be tried again. A model
is tried when two of its requests have met for the first time, on rows that it has answered before (not on those that
wait: one of them may be what kills it). Most models of a dense pod never see that, and pay nothing, in their cold start
least of all. Until then, and where the trial says no, each request runs by itself.

A batch that fails although each of its requests succeeds alone is the model's doing: after a few, it is not batched.

Pure but for its own state: no clock, no thread. Owned by the event loop.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Generic, TypeVar

from mesh.batching.joining import Ran, Request
from mesh.batching.queue import BatchLimits, Plan, plan_batch
from mesh.batching.row_wise import ROWS_TRIED, NotRowWise, RowWise, Unproven, Verdict, rows_to_try
from mesh.batching.rules import BatchRules
from mesh.batching.sizing import Sizing
from runtime_adapters.base import Array

BATCH_BYTES_MAX = 8 * 1024 * 1024
"""Of the requests in one run: they are copied side by side, and what larger ones save is little beside that."""
TRIALS_MAX = 3
"""Of a model whose trials prove nothing."""
ALONE_AGAIN_AFTER = 32
"""Shared runs in a row, before a request has a run to itself: what a row costs alone must be known as it is now."""
BROKEN_MAX = 3
"""Batches that failed although none of their requests did."""


@dataclass(slots=True)
class Learned:
    """Of one content."""

    sizing: Sizing
    verdict: Verdict | None = None
    """None: not tried."""
    trials: int = 0
    broken: int = 0
    answered: list[dict[str, Array]] = field(default_factory=list)
    """Different rows of one kind that it has answered, kept for its trial while others wait."""
    kind: Hashable = None
    """Of those."""

    def remember(self, request: Request) -> None:
        """The model has answered this request: its first row may serve in a trial, which must not be made with what
        kills or hangs it."""
        if not request.rows or len(self.answered) >= ROWS_TRIED or request.size_bytes > BATCH_BYTES_MAX:
            return
        if not self.answered:
            self.kind = request.kind
        if request.kind == self.kind:
            rows = rows_to_try([*self.answered, request.inputs], varied=False)
            self.answered = [{name: array.copy() for name, array in row.items()} for row in rows]

    def forget_rows(self) -> None:
        """No trial is due: thousands of models must not keep their clients' requests in memory."""
        self.answered = []

    def tried(self, verdict: Verdict, alone_s: Sequence[float]) -> None:
        """What a trial has found, and what its single rows took alone: batches are judged against that."""
        self.trials += 1
        self.verdict = verdict
        self.forget_rows()
        for run_s in alone_s:
            self.sizing.ran(1, run_s)

    def may_try(self) -> bool:
        """Whether a trial may tell something new."""
        return self.verdict is None or (isinstance(self.verdict, Unproven) and self.trials < TRIALS_MAX)

    def broke(self, rows: int, answers_failed: int) -> None:
        """A run of several requests failed, and so many of them failed alone as well."""
        self.sizing.failed(rows)
        if answers_failed:
            return
        self.broken += 1
        if self.broken >= BROKEN_MAX:
            self.verdict = NotRowWise("runs of several requests fail, although each of them succeeds alone")


Caller = TypeVar("Caller")


@dataclass(slots=True, eq=False)
class Lane(Generic[Caller]):
    """Requests that wait for one copy."""

    rules: BatchRules
    learned: Learned
    runs_max: int
    """At a time."""
    running: int = 0
    """Runs, and a trial."""
    clock_s: float = 0.0
    """By which turns are taken (`turns`)."""
    waits_for_turn: bool = False
    is_trying: bool = False
    shared_runs: int = 0
    """Since a request had one to itself."""
    waiting: dict[Request, Caller] = field(default_factory=dict)
    """Who waits for which answer, in the order of arrival."""

    @property
    def may_run(self) -> bool:
        """Whether it has something to run, and may begin."""
        return bool(self.waiting) and self.running < self.runs_max

    @property
    def gathers(self) -> bool:
        """Whether there is any use in handing it several requests at a time: they share runs, or may come to."""
        return not self.rules.why_not and (isinstance(self.learned.verdict, RowWise) or self.learned.may_try())

    @property
    def is_batched(self) -> bool:
        """Whether requests share runs."""
        return not self.rules.why_not and isinstance(self.learned.verdict, RowWise)

    def limits(self, waiting: Mapping[Request, object]) -> BatchLimits:
        """Of the next run of these (at least one), in their order."""
        if not self.is_batched or self.shared_runs >= ALONE_AGAIN_AFTER:
            return BatchLimits(1, BATCH_BYTES_MAX)
        rows_max = self.rules.rows_max
        rows = [request.rows for request in islice(waiting, rows_max)]
        within_reach = rows_max if self.rules.delay_s else min(sum(rows) or 1, rows_max)
        return BatchLimits(min(rows_max, self.learned.sizing.rows_best(rows[0] or 1, within_reach)), BATCH_BYTES_MAX)

    def plan(self, now_s: float) -> Plan[Request]:
        """Who of those that wait runs now."""
        limits = self.limits(self.waiting)
        if limits.rows_max > 1 and self.rules.delay_s:
            limits = replace(limits, delay_s=self.rules.delay_s)
        return plan_batch(self.waiting, limits, self.learned.sizing.predicted_s, now_s)

    def take(self, requests: Iterable[Request]) -> list[Caller]:
        """These wait no longer."""
        return [self.waiting.pop(request) for request in requests]

    def trial_is_due(self, waiting: Collection[Request]) -> bool:
        """Whether requests have met that might share a run, if somebody found out whether they may."""
        return (
            len(waiting) > 1
            and not self.rules.why_not
            and not self.is_trying
            and self.learned.may_try()
            and len(rows_to_try(self.learned.answered)) > 1
        )

    def ran(self, batch: Sequence[Request], ran: Ran, cost_s: float, *, others_wait: bool) -> None:
        """A run has ended; `cost_s` is what sizes are judged by."""
        rows = sum(request.rows for request in batch)
        self.shared_runs = self.shared_runs + 1 if len(batch) > 1 else 0
        if ran.broke:
            self.learned.broke(rows, sum(isinstance(answer, Exception) for answer in ran.answers))
        elif not isinstance(ran.answers[0], Exception):
            if rows:
                self.learned.sizing.ran(rows, cost_s)
            if not self.rules.why_not and self.learned.may_try():
                if others_wait:
                    self.learned.remember(batch[0])
                else:
                    self.learned.forget_rows()


def in_words(rules: BatchRules, learned: Learned | None, *, runs_inline: bool) -> str:
    """Whether a copy's requests share runs, and why not. `runs_inline`: a run is shorter than a hand-over to a
    thread, so that requests hardly ever wait for one."""
    if rules.why_not:
        return f"no: {rules.why_not}"
    verdict = None if learned is None else learned.verdict
    if (learned is None or verdict is None) and runs_inline:
        return "not yet: its runs are shorter than a hand-over to a thread, and no two of its requests have met"
    if learned is None or verdict is None:
        return "not yet: no two of its requests have met"
    if not isinstance(verdict, RowWise):
        return f"no: {verdict.why}"
    rows = min(rules.rows_max, learned.sizing.rows_best())
    same = f"within {verdict.difference:.1g} of those alone" if verdict.difference else "equal to the bit"
    said = f"yes, up to {rows} rows a run; answers {same}"
    if runs_inline and rules.delay_s:
        said += "; nobody waits for company, since a run is shorter than a hand-over"
    return said
