"""Where requests of about one size run, for one copy: on the event loop, or on a thread. Decided from what runs cost.

On the loop a run delays everybody for as long as it takes; on a thread it costs a hand-over, which delays everybody as
well. So what is quicker than a hand-over belongs on the loop. What a run costs is its thread's processor time, and
that is noisy: a neighbour empties the caches, an interrupt falls into a run of ten microseconds, a first run faults its
pages in. A model that is thrown off the loop for such a reason costs ten times as much per request from then on, and on
threads it looks slower than it is, since each run begins with cold caches. So the decision is slow to change and has
a way back:

* One run counts at most `COUNTED_MAX_S`, and what counts is the mean of the last `WINDOW` runs: four of them must be
  slow, whatever slow is, before a model leaves that was quick. (A hypervisor that runs somebody else, or a collection
  of Python's garbage, falls into one run of hundreds, and lasts milliseconds.)
* It leaves above `LEAVE_S` and returns below `RETURN_S`, half of it: between the two it stays where it is.
* Not before it has run on threads a while does it return. Where they say that it is quick, it returns. Where they say
  that it may be, single runs are tried on the loop; `TRIES` good ones in a row bring it back.
* Each try that fails, and each return that does not last, doubles the while, up to `WHILE_MAX`: a model whose runs
  really differ does not hold up the loop again and again.

What a load measured is a guess: some frameworks have nothing to warm up, and then it says nothing. So the least of the
first `FIRST_RUNS` on the loop takes its place, and a slow model holds up the loop no more often than that.

Runs that requests share count as what each of them costs. Reading a thread's processor time costs a tenth of a tiny
run, so on the loop only one run in `MEASURED_EVERY` is measured so, and so many after each that lasted long.

Values in, values out: no clock.
"""

from __future__ import annotations

from array import array

HANDOVER_S = 120e-6
"""Loop -> thread -> loop. With nothing to do and nothing else to wait for it takes 30 to 62 µs (`make bench`,
request_cost); of a request that runs on a thread the pod's processor time was 60 µs more than on the loop where 32 in
flight shared runs, 260 where they did not, and 400 for one in flight (XGBoost, two cores, load average 3.5)."""
RETURN_S = HANDOVER_S
LEAVE_S = 2 * HANDOVER_S
COUNTED_MAX_S = 16 * HANDOVER_S
TRIED_MAX_S = 6 * HANDOVER_S
"""A mean on threads from which on nothing is tried: no cold cache makes a quick run so slow."""
WINDOW = 32
WHILE_MIN, WHILE_MAX = 32, 4096
"""Runs on threads before the first and the last attempt to return."""
LASTING = 4096
"""Runs on the loop, after which a return has lasted."""
TRIES = 3
FIRST_RUNS = 3
MEASURED_EVERY = 8


class RunPlace:
    """What runs of one copy cost each request. Owned by one thread."""

    __slots__ = (
        "_at",
        "_costs_s",
        "_first_runs",
        "_good_tries",
        "_least_s",
        "_measured_more",
        "_runs_here",
        "_sum_s",
        "_trying",
        "_while",
        "measured",
        "on_loop",
    )

    def __init__(self, first_s: float) -> None:
        """`first_s`: what a run took when the copy was loaded."""
        self.on_loop = first_s < RETURN_S
        """Whether the next small request runs there."""
        self.measured = True
        """Whether the next run on the loop is told by the processor's clock; else by any that is cheap."""
        self._measured_more = 0
        self._while = WHILE_MIN
        self._runs_here = 0
        """Since it came where it is; on the loop, since the last that was measured, too."""
        self._trying = False
        self._good_tries = 0
        self._first_runs = FIRST_RUNS
        """That are still to come."""
        self._least_s = COUNTED_MAX_S
        """Of those that were."""
        self._at = 0
        self._sum_s = 0.0
        self._costs_s = array("d")
        """The last costs, in a ring; `_at` is the oldest."""
        self._fill(first_s)

    @property
    def mean_s(self) -> float:
        """Of the runs that count."""
        return self._sum_s / WINDOW

    def ran_on_loop(self, seconds: float, requests: int = 1) -> None:
        """A run has ended there; `seconds` are of the processor where `measured` was set or several shared it."""
        cost_s = seconds / requests
        self._runs_here += 1
        if not self.measured and requests == 1:
            if seconds > LEAVE_S:
                self._measured_more = MEASURED_EVERY
            self.measured = self._measured_more > 0 or self._runs_here % MEASURED_EVERY == 0
            return
        self._measured_more -= self._measured_more > 0
        self.measured = self._measured_more > 0
        if self._trying:
            self._tried(cost_s)
            return
        if self._first_runs:
            self._first_run(cost_s)
        else:
            self._note(cost_s)
        if self._sum_s > LEAVE_S * WINDOW:
            self._leave()
        elif self._runs_here >= LASTING:
            self._while = WHILE_MIN

    def ran_on_thread(self, cost_s: float) -> None:
        """A run has ended there, which cost each of its requests so much."""
        self._note(cost_s)
        if self.on_loop:  # it was under way before
            return
        self._runs_here += 1
        if self._runs_here < self._while:
            return
        mean_s = self.mean_s
        if mean_s < RETURN_S:
            self._return()
        elif mean_s < TRIED_MAX_S:
            self.on_loop = self.measured = self._trying = True

    def costs_at_most(self, cost_s: float) -> None:
        """A run of one request was seen to cost no more than this."""
        if cost_s < self.mean_s:
            self._fill(cost_s)
            if not self.on_loop and cost_s < RETURN_S:
                self._return()

    def _first_run(self, cost_s: float) -> None:
        self._first_runs -= 1
        self._least_s = min(self._least_s, cost_s)
        if self._first_runs:
            self.measured = True
        else:
            self._fill(self._least_s)

    def _tried(self, cost_s: float) -> None:
        self.on_loop = self._trying = False
        if cost_s >= RETURN_S:
            self._good_tries = self._runs_here = 0
            self._while = min(2 * self._while, WHILE_MAX)
            return
        self._good_tries += 1
        if self._good_tries == TRIES:
            self._fill(cost_s)
            self._return()

    def _leave(self) -> None:
        if self._runs_here < LASTING:
            self._while = min(2 * self._while, WHILE_MAX)
        self.on_loop = False
        self._good_tries = self._runs_here = 0

    def _return(self) -> None:
        self.on_loop = self.measured = True
        self._trying = False
        self._good_tries = self._runs_here = 0

    def _note(self, cost_s: float) -> None:
        counted_s = min(cost_s, COUNTED_MAX_S)
        self._sum_s += counted_s - self._costs_s[self._at]
        self._costs_s[self._at] = counted_s
        self._at += 1
        if self._at == WINDOW:
            self._at = 0
            self._sum_s = sum(self._costs_s)  # or roundings would add up

    def _fill(self, cost_s: float) -> None:
        self._costs_s = array("d", [min(cost_s, COUNTED_MAX_S)]) * WINDOW
        self._sum_s = sum(self._costs_s)
        self._at = 0
