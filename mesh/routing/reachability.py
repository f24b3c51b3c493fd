"""Is a peer there? What a row of probes says, as a pure function.

A pod that is frozen, cut off or gone must be out of the routes within two seconds, long before its lease runs out. One
that is slow to answer once, on a machine that is busy, must stay. So: two failed probes in a row, or one refused
connection, and it is out; two good ones, and it is back. A probe that failed while this pod itself was stalled says
nothing about the peer and does not count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

FAILURES_MAX = 2
"""Failed probes in a row that put a peer out."""
SUCCESSES_MIN = 2
"""Good probes in a row that bring it back."""


class Answer(Enum):
    """What came of one probe."""

    GOOD = "good"
    SILENT = "no answer in time"
    REFUSED = "connection refused or broken"
    STALLED = "this pod itself was stalled"


@dataclass(frozen=True, slots=True)
class Reachability:
    """One peer, as its probes show it."""

    up: bool = True
    streak: int = 0
    """Probes in a row that speak against `up`."""
    last_good_s: float = 0.0
    why: str = ""
    """Why it is out."""


def after_probe(before: Reachability, answer: Answer, now_s: float) -> Reachability:
    """The peer after one more probe."""
    match answer:
        case Answer.STALLED:
            return before
        case Answer.GOOD if before.up:
            return Reachability(True, 0, now_s)
        case Answer.GOOD:
            if before.streak + 1 >= SUCCESSES_MIN:
                return Reachability(True, 0, now_s)
            return replace(before, streak=before.streak + 1, last_good_s=now_s)
    if not before.up:
        return replace(before, streak=0)
    if answer is Answer.REFUSED or before.streak + 1 >= FAILURES_MAX:
        return Reachability(False, 0, before.last_good_s, answer.value)
    return replace(before, streak=before.streak + 1)
