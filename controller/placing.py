"""From one place to the other with no gap: a service moves between the mesh and pods of its own.

Make before break, one name throughout. `<service>-predictor` is the name that callers use, and a Service of that name
leads to the one or the other:

1. what the new place needs is made, beside what serves; 2. when that is ready, the Service is turned; 3. the old place
stands for `move_grace_s` more, for callers whose DNS still has it; 4. then it goes.

A new place that does not become ready changes nothing: the condition `Moving` says why, for as long as it lasts.
Where what there was is known not to serve, there is nothing to wait for.

What must be known in the next turn is in the status, below `hexcomb`: `runsOn`, `goingTo`, and `movedAt` in Unix
seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from controller.conditions import PREDICTOR_READY, truth_in
from controller.policy import Mode
from controller.reading import Manifest


class Step(Enum):
    """Of a move."""

    SETTLED = "settled"
    MAKING = "making"
    """The new place is made, and the old one serves."""
    TURNING = "turning"
    """The new place is ready: the name leads there from now on."""
    LEAVING = "leaving"
    """The old place stands for callers that have not noticed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service has been."""

    runs_on: Mode | None = None
    moved_at_s: float | None = None
    """None: it has not moved lately."""
    going_to: Mode | None = None
    """Another place that is being made."""


def read_place(status: Manifest) -> Place:
    """Of the status that the object has; a first turn, or what somebody else wrote, is nowhere."""
    ours = status.get("hexcomb")
    if not isinstance(ours, Mapping):
        return Place()
    places = {mode.value: mode for mode in (Mode.MESH, Mode.DEDICATED)}
    moved_at = ours.get("movedAt")
    return Place(
        places.get(str(ours.get("runsOn"))),
        float(moved_at) if type(moved_at) is int and abs(moved_at) < 2**53 else None,
        places.get(str(ours.get("goingTo"))),
    )


def place_in_status(place: Place) -> dict[str, object]:
    """The other way round."""
    said: dict[str, object] = {}
    if place.runs_on is not None:
        said["runsOn"] = place.runs_on.value
    if place.moved_at_s is not None:
        said["movedAt"] = int(place.moved_at_s)
    if place.going_to is not None:
        said["goingTo"] = place.going_to.value
    return said


def plan_step(
    place: Place, wanted: Mode, is_ready: bool, before: Manifest, grace_s: float, now_s: float
) -> tuple[Step, Place]:
    """The step, and the place to remember. `is_ready`: the wanted place serves, so far as is known."""
    if place.runs_on is None:
        return Step.SETTLED, Place(wanted)
    if place.runs_on is wanted:
        if place.moved_at_s is not None and abs(now_s - place.moved_at_s) < grace_s:
            return Step.LEAVING, Place(wanted, place.moved_at_s)
        return Step.SETTLED, Place(wanted)
    # Not known is not broken: a mesh that does not answer us may well answer callers. Nor does `Ready` count: a
    # transformer that is down, or a child of the new place that the cluster refuses, says nothing of the old one.
    if is_ready or truth_in(before, PREDICTOR_READY) == "False":
        return Step.TURNING, Place(wanted, now_s)
    return Step.MAKING, Place(place.runs_on, place.moved_at_s, wanted)
