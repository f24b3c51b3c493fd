"""Every seed that ever broke a promise, and what it found. None is taken away; CI plays them all.

The code under test moves on, and with it what a seed does; the story says what was wrong, and most of these have a
unit test as well. Some stories are of the simulator itself: a checker that judged wrongly is a defect like any other.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Regression:
    """A seed, the steps that it was played for, and its story in a line."""

    seed: int
    steps: int
    story: str


REGRESSIONS = (
    # Of the product.
    Regression(1008, 10_000, "a peer found down was let go of within the same call, and its probe looked for it"),
    Regression(3018, 10_000, "store away: each pod believed a copy to be where none was; nobody loaded it"),
    Regression(20124, 10_000, "a pod said that its copy was gone, and loaded it again; another did as well"),
    Regression(20086, 10_000, "two first loads: the asking pod's own claim was ignored by whom it had asked"),
    Regression(20203, 10_000, "two first loads: as 20086"),
    Regression(20268, 10_000, "pod and store contradicted each other until all tries of the request were used up"),
    Regression(30085, 10_000, "a new generation without room where the old one serves was never loaded elsewhere"),
    Regression(40135, 10_000, "an alias left its cold active model for a target that kills pods"),
    Regression(40183, 10_000, "a new generation had to leave before it took over; the old one answered for ever"),
    Regression(50105, 10_000, "cut off from the store while it started, a pod took itself for unready and refused all"),
    Regression(50123, 10_000, "after a wipe one pod alone remembered over which model pods had died"),
    Regression(40, 4_000, "a timer for the end of fading rang a rounding error early, again and again"),
    # Of the simulator.
    Regression(12, 4_000, "a call that was cancelled before its first step stayed in its pod for ever"),
    Regression(129, 10_000, "a wiped store gave out the leases of the one before it"),
    Regression(10076, 10_000, "an alias that was forced to a broken model was taken for a broken promise"),
    Regression(10078, 10_000, "as 10076"),
    Regression(148, 10_000, "as 10076"),
    Regression(20186, 10_000, "a store was wiped while no pod lived; nobody could know what it had held"),
    Regression(20281, 10_000, "as 20186"),
    Regression(20114, 10_000, "after a wipe a pod still refused a quarantined model that the store knew nothing of"),
    Regression(20283, 10_000, "as 20114"),
    Regression(60437, 8_000, "a pod that was frozen over a wipe was expected to know a name that is younger"),
    Regression(179, 10_000, "as 60437"),
    Regression(359, 10_000, "pins left no room on any pod, and a model was expected to be loaded"),
    Regression(464, 10_000, "a request that its predicted load would make too late was refused at once, as it should"),
    Regression(20092, 10_000, "a copy on a frozen pod was taken for one that serves"),
    Regression(20219, 10_000, "a pod that could be reached again was expected to be found at once"),
    Regression(30028, 10_000, "without the store, a pod was expected to know of one that it had given up"),
    Regression(40136, 10_000, "an order and a claim at the same moment were taken for two first loads"),
    Regression(40229, 10_000, "a slow pod was taken for one that answers probes"),
    Regression(3011, 10_000, "a claim by a pod that had just restarted was taken for a second first load"),
    Regression(10019, 10_000, "rest was looked at while a pod was still on its way back"),
    Regression(10044, 10_000, "as 10019"),
    Regression(10063, 10_000, "as 10019"),
    Regression(20051, 10_000, "rest was looked at while a pod came back from a model that kills"),
    Regression(20112, 10_000, "as 20051"),
    Regression(10148, 10_000, "a request without a deadline was taken for one that is left over"),
    Regression(200, 10_000, "a deadline of five seconds was taken for a longer one by a rounding error"),
    Regression(215, 10_000, "a load that nobody waits for was taken for a waiter that is left over"),
)
