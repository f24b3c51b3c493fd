"""What this pod has done for each model since it started: how many requests and runs, of what sizes, how long.

Statistics that clients of Triton read (`mesh.endpoint.statistics`) outlive a copy: a model that was evicted and came
back goes on counting. So a tally belongs to the model and its generation, every copy of it writes to the same one, and
it goes when the model is unregistered.

A request costs two calls that add to numbers; nothing is kept per request, and no clock is read: the caller has the
times at hand.
"""

from __future__ import annotations

import time

from cache.types import ModelKey

SIZES_MAX = 256
"""Batch sizes that are told apart; runs of further ones are counted with all others only."""


class Tally:
    """Of one generation of a model."""

    __slots__ = (
        "ended_s",
        "executions",
        "failed_s",
        "failures",
        "inferences",
        "of_size",
        "queued_s",
        "requests_s",
        "run_s",
        "runs",
        "successes",
        "successes_s",
    )

    def __init__(self) -> None:
        self.successes = 0
        self.successes_s = 0.0
        """Of all answered requests together, from when they came to their answers."""
        self.failures = 0
        self.failed_s = 0.0
        self.ended_s = 0.0
        """When the last one was answered, on `time.perf_counter()`; 0: none was."""
        self.runs = 0
        """Requests that were part of a run,"""
        self.queued_s = 0.0
        """what they waited for it,"""
        self.requests_s = 0.0
        """and what it took: a run that requests share counts for each of them."""
        self.executions = 0
        self.run_s = 0.0
        self.inferences = 0
        """Rows, of models that run rows together; else requests."""
        self.of_size: dict[int, list[float]] = {}
        """Runs, and seconds of runs, by how many inferences they were for."""

    def answered(self, seconds: float, ended_s: float, waited_s: float) -> None:
        """A request was answered; `waited_s`: of its time, for the model to be loaded."""
        self.successes += 1
        self.successes_s += seconds
        self.ended_s = ended_s
        self.queued_s += waited_s

    def failed(self, seconds: float, ended_s: float) -> None:
        """A request that had a copy got an error."""
        self.failures += 1
        self.failed_s += seconds
        self.ended_s = ended_s

    def ran(self, queued_s: float, run_s: float, requests: int, inferences: int) -> None:
        """A run has answered so many requests, which had waited `queued_s` together."""
        self.runs += requests
        self.queued_s += queued_s
        self.requests_s += run_s * requests
        self.executions += 1
        self.run_s += run_s
        self.inferences += inferences
        size = self.of_size.get(inferences)
        if size is None:
            if len(self.of_size) >= SIZES_MAX:
                return
            size = self.of_size[inferences] = [0, 0.0]
        size[0] += 1
        size[1] += run_s

    def last_at_s(self, wall_s: float) -> float:
        """When the last request was answered, in Unix seconds, where it is `wall_s` now; 0: none was."""
        return wall_s - (time.perf_counter() - self.ended_s) if self.ended_s else 0.0


class Tallies:
    """Of one pod, by generation of a model; written and read by the event loop."""

    def __init__(self) -> None:
        self._tallies: dict[ModelKey, Tally] = {}

    def of(self, key: ModelKey) -> Tally:
        """The one that all copies of a generation share, made when it is first asked for."""
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally()
        return tally

    def of_tenant(self, tenant: str) -> dict[ModelKey, Tally]:
        """Every generation of a tenant that has been here."""
        return {key: tally for key, tally in self._tallies.items() if key.tenant == tenant}

    def forget(self, key: ModelKey) -> None:
        """The generation is not registered any more. A copy that still runs writes to a tally that nobody reads."""
        self._tallies.pop(key, None)
