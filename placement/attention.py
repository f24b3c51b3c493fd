"""Which models the leader looks at in its next turn, so that a turn in which nothing happened costs nearly nothing.

Looked at are models whose registration, copies or failures changed, those that pods report as busy, those for which no
place was found when pods have changed since, and all of them once in a while (`placement.term`). Remembered beside them
is what no view tells: which models were lost with their pods, and which are to have copies without being asked for.

A model is lost when the pods that held its last copies went away with it. One that its pod let go of by itself was
evicted or expired, and comes back when somebody asks for it.
"""

from __future__ import annotations

from math import inf

from placement.policy.snapshot import ModelName, Pod, PoolView
from placement.pool_view import PodChange, PoolChanges
from placement.records import ModelRecord, ModelSpec
from placement.view import Changes, RegistryView


class Attention:
    """Belongs to one leader. The sets are insertion-ordered dictionaries: nothing may depend on a hash seed."""

    def __init__(self) -> None:
        self.due: dict[ModelName, None] = {}
        """To be looked at in the next turn."""
        self.kept: dict[ModelName, None] = {}
        """Models with copies that must be there."""
        self.lost: dict[ModelName, float] = {}
        """Models whose last copies went away with their pods, and when; until they are back, or given up."""
        self._just_lost: dict[ModelName, float] = {}
        """Since the last turn began. A turn that is under way looks at an older picture, where they have copies."""
        self.unplaced: dict[ModelName, None] = {}
        """Models that found no place."""
        self.pod_joined_at_s = -inf
        """When a pod last became one that can load."""

    def begin(self, names: RegistryView) -> None:
        """Take in everything, as a new leader."""
        for record in names.every_model():
            if is_kept(record.spec):
                self.kept[_name(record)] = None

    def names_changed(self, changes: Changes, view: PoolView) -> None:
        """Models were registered, changed or unregistered."""
        for change in changes.models:
            name = ModelName(change.tenant, change.id)
            kept = change.after is not None and is_kept(change.after.spec)
            if kept:
                self.kept[name] = None
            else:
                self.kept.pop(name, None)
            if change.after is None:
                self.lost.pop(name, None)
                self._just_lost.pop(name, None)
                self.unplaced.pop(name, None)
            if kept or name in view.copies or name in self.unplaced:
                self.due[name] = None

    def pool_changed(self, changes: PoolChanges, before: PoolView, after: PoolView, now_s: float) -> None:
        """Pods and copies came, changed or went."""
        gone = {change.pod for change in changes.pods if is_gone(change)}
        for name in changes.copies:
            self.due[name] = None
            held = before.copies.get(name, ())
            if gone and name not in after.copies and any(copy.servable and copy.pod in gone for copy in held):
                self._just_lost[name] = now_s
        for name in changes.failures:
            self.due[name] = None
        if any(_can_load_more(change) for change in changes.pods):
            self.pod_joined_at_s = now_s
            self.due |= self.unplaced
            self.unplaced.clear()

    def take_due(self) -> dict[ModelName, None]:
        """What is to be looked at now; what comes up from here on is for the next turn.

        Called together with taking the picture that the turn looks at: nothing may happen in between.
        """
        due, self.due = self.due, {}
        self.lost |= self._just_lost
        self._just_lost.clear()
        return due


def is_kept(spec: ModelSpec) -> bool:
    """Whether copies of this model are kept without being asked for."""
    return spec.pinned or spec.copies_min > 0


def _name(record: ModelRecord) -> ModelName:
    return ModelName(record.tenant, record.id)


def is_gone(change: PodChange) -> bool:
    """The pod went away, or another process is in its place."""
    before, after = change.before, change.after
    return before is not None and (after is None or after.incarnation != before.incarnation)


def _can_load_more(change: PodChange) -> bool:
    """The pod can take models that it could not before."""
    before, after = change.before, change.after
    if after is None or not _takes_loads(after):
        return False
    return (
        before is None
        or not _takes_loads(before)
        or before.incarnation != after.incarnation
        or (before.labels, before.formats) != (after.labels, after.formats)
        or after.capacity_bytes - after.pinned_bytes > before.capacity_bytes - before.pinned_bytes
    )


def _takes_loads(pod: Pod) -> bool:
    return pod.ready and not pod.draining
